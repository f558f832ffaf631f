//! What is refused, with which status, in OpenAI's shape.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Running, options, tokenizer};

async fn error(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    assert!(body["error"]["message"].as_str().is_some_and(|m| !m.is_empty()), "{body}");
    assert!(body["error"]["type"].is_string(), "{body}");
    (status, body["error"].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_are_told_what_is_wrong() {
    let server = Running::start(options()).await;
    let long = "x".repeat(2049);
    let complete = "/v1/completions";
    let chat = "/v1/chat/completions";
    for (path, body, status, param, code) in [
        (complete, json!({}), 400, None, None),
        (complete, json!({"prompt": 5}), 400, Some("prompt"), None),
        (complete, json!({"prompt": []}), 400, Some("prompt"), None),
        (complete, json!({"prompt": [999]}), 400, Some("prompt"), None),
        (complete, json!({"prompt": "a", "temperature": "hot"}), 400, Some("temperature"), None),
        (complete, json!({"prompt": "a", "temperature": -1}), 400, Some("temperature"), None),
        (complete, json!({"prompt": "a", "top_p": 0}), 400, Some("top_p"), None),
        (complete, json!({"prompt": "a", "top_k": -2}), 400, Some("top_k"), None),
        (complete, json!({"prompt": "a", "min_p": 2}), 400, Some("min_p"), None),
        (complete, json!({"prompt": "a", "repetition_penalty": 0}), 400, Some("repetition_penalty"), None),
        (complete, json!({"prompt": "a", "presence_penalty": 3}), 400, Some("presence_penalty"), None),
        (complete, json!({"prompt": "a", "logit_bias": {"999": 1}}), 400, Some("logit_bias"), None),
        (complete, json!({"prompt": "a", "logprobs": 21}), 400, Some("logprobs"), None),
        (complete, json!({"prompt": "a", "n": 0}), 400, Some("n"), None),
        (complete, json!({"prompt": "a", "n": 65}), 400, Some("n"), None),
        (complete, json!({"prompt": "a", "max_tokens": -2}), 400, Some("max_tokens"), None),
        (complete, json!({"prompt": "a", "stop": vec!["s"; 17]}), 400, Some("stop"), None),
        (complete, json!({"prompt": "a", "suffix": "b"}), 400, Some("suffix"), Some("unsupported_parameter")),
        (complete, json!({"prompt": "a", "model": "other"}), 404, Some("model"), Some("model_not_found")),
        (complete, json!({"prompt": long}), 400, None, Some("context_length_exceeded")),
        (complete, json!({"prompt": vec![1; 2048]}), 400, None, Some("context_length_exceeded")),
        (complete, json!({"prompt": vec!["a"; 300]}), 400, None, None),
        (chat, json!({"messages": []}), 400, Some("messages"), None),
        (chat, json!({"messages": [{"content": "x"}]}), 400, Some("messages"), None),
        (
            chat,
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            400,
            Some("messages"),
            None,
        ),
        (
            chat,
            json!({"messages": [{"role": "user", "content": long}]}),
            400,
            None,
            Some("context_length_exceeded"),
        ),
        (
            chat,
            json!({"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}),
            400,
            Some("tools"),
            Some("unsupported_parameter"),
        ),
        (
            chat,
            json!({"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object"}}),
            400,
            Some("response_format"),
            Some("unsupported_parameter"),
        ),
        ("/tokenize", json!({}), 400, Some("prompt"), None),
        ("/detokenize", json!({"tokens": [272]}), 400, Some("tokens"), None),
        ("/v1/nothing", json!({}), 404, None, None),
        ("/health", json!({}), 405, None, None),
    ] {
        let (found, error) = error(server.post(path, &body).await).await;
        let shown: String = body.to_string().chars().take(100).collect();
        assert_eq!(found, status, "{path} {shown}: {error}");
        assert_eq!(error["code"].as_str(), code, "{path} {shown}: {error}");
        if param.is_some() {
            assert_eq!(error["param"].as_str(), param, "{path} {shown}: {error}");
        }
    }
    // A prompt that fills the context to the last token is not too long.
    let most = json!({"prompt": "x".repeat(2040), "max_tokens": 8, "ignore_eos": true, "temperature": 0});
    assert_eq!(server.ask(complete, &most).await["usage"]["total_tokens"], 2048);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_no_json_are_refused() {
    let mut options = options();
    options.body_limit = 10_000;
    let server = Running::start(options).await;
    let post = async |kind: &str, body: Vec<u8>| {
        let request = server.client.post(format!("{}/v1/completions", server.url));
        error(request.header("content-type", kind).body(body).send().await.unwrap()).await
    };
    for body in [&b"{"[..], b"", b"[1]", b"\xff\xfe", b"{\"prompt\": \"a\"} x", b"nul", &[b'['; 9000]] {
        assert_eq!(post("application/json", body.to_vec()).await.0, 400, "{body:?}");
    }
    assert_eq!(post("text/plain", b"{\"prompt\": \"a\"}".to_vec()).await.0, 415);
    let (status, large) = post("application/json", vec![b' '; 10_001]).await;
    assert_eq!((status, large["code"].as_str()), (413, Some("body_too_large")));
    let right = json!({"prompt": "a", "max_tokens": 2});
    server.ask("/v1/completions", &right).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_wanted_where_one_is_set() {
    let mut options = options();
    options.api_key = Some("secret".into());
    assert!(!format!("{options:?}").contains("secret"));
    let server = Running::start(options).await;
    let body = json!({"prompt": "a", "max_tokens": 2});
    let ask = async |key: Option<&str>| {
        let request = server.client.post(format!("{}/v1/completions", server.url)).json(&body);
        let request = match key {
            Some(key) => request.header("authorization", key),
            None => request,
        };
        request.send().await.unwrap()
    };
    for key in [
        None,
        Some("Bearer wrong"),
        Some("Bearer secre"),
        Some("Bearer secret2"),
        Some("secret"),
        Some("Bearer "),
        Some("Bearer SECRET"),
        Some("Basic secret"),
        Some("Bearersecret"),
    ] {
        let (status, error) = error(ask(key).await).await;
        assert_eq!((status, error["code"].as_str()), (401, Some("invalid_api_key")), "{key:?}");
    }
    // Names of schemes have no case (RFC 9110, 11.1).
    for key in ["Bearer secret", "bearer secret", "BEARER secret", "bearer   secret"] {
        assert_eq!(ask(Some(key)).await.status(), StatusCode::OK, "{key}");
    }
    for (path, status) in [("/", 200), ("/health", 200), ("/metrics", 401), ("/v1/models", 401)] {
        let found = server.client.get(format!("{}{path}", server.url)).send().await.unwrap().status();
        assert_eq!(found.as_u16(), status, "{path}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_template_says_so() {
    let server = Running::start_with(options(), tokenizer(false)).await;
    let body = json!({"messages": [{"role": "user", "content": "x"}]});
    let (status, error) = error(server.post("/v1/chat/completions", &body).await).await;
    assert_eq!((status, error["code"].as_str()), (400, Some("no_chat_template")));
    server.stop().await;
}

#[test]
fn options_that_cannot_be_are_named() {
    use crate::harness::model;
    for (change, name) in [
        ((|o| o.context = 1 << 30) as fn(&mut sharp_serve::ServeOptions), "context"),
        (|o| o.max_batch = 0, "max_batch"),
        (|o| o.queue = 0, "queue"),
        (|o| o.prefill_chunk = 0, "prefill_chunk"),
        (|o| o.api_key = Some(String::new()), "api_key"),
        (|o| o.api_key = Some("schlüssel".into()), "api_key"),
        (|o| o.connections = 0, "connections"),
        (|o| o.connection_timeout = std::time::Duration::ZERO, "connection_timeout"),
        (|o| o.timeout = std::time::Duration::MAX, "timeout"),
        (|o| o.drain = std::time::Duration::from_secs(u64::MAX), "drain"),
    ] {
        let mut options = options();
        change(&mut options);
        let error = sharp_serve::Server::new(model(1), tokenizer(true), options).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}
