//! Small requests that ask for much: each is answered, and costs no more than one request may.

use serde_json::{Value, json};

use crate::harness::{Running, options, tokenizer_with};

/// Sends a body as it is and returns status and error.
async fn send(server: &Running, path: &str, body: String) -> (u16, Value) {
    let request = server.client.post(format!("{}{path}", server.url));
    let response = request.header("content-type", "application/json").body(body).send().await.unwrap();
    let status = response.status().as_u16();
    (status, response.json::<Value>().await.unwrap()["error"].clone())
}

fn list(element: &str, count: usize) -> String {
    format!("[{}]", vec![element; count].join(","))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_fit_is_refused_before_it_is_read() {
    let server = Running::start(options()).await;
    let stops = list(&format!("{:?}", "s".repeat(1000)), 16);
    for (path, body, code, says) in [
        (
            "/v1/completions",
            format!("{{\"prompt\":{},\"n\":64,\"stop\":{stops}}}", list("[1]", 8000)),
            None,
            "320 sequences",
        ),
        ("/v1/completions", format!("{{\"prompt\":{}}}", list("\"\"", 1_300_000)), None, "257 sequences"),
        (
            "/v1/completions",
            format!("{{\"prompt\":{}}}", list("1", 2_000_000)),
            Some("context_length_exceeded"),
            "prompt has more than 2048 tokens",
        ),
        (
            "/v1/completions",
            format!("{{\"prompt\":{}}}", list(&list("1", 3000), 2)),
            Some("context_length_exceeded"),
            "prompt[0] has more than 2048 tokens",
        ),
        (
            "/v1/completions",
            format!("{{\"prompt\":\"{}\"}}", "7".repeat(4_000_000)),
            Some("context_length_exceeded"),
            "4000000 bytes",
        ),
        (
            "/tokenize",
            format!("{{\"prompt\":\"{}\"}}", "7".repeat(4_000_000)),
            Some("context_length_exceeded"),
            "4000000 bytes",
        ),
        (
            "/detokenize",
            format!("{{\"tokens\":{}}}", list("1", 1_000_000)),
            Some("context_length_exceeded"),
            "tokens has more than 2048 tokens",
        ),
        (
            "/v1/chat/completions",
            format!("{{\"messages\":{}}}", list("{}", 1_000_000)),
            None,
            "messages holds more than",
        ),
        (
            "/v1/chat/completions",
            format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"{}\"}}]}}", "7".repeat(4_000_000)),
            Some("context_length_exceeded"),
            "bytes",
        ),
    ] {
        let (status, error) = send(&server, path, body).await;
        assert_eq!((status, error["code"].as_str()), (400, code), "{path}: {error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{path}: {error}, not {says}");
    }
    let fields: String = (0..300).map(|i| format!("\"f{i}\":1,")).collect();
    let (status, error) = send(&server, "/v1/completions", format!("{{{fields}\"prompt\":\"a\"}}")).await;
    assert!(status == 400 && error["message"].as_str().unwrap().contains("256 fields"), "{error}");
    server.ask("/v1/completions", &json!({"prompt": "a", "max_tokens": 2})).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_wait_for_their_preparation_up_to_a_limit() {
    let mut options = options();
    options.queue = 3;
    // Until its fuel is used up.
    let template = "{% for i in range(9999) %}{% for j in range(9999) %}{{ i }}{% endfor %}{% endfor %}";
    let server = Running::start_with(options, tokenizer_with(Some(template))).await;
    let body = json!({"messages": [{"role": "user", "content": "a"}]});
    let all = (0..12).map(|_| server.post("/v1/chat/completions", &body));
    let mut refused = 0;
    for response in futures_util::future::join_all(all).await {
        match response.status().as_u16() {
            400 => {}
            429 => {
                refused += 1;
                assert!(response.headers().contains_key("retry-after"));
            }
            other => panic!("status {other}"),
        }
    }
    assert!((1..12).contains(&refused), "{refused}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_ends_where_the_context_does() {
    let mut options = options();
    options.context = 24;
    let server = Running::start(options).await;
    for most in [json!(-1), json!(21), json!(1_000_000), json!(1e15)] {
        for (path, name, prompt) in [
            ("/v1/completions", "max_tokens", json!("abcd")),
            ("/v1/chat/completions", "max_completion_tokens", json!([{"role": "", "content": ""}])),
        ] {
            let field = if prompt.is_string() { "prompt" } else { "messages" };
            let answer = server.ask(path, &json!({field: prompt, name: most, "ignore_eos": true})).await;
            assert_eq!(answer["usage"]["total_tokens"], 24, "{most}: {answer}");
            assert_eq!(answer["choices"][0]["finish_reason"], "length", "{most}: {answer}");
        }
    }
    server.stop().await;
}
