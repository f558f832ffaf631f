//! Time limits and the server's end.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Running, options};

fn long() -> Value {
    json!({"prompt": "long", "max_tokens": 1900, "temperature": 0, "ignore_eos": true})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_ends_when_its_time_is_over() {
    let mut options = options();
    options.timeout = Duration::from_millis(1);
    let server = Running::start(options).await;
    let response = server.post("/v1/completions", &long()).await;
    assert_eq!(response.status(), 504);
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["code"], "timeout");
    // A stream has said 200 already; the error is its last event.
    let events = server.stream("/v1/completions", &long()).await;
    assert_eq!(events.last().unwrap()["error"]["code"], "timeout");
    assert_eq!(server.metric("sharp_sequences_timed_out_total").await, 2.0);
    // The client hears of it before the gauge does.
    server.until("sharp_sequences_running", |n| n == 0.0).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_answers_end_before_the_server_does() {
    let mut server = Running::start(options()).await;
    let (client, url) = (server.client.clone(), format!("{}/v1/completions", server.url));
    let running = tokio::spawn(async move {
        let answer: Value = client.post(url).json(&long()).send().await.unwrap().json().await.unwrap();
        answer
    });
    server.until("sharp_sequences_running", |n| n == 1.0).await;
    server.ask_to_stop();
    let answer = running.await.unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 1900, "{answer}");
    // No new connection is taken.
    let refused = server.client.get(format!("{}/health", server.url)).send().await;
    assert!(refused.is_err_and(|e| e.is_connect() || e.is_request()));
    server.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_take_too_long_are_cut_off_with_a_word() {
    let mut options = options();
    options.drain = Duration::ZERO;
    options.max_batch = 1;
    let mut running = Running::start(options).await;
    let mut body = long();
    body["n"] = json!(8);
    let (client, url) = (running.client.clone(), format!("{}/v1/completions", running.url));
    let answer = tokio::spawn(async move {
        let response = client.post(url).json(&body).send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    });
    running.until("sharp_sequences_running", |n| n == 1.0).await;
    running.ask_to_stop();
    let (status, answer) = answer.await.unwrap();
    assert_eq!((status, answer["error"]["code"].as_str()), (503, Some("stopping")), "{answer}");
    running.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_sent_requests_do_not_hold_up_the_end() {
    let mut server = Running::start(options()).await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                content-length: 100\r\n\r\n";
    let half: Vec<TcpStream> = [&head[..30], head, &format!("{head}{{\"prompt\":")]
        .into_iter()
        .map(|part| {
            let mut socket = TcpStream::connect(server.address()).unwrap();
            socket.write_all(part.as_bytes()).unwrap();
            socket
        })
        .collect();
    // A whole request is answered all the same.
    let (client, url) = (server.client.clone(), format!("{}/v1/completions", server.url));
    let running = tokio::spawn(async move { client.post(url).json(&long()).send().await.unwrap().status() });
    server.until("sharp_sequences_running", |n| n == 1.0).await;
    server.ask_to_stop();
    assert_eq!(running.await.unwrap(), 200);
    // The limit on a connection and the drain are thirty seconds each.
    tokio::time::timeout(Duration::from_secs(15), server.ended()).await.unwrap();
    drop(half);
}
