//! One HTTP request and its answer over a connection of its own, at the pace of the client.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a client waits for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// Writes the request for a completion.
pub(super) fn completion(body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

/// Connects and sends `request`.
pub(super) fn send(address: SocketAddr, request: &[u8]) -> io::Result<TcpStream> {
    let mut socket = TcpStream::connect_timeout(&address, PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.write_all(request)?;
    Ok(socket)
}

/// Reads an answer to its end; with `slow`, a few bytes at a time for a while.
pub(super) fn receive(mut socket: TcpStream, slow: Option<Duration>) -> io::Result<Answer> {
    let begun = Instant::now();
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let slowly = slow.is_some_and(|slow| begun.elapsed() < slow);
        if slowly {
            std::thread::sleep(Duration::from_millis(50));
        }
        let most = if slowly { 16 } else { piece.len() };
        match socket.read(&mut piece[..most])? {
            0 => break,
            n => bytes.extend_from_slice(&piece[..n]),
        }
    }
    parse(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no whole HTTP answer"))
}

/// Takes an answer apart; `None` where it is not whole.
fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?.to_ascii_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let mut rest = &bytes[end + 4..];
    let mut body = Vec::new();
    if head.contains("\r\ntransfer-encoding: chunked") {
        loop {
            let line = rest.windows(2).position(|two| two == b"\r\n")?;
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?, 16).ok()?;
            rest = &rest[line + 2..];
            if size == 0 {
                break;
            }
            body.extend_from_slice(rest.get(..size)?);
            rest = rest.get(size + 2..)?;
        }
    } else {
        body.extend_from_slice(rest);
    }
    Some(Answer { status, body: String::from_utf8(body).ok()? })
}

/// Returns the text of a completion, whole or streamed; `None` where there is an error in its place.
pub(super) fn text(body: &str) -> Option<String> {
    if !body.starts_with("data: ") {
        return Some(serde_json::from_str::<Value>(body).ok()?["choices"][0]["text"].as_str()?.to_owned());
    }
    let mut all = String::new();
    let mut ended = false;
    for event in body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")) {
        if event == "[DONE]" {
            ended = true;
            continue;
        }
        all.push_str(serde_json::from_str::<Value>(event).ok()?["choices"][0]["text"].as_str()?);
    }
    ended.then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let answer = parse(chunked).unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "abcde"));
        assert!(parse(&chunked[..chunked.len() - 9]).is_none());
        let whole = parse(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}").unwrap();
        assert_eq!((whole.status, whole.body.as_str()), (503, "{}"));
        assert_eq!(text(r#"{"choices":[{"text":"ab"}]}"#).unwrap(), "ab");
        let stream = "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choices\":[{\"text\":\"b\"}]}\n\n";
        assert_eq!(text(stream), None);
        assert_eq!(text(&format!("{stream}data: [DONE]\n\n")).unwrap(), "ab");
        assert_eq!(text(&format!("{stream}data: {{\"error\":{{}}}}\n\n")), None);
    }
}
