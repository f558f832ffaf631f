//! Connections that make the server wait.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tokio::task::block_in_place;

use crate::harness::{Running, options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_wait_too_long_end() {
    let mut options = options();
    options.connection_timeout = Duration::from_millis(500);
    options.connections = 3;
    let server = Running::start(options).await;
    let begun = Instant::now();
    // Half a head, and a whole request after which nothing comes.
    assert_eq!(server.raw("GET /health HTTP/1.1\r\nx-a: "), "");
    assert!(server.raw("GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").starts_with("HTTP/1.1 200 OK"));
    // Half a body: 408, Request Timeout (RFC 9110, 15.5.9).
    let half = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                content-length: 100\r\n\r\n{\"prompt\":";
    let answer = server.raw(half);
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("connection: close"), "{answer}");
    // A body that says it is too long is refused before it comes.
    let large = half.replace("content-length: 100", "content-length: 10000000000");
    assert!(server.raw(&large).starts_with("HTTP/1.1 413"));
    // A byte now and then does not help.
    let trickled = block_in_place(|| {
        let mut socket = TcpStream::connect(server.address()).unwrap();
        socket.write_all(b"GET /health HTTP/1.1\r\nx-a: ").unwrap();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) && socket.write_all(b"a").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
        begun.elapsed()
    });
    assert!(trickled < Duration::from_secs(10), "{trickled:?}");
    // As many as there may be keep others out only until their time is over.
    let held: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
    let answer = server.client.get(format!("{}/health", server.url)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    drop(held);
    assert!(begun.elapsed() < Duration::from_secs(60));
    server.stop().await;
}
