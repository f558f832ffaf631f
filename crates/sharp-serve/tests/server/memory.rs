//! A server with little memory: what does not fit is refused, and the others go on.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use sharp_infer::{DType, Model, Options, Session, Synthetic};
use sharp_model::ModelConfig;
use sharp_serve::Server;

use crate::harness::{Running, model, options, tokenizer};

/// Set in the process that serves.
const CHILD: &str = "SHARP_SERVE_IN_LITTLE";
const TEST: &str = "memory::a_small_machine_refuses_what_does_not_fit";

fn no_memory(response: &Response) -> bool {
    let waits = response.headers().contains_key("retry-after");
    response.status() == 503 && waits
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_reserved_before_a_request_is_accepted() {
    let mut options = options();
    let whole = Session::bytes(&model(1), 2048, 2048).unwrap();
    options.memory = Some(whole + whole / 2);
    let server = Running::start(options).await;
    let long = json!({"prompt": "a", "max_tokens": 1500, "ignore_eos": true, "temperature": 0});
    // Two never fit.
    let mut two = long.clone();
    two["n"] = json!(2);
    let refused = server.post("/v1/completions", &two).await;
    assert_eq!(refused.status(), 400);
    let error: Value = refused.json().await.unwrap();
    assert_eq!(error["error"]["code"], "request_too_large", "{error}");
    // One of several does at a time, streamed or not.
    let mut streamed = long.clone();
    streamed["stream"] = json!(true);
    let all = [&long, &streamed, &long, &streamed, &long].map(|body| server.post("/v1/completions", body));
    let answers = join_all(all).await;
    assert!(answers.iter().all(|answer| answer.status() == 200 || no_memory(answer)));
    assert!((1..5).contains(&answers.iter().filter(|answer| answer.status() == 200).count()));
    for answer in answers {
        answer.text().await.unwrap();
    }
    let answer = server.ask("/v1/completions", &long).await;
    assert_eq!(answer["usage"]["completion_tokens"], 1500);
    server.stop().await;
}

/// Serves until the input ends.
async fn serve() {
    let mut config = ModelConfig::llama(64, 160, 4, 4, 2, 272).unwrap();
    config.max_position_embeddings = 1 << 16;
    let model_options = Options { threads: 1, kv_cache: Some(DType::F32), ..Options::default() };
    let model = Model::from_source(&Synthetic::in_memory(&config, None, 5).unwrap(), &model_options).unwrap();
    let mut options = options();
    options.context = 1 << 16;
    let server = Server::new(model, tokenizer(true), options).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut out = std::io::stdout();
    writeln!(out, "\nserving {}", listener.local_addr().unwrap()).unwrap();
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    server.serve(listener, async { drop(ended.await) }).await.unwrap();
}

/// A session of this server takes 64 MB of addresses, and the process may have a gigabyte.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_machine_refuses_what_does_not_fit() {
    if std::env::var_os(CHILD).is_some() {
        return serve().await;
    }
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -v 1000000; exec \"$0\" --exact --nocapture \"$1\""])
        .arg(std::env::current_exe().unwrap())
        .arg(TEST)
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = lines.find_map(|line| line.unwrap().strip_prefix("serving ").map(|at| format!("http://{at}")));
    let url = format!("{}/v1/completions", url.unwrap());
    let client = Client::builder().timeout(Duration::from_secs(120)).build().unwrap();
    let ask = |body: Value| client.post(&url).json(&body).send();
    let body = json!({"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0, "ignore_eos": true});
    let alone: Value = ask(body.clone()).await.unwrap().json().await.unwrap();
    let mut refused = 0;
    for round in 0..4 {
        let bodies = (0..40).map(|i| {
            let mut body = body.clone();
            // Some ask for far more than there is.
            if i % 10 == round {
                body = json!({"prompt": "a", "n": 64, "max_tokens": 60_000, "logprobs": 20});
            }
            body
        });
        for answer in join_all(bodies.map(ask)).await {
            let answer = answer.unwrap();
            if no_memory(&answer) {
                refused += 1;
                continue;
            }
            let status = answer.status().as_u16();
            let answer: Value = answer.json().await.unwrap();
            if status == 400 {
                assert_eq!(answer["error"]["code"], "request_too_large", "{answer}");
                continue;
            }
            assert_eq!(status, 200, "{answer}");
            assert_eq!(answer["choices"], alone["choices"]);
        }
    }
    assert!(refused > 0);
    // The last sessions are given back a moment after their answers.
    let mut after = ask(body.clone()).await.unwrap();
    for _ in 0..100 {
        if !no_memory(&after) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        after = ask(body.clone()).await.unwrap();
    }
    assert_eq!(after.status(), 200, "{}", after.text().await.unwrap());
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}
