//! What the clients of a tortured server do.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use super::exchange::{self, completion, receive, send};

/// A request, and the text that it was answered with when nothing else ran.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) body: String,
    pub(super) text: String,
}

/// What clients saw, summed up.
#[derive(Debug, Default, Clone, serde::Serialize)]
pub(super) struct Seen {
    pub(super) requests: u64,
    /// Answers that were those of the same request alone.
    pub(super) same: u64,
    /// Answers that were others, or no answers: nothing of this may be.
    pub(super) wrong: u64,
    /// 429 and 503.
    pub(super) refused: u64,
    /// Clients that went away, before an answer or within one.
    pub(super) left: u64,
    /// Requests that nobody should send, answered or cut off.
    pub(super) hostile: u64,
    /// The first few things that were wrong.
    pub(super) faults: Vec<String>,
}

impl Seen {
    pub(super) fn add(&mut self, other: Seen) {
        self.requests += other.requests;
        self.same += other.same;
        self.wrong += other.wrong;
        self.refused += other.refused;
        self.left += other.left;
        self.hostile += other.hostile;
        self.faults.extend(other.faults);
        self.faults.truncate(10);
    }

    fn fault(&mut self, what: String) {
        self.wrong += 1;
        if self.faults.len() < 10 {
            self.faults.push(what);
        }
    }
}

/// Numbers that look random, the same for each client every time (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % most as u64) as usize
    }
}

/// Returns the requests whose answers are known: prompts long and short, streamed and not, with seeds, stop
/// strings and log probabilities.
pub(super) fn bodies() -> Vec<String> {
    let mut all = Vec::new();
    for i in 0..24 {
        let mut body = json!({
            "prompt": "Once upon a time there was a server. ".repeat(1 + i % 5) + &i.to_string(),
            "max_tokens": 8 + i,
            "temperature": if i % 3 == 0 { 0.0 } else { 0.9 },
            "seed": i,
            "stream": i % 2 == 0,
        });
        if i % 4 == 0 {
            body["stop"] = json!(["zq", "\n\n"]);
        }
        if i % 5 == 0 {
            body["logprobs"] = json!(3);
        }
        all.push(body.to_string());
    }
    all
}

/// Asks until `over`, in every way that clients have.
pub(super) fn run(number: usize, address: SocketAddr, known: &[Known], over: &AtomicBool) -> Seen {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1).wrapping_mul(0xff51_afd7_ed55_8ccd));
    let mut seen = Seen::default();
    while !over.load(Ordering::Relaxed) {
        seen.requests += 1;
        let one = &known[dice.below(known.len())];
        match dice.below(20) {
            0..12 => asks(address, one, None, &mut seen),
            12..14 => asks(address, one, Some(Duration::from_secs(2)), &mut seen),
            14..17 => leaves(address, one, &mut dice, &mut seen),
            _ => attacks(address, &mut dice, &mut seen),
        }
    }
    seen
}

/// Asks, reads the answer fast or slowly, and compares it.
fn asks(address: SocketAddr, one: &Known, slow: Option<Duration>, seen: &mut Seen) {
    match send(address, &completion(one.body.as_bytes())).and_then(|socket| receive(socket, slow)) {
        Ok(answer) if matches!(answer.status, 429 | 503) => {
            seen.refused += 1;
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(answer) if exchange::text(&answer.body).as_ref() == Some(&one.text) => seen.same += 1,
        Ok(answer) => {
            let (status, body) = (answer.status, answer.body);
            seen.fault(format!("{} was answered {status} {body}, alone {:?}", one.body, one.text));
        }
        Err(error) => seen.fault(format!("{}: {error}", one.body)),
    }
}

/// Goes away after a part of the request, at once, or a little later.
fn leaves(address: SocketAddr, one: &Known, dice: &mut Dice, seen: &mut Seen) {
    let request = completion(one.body.as_bytes());
    let part = [request.len() / 3, request.len() - 5, request.len(), request.len()][dice.below(4)];
    if let Ok(socket) = send(address, &request[..part]) {
        std::thread::sleep(Duration::from_millis([0, 5, 50, 300][dice.below(4)]));
        drop(socket);
    }
    seen.left += 1;
}

/// Sends what nobody should. The server may refuse or cut off, but not fail.
fn attacks(address: SocketAddr, dice: &mut Dice, seen: &mut Seen) {
    let list = |element: &str, count: usize| vec![element; count].join(",");
    let request = match dice.below(12) {
        0 => completion(format!("{{\"prompt\":[{}],\"n\":64}}", list("[1]", 8000)).as_bytes()),
        1 => completion(format!("{{\"prompt\":[{}]}}", list("\"\"", 100_000)).as_bytes()),
        2 => completion(format!("{{\"prompt\":\"{}\"}}", "7".repeat(300_000)).as_bytes()),
        3 => completion(&[b'['; 50_000]),
        4 => completion(b"{\"prompt\":\"\xff\xfe\"}"),
        5 => completion(b"{\"prompt\":\"a\\ud83d\"}"),
        6 => completion(b"{\"prompt\":[99999999999],\"logit_bias\":{\"-1\":1e999}}"),
        7 => b"GET /health HTTP/1.1\r\nX-A: \0\r\n\r\n".to_vec(),
        8 => [b"GET / HTTP/1.1\r\nX-A: ".to_vec(), vec![b'a'; 1 << 20]].concat(),
        9 => b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
               Content-Length: 10000000000\r\n\r\n{"
            .to_vec(),
        10 => b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\
                Transfer-Encoding: chunked\r\n\r\nzz\r\n"
            .to_vec(),
        _ => completion(format!("{{\"messages\":[{}]}}", list("{\"role\":\"a\"}", 20_000)).as_bytes()),
    };
    // Where the server closes before all is sent, the system may throw its answer away.
    if let Ok(answer) = send(address, &request).and_then(|socket| receive(socket, None))
        && answer.status >= 500
        && answer.status != 503
    {
        let shown: String = String::from_utf8_lossy(&request).chars().take(200).collect();
        seen.fault(format!("{shown} was answered {}", answer.status));
    }
    seen.hostile += 1;
}
