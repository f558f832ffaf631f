//! Bodies as they come over the wire: packed, too large, cut within a character.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::harness::{Running, options};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packed_bodies_are_read_within_the_limit() {
    let mut options = options();
    options.body_limit = 100_000;
    let server = Running::start(options).await;
    let post = async |coding: &str, body: Vec<u8>| {
        let request = server.client.post(format!("{}/v1/completions", server.url)).body(body);
        let request = request.header("content-type", "application/json").header("content-encoding", coding);
        let response = request.send().await.unwrap();
        let accepted = response.headers().get("accept-encoding").cloned();
        (response.status().as_u16(), accepted, response.json::<Value>().await.unwrap())
    };
    let body = json!({"prompt": "a", "max_tokens": 2, "temperature": 0}).to_string();
    let plain = post("identity", body.clone().into_bytes()).await;
    for coding in ["gzip", "x-gzip", "GZIP", "identity, gzip"] {
        let packed = post(coding, gzip(body.as_bytes())).await;
        assert_eq!((packed.0, &packed.2["choices"]), (200, &plain.2["choices"]), "{coding}");
    }
    // RFC 9110, 15.5.16: what is not understood is 415, and the answer says what would be.
    for coding in ["br", "zstd", "gzip, gzip"] {
        let (status, accepted, error) = post(coding, body.clone().into_bytes()).await;
        assert_eq!((status, accepted.unwrap().to_str().unwrap()), (415, "gzip"), "{coding}: {error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(coding), "{error}");
    }
    let (status, _, error) = post("gzip", body.into_bytes()).await;
    assert!(status == 400 && error["error"]["message"].as_str().unwrap().contains("gzip"), "{error}");
    // 100 KB of packed blanks would be 100 MB.
    let bomb = gzip(&vec![b' '; 50_000_000]);
    assert!(bomb.len() < 100_000);
    let (status, _, error) = post("gzip", bomb).await;
    assert_eq!((status, error["error"]["code"].as_str()), (413, Some("body_too_large")), "{error}");
    let (status, _, error) = post("identity", br#"{"prompt": "a\ud83d"}"#.to_vec()).await;
    assert!(status == 400 && error["error"]["message"].as_str().unwrap().contains("surrogate"), "{error}");
    server.stop().await;
}
