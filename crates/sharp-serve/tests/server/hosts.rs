//! Names that the server answers to.

use serde_json::{Value, json};

use crate::harness::{Running, options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_others_are_refused() {
    let mut options = options();
    options.allowed_hosts = vec!["model.example".into()];
    let server = Running::start(options).await;
    let port = server.address().rsplit(':').next().unwrap().to_owned();
    let get = async |path: &str, host: &str| {
        let request = server.client.get(format!("{}{path}", server.url)).header("host", host);
        request.send().await.unwrap().status().as_u16()
    };
    for path in ["/v1/models", "/metrics", "/health", "/", "/nothing"] {
        let right = if path == "/nothing" { 404 } else { 200 };
        for host in ["127.0.0.1", "localhost", "[::1]", "model.example", "MODEL.example"] {
            assert_eq!(get(path, &format!("{host}:{port}")).await, right, "{host}{path}");
        }
        // 421, Misdirected Request: RFC 9110, 15.5.20.
        for host in ["evil.example", "127.0.0.1.evil.example", "x.model.example"] {
            assert_eq!(get(path, &format!("{host}:{port}")).await, 421, "{host}{path}");
            assert_eq!(get(path, host).await, 421, "{host}{path}");
        }
    }
    let body = json!({"prompt": "a", "max_tokens": 1});
    let post = server.client.post(format!("{}/v1/completions", server.url)).json(&body);
    let refused = post.header("host", "evil.example").send().await.unwrap();
    assert_eq!(refused.status(), 421);
    let error: Value = refused.json().await.unwrap();
    assert!(error["error"]["message"].as_str().unwrap().contains("--allowed-host evil.example"), "{error}");
    // RFC 9112, 3.2: exactly one; and what the first line names counts before it.
    for (head, status) in [
        ("GET /health HTTP/1.1\r\n", 400),
        ("GET /health HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n", 400),
        ("GET /health HTTP/1.1\r\nhost: evil.example@localhost\r\n", 400),
        ("GET http://evil.example/health HTTP/1.1\r\nhost: localhost\r\n", 421),
        ("GET /health HTTP/1.0\r\n", 200),
    ] {
        let answer = server.raw(&format!("{head}connection: close\r\n\r\n"));
        assert_eq!(answer.split(' ').nth(1), Some(status.to_string().as_str()), "{head}: {answer}");
    }
    server.stop().await;
}
