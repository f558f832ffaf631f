//! Many clients at once: nothing is lost, nothing is stuck, nobody's answer depends on the others.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::block_in_place;

use crate::harness::{Running, alone, events, options, sampler};

/// A request as it goes over the wire.
fn wire(body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A connection on which `bytes` were sent.
fn send(server: &Running, bytes: &[u8]) -> TcpStream {
    block_in_place(|| {
        let mut socket = TcpStream::connect(server.address()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.write_all(bytes).unwrap();
        socket
    })
}

fn long(prompt: &str) -> Value {
    json!({"prompt": prompt, "max_tokens": 1900, "temperature": 0, "ignore_eos": true, "stream": true})
}

/// Text of a chunked body.
fn body_of(raw: &[u8]) -> String {
    let at = raw.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let (mut rest, mut out) = (&raw[at..], Vec::new());
    loop {
        let end = rest.windows(2).position(|w| w == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return String::from_utf8(out).unwrap();
        }
        out.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 2 + size + 2..];
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_does_not_depend_on_what_else_is_in_the_batch() {
    let mut options = options();
    // Prompts in several pieces, more sequences than places, sessions that are used again.
    options.prefill_chunk = 7;
    options.max_batch = 5;
    options.cached_sessions = 1;
    let server = Arc::new(Running::start(options).await);
    let prompts: Vec<String> =
        (0..24).map(|i| format!("Request {i} {}", "of some length ".repeat(i % 5))).collect();
    let tasks: Vec<_> = prompts
        .iter()
        .cloned()
        .enumerate()
        .map(|(i, prompt)| {
            let server = server.clone();
            let temperature = [0.0, 0.9][i % 2];
            tokio::spawn(async move {
                let body = json!({
                    "prompt": prompt, "max_tokens": 10 + i, "temperature": temperature, "seed": i,
                    "logprobs": 1,
                });
                server.ask("/v1/completions", &body).await["choices"][0].clone()
            })
        })
        .collect();
    let mut together = Vec::new();
    for task in tasks {
        together.push(task.await.unwrap());
    }
    assert!(
        server.metric("sharp_decode_batch_bucket{le=\"1.0\"}").await
            < server.metric("sharp_decode_batch_count").await
    );
    for (i, (prompt, choice)) in prompts.iter().zip(together).enumerate() {
        let expected = alone(prompt, 10 + i, sampler([0.0, 0.9][i % 2], i as u64), &[]);
        assert_eq!(choice["text"], expected.text, "request {i}");
        // The numbers too, to the last bit.
        let body = json!({
            "prompt": prompt, "max_tokens": 10 + i, "temperature": ([0.0, 0.9][i % 2]), "seed": i, "logprobs": 1,
        });
        let again = server.ask("/v1/completions", &body).await["choices"][0].clone();
        assert_eq!(again["logprobs"], choice["logprobs"], "request {i}");
    }
    Arc::into_inner(server).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_clients_of_every_kind() {
    let mut options = options();
    options.queue = 1000;
    let server = Arc::new(Running::start(options).await);
    // Eight different requests, so that an answer in the wrong place shows.
    let kinds: Vec<(Value, String)> = (0..8)
        .map(|kind| {
            let prompt = format!("load {kind}");
            let text = alone(&prompt, 16, sampler(0.0, 0), &[]).text;
            (json!({"prompt": prompt, "max_tokens": 16, "temperature": 0}), text)
        })
        .collect();
    let mut tasks = Vec::new();
    for i in 0..400 {
        let server = server.clone();
        let (body, whole) = kinds[i / 4 % kinds.len()].clone();
        tasks.push(tokio::spawn(async move {
            match i % 4 {
                0 | 1 => assert_eq!(server.ask("/v1/completions", &body).await["choices"][0]["text"], whole),
                2 => {
                    let events = server.stream("/v1/completions", &body).await;
                    let text: String =
                        events.iter().filter_map(|e| e["choices"][0]["text"].as_str()).collect();
                    assert_eq!(text, whole);
                }
                _ => {
                    // Gone after a while, at some point of the way.
                    let request = wire(&long("load"));
                    let part = if i % 8 == 3 { request.len() } else { request.len() / 2 };
                    let _socket = send(&server, &request.as_bytes()[..part]);
                    tokio::time::sleep(Duration::from_millis(i as u64 % 50)).await;
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    server.until("sharp_sequences_running", |n| n == 0.0).await;
    server.until("sharp_sequences_waiting", |n| n == 0.0).await;
    let finished = server.metric("sharp_sequences_finished_total").await;
    let cancelled = server.metric("sharp_sequences_cancelled_total").await;
    // 300 want their answer; of 100 that go, half never finished asking.
    assert!(finished >= 300.0 && finished + cancelled <= 350.0, "{finished} {cancelled}");
    assert_eq!(server.metric("sharp_sequences_failed_total").await, 0.0);
    assert_eq!(server.metric("sharp_sequences_timed_out_total").await, 0.0);
    Arc::into_inner(server).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_frees_its_place() {
    let mut options = options();
    options.max_batch = 1;
    let server = Running::start(options).await;
    for streamed in [true, false] {
        let before = server.metric("sharp_sequences_cancelled_total").await;
        let mut body = long("gone");
        body["stream"] = json!(streamed);
        let mut sockets = Vec::new();
        for _ in 0..3 {
            sockets.push(send(&server, wire(&body).as_bytes()));
        }
        // One is being written, two wait.
        server.until("sharp_sequences_waiting", |n| n == 2.0).await;
        drop(sockets);
        server.until("sharp_sequences_cancelled_total", |n| n == before + 3.0).await;
        server.until("sharp_sequences_running", |n| n == 0.0).await;
    }
    server.ask("/v1/completions", &json!({"prompt": "next", "max_tokens": 4})).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_up_nobody_and_gets_everything() {
    let server = Running::start(options()).await;
    let mut sockets = Vec::new();
    for _ in 0..4 {
        sockets.push(send(&server, wire(&long("slow")).as_bytes()));
    }
    let quick = json!({"prompt": "quick", "max_tokens": 4});
    server.ask("/v1/completions", &quick).await;
    // Nobody has read a byte, and yet all are written.
    server.until("sharp_sequences_finished_total", |n| n == 5.0).await;
    let expected = server.stream("/v1/completions", &long("slow")).await;
    let text = |events: &[Value]| -> String {
        events.iter().filter_map(|e| e["choices"][0]["text"].as_str()).collect()
    };
    for mut socket in sockets {
        let mut raw = Vec::new();
        let mut part = [0; 3001];
        loop {
            match block_in_place(|| socket.read(&mut part)).unwrap() {
                0 => break,
                n => raw.extend_from_slice(&part[..n]),
            }
        }
        let found = events(&body_of(&raw));
        assert_eq!(text(&found), text(&expected));
        assert_eq!(found.last().unwrap()["choices"][0]["finish_reason"], "length");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_says_so_and_recovers() {
    let mut options = options();
    options.max_batch = 1;
    options.queue = 2;
    let server = Running::start(options).await;
    let mut sockets = Vec::new();
    for waiting in [0.0, 1.0, 2.0] {
        sockets.push(send(&server, wire(&long("full")).as_bytes()));
        server.until("sharp_sequences_running", |n| n == 1.0).await;
        server.until("sharp_sequences_waiting", |n| n == waiting).await;
    }
    let body = json!({"prompt": "one more", "max_tokens": 2});
    let refused = server.post("/v1/completions", &body).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    let error: Value = refused.json().await.unwrap();
    assert_eq!(error["error"]["type"], "rate_limit_error");
    drop(sockets);
    server.until("sharp_sequences_running", |n| n == 0.0).await;
    server.ask("/v1/completions", &body).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_wire_hurts_nobody() {
    let server = Running::start(options()).await;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"\0\0\0\0",
    ] {
        let mut socket = send(&server, garbage);
        socket.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let read = block_in_place(|| socket.read_to_end(&mut answer));
        // Either an answer with an error or the end of the connection.
        if let Err(error) = read {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        if !answer.is_empty() {
            assert!(answer.starts_with(b"HTTP/1.1 4"), "{:?}", String::from_utf8_lossy(&answer));
        }
    }
    server.ask("/v1/completions", &json!({"prompt": "fine", "max_tokens": 2})).await;
    server.stop().await;
}
