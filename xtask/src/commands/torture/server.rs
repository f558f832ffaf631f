//! A server under load: starts it, sets clients on it, and measures what is left in the end.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sharp_pipeline::Program;

use super::client::{self, Known, Seen};
use super::exchange::{self, completion, receive, send};
use crate::build;

/// How much load, and under which limit.
#[derive(Debug, clap::Args)]
pub(super) struct Load {
    /// Seconds that the clients ask
    #[arg(long, value_name = "N", default_value_t = 600)]
    pub(super) seconds: u64,
    /// Clients at once
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub(super) clients: usize,
    /// Megabytes of address space that the server may take (`ulimit -v`); no limit by default
    #[arg(long, value_name = "MB")]
    pub(super) memory: Option<u64>,
}

/// What was measured. Memory is resident, in bytes.
#[derive(Debug, serde::Serialize)]
pub(super) struct Figures {
    seconds: u64,
    clients: usize,
    memory_limit_mb: Option<u64>,
    #[serde(flatten)]
    seen: Seen,
    memory_before: u64,
    /// The most in the first third of the time, and in the last.
    memory_first: u64,
    memory_last: u64,
    memory_after: u64,
    files_before: usize,
    files_most: usize,
    files_after: usize,
}

/// Memory that may come and go without being a leak.
const SLACK: u64 = 16 << 20;
/// How long the last sequences may take once nobody asks.
const SETTLES: Duration = Duration::from_secs(60);

impl Figures {
    /// Writes the figures for a person.
    pub(super) fn text(&self) -> String {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let seen = &self.seen;
        let mut text = format!(
            "{} requests of {} clients in {} s: {} answered as when alone, {} otherwise, {} refused (429, 503), \
             {} left by their clients, {} hostile\nmemory: {:.1} MB before, {:.1} in the first third, {:.1} in \
             the last, {:.1} after\nopen files: {} before, {} at most, {} after\n",
            seen.requests,
            self.clients,
            self.seconds,
            seen.same,
            seen.wrong,
            seen.refused,
            seen.left,
            seen.hostile,
            mb(self.memory_before),
            mb(self.memory_first),
            mb(self.memory_last),
            mb(self.memory_after),
            self.files_before,
            self.files_most,
            self.files_after,
        );
        for fault in &seen.faults {
            text.push_str(&format!("fault: {fault}\n"));
        }
        text
    }

    /// Fails where answers were wrong, memory grew, or files stayed open.
    pub(super) fn check(&self, load: &Load) -> Result<()> {
        let seen = &self.seen;
        if seen.wrong > 0 {
            bail!("{} answers were wrong or missing, such as: {}", seen.wrong, seen.faults.join("; "));
        }
        if (seen.same as usize) < load.clients {
            bail!("{} answers of {} clients are too few to say anything", seen.same, load.clients);
        }
        if self.memory_last > self.memory_first + self.memory_first / 10 + SLACK {
            bail!("memory grew from {} to {} bytes", self.memory_first, self.memory_last);
        }
        if self.files_after > self.files_before {
            bail!("{} files were open before, {} are after", self.files_before, self.files_after);
        }
        Ok(())
    }
}

/// Provides the program whose server is tortured.
pub(super) fn program() -> Result<PathBuf> {
    Ok(build::provide(&[Program::Sharp])?.path(Program::Sharp)?.to_owned())
}

/// A server that is ended with this.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended already cannot be ended again, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(program: &Path, model: &Path, memory: Option<u64>) -> Result<Self> {
        let limit = memory.map_or("unlimited".to_owned(), |mb| (mb * 1000).to_string());
        let mut child = Command::new("sh")
            .args(["-c", "ulimit -v \"$1\" && shift && exec \"$@\"", "sh", &limit])
            .arg(program)
            .args(["serve", "--port", "0", "--json", "--connection-timeout", "10", "--model"])
            .arg(model)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the server")?;
        let mut text = String::new();
        let mut lines = BufReader::new(child.stdout.take().context("the server's output")?).lines();
        let told = loop {
            let Some(line) = lines.next() else { bail!("the server ended before it served: {text}") };
            text.push_str(&line?);
            if let Ok(told) = serde_json::from_str::<Value>(&text) {
                break told;
            }
        };
        let url = told["url"].as_str().context("the server told no address")?;
        let address = url.trim_start_matches("http://").parse().context("the server's address")?;
        Ok(Self { child, address })
    }

    fn memory(&self) -> Result<u64> {
        sharp_host::resident_memory_of(self.child.id()).context("the server has ended")
    }

    fn files(&self) -> Result<usize> {
        let folder = format!("/proc/{}/fd", self.child.id());
        Ok(std::fs::read_dir(&folder).with_context(|| format!("reading {folder}"))?.count())
    }

    fn ask(&self, body: &str) -> Result<String> {
        let answer = receive(send(self.address, &completion(body.as_bytes()))?, None)?;
        exchange::text(&answer.body).with_context(|| format!("{body} was answered {answer:?}"))
    }

    /// Waits until nothing runs any more.
    fn settle(&self) -> Result<()> {
        let begun = Instant::now();
        let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        loop {
            let text = receive(send(self.address, request)?, None)?.body;
            let quiet = |name: &str| text.lines().any(|line| line == format!("{name} 0"));
            if quiet("sharp_sequences_running") && quiet("sharp_sequences_waiting") {
                // Connections that wait for a request that nobody sends end by the server's limit.
                std::thread::sleep(Duration::from_secs(1));
                return Ok(());
            }
            if begun.elapsed() > SETTLES {
                bail!("sequences still run {} s after the last client left", SETTLES.as_secs());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn stop(mut self) -> Result<()> {
        let id = self.child.id().to_string();
        let asked =
            Command::new("kill").args(["-TERM", &id]).status().context("asking the server to stop")?;
        let status = self.child.wait().context("waiting for the server")?;
        if !asked.success() || !status.success() {
            bail!("the server ended with {status}");
        }
        Ok(())
    }
}

/// What was seen of a server while clients asked.
#[derive(Default)]
struct Watch {
    memory_first: u64,
    memory_last: u64,
    files_most: usize,
}

impl Watch {
    fn run(&mut self, server: &Server, time: Duration) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < time {
            std::thread::sleep(Duration::from_millis(250));
            let (memory, at) = (server.memory()?, begun.elapsed());
            if at < time / 3 {
                self.memory_first = self.memory_first.max(memory);
            } else if at > time / 3 * 2 {
                self.memory_last = self.memory_last.max(memory);
            }
            self.files_most = self.files_most.max(server.files()?);
        }
        Ok(())
    }
}

/// Starts a server, sets clients on it, and measures.
pub(super) fn torture(program: &Path, load: &Load) -> Result<Figures> {
    let folder = std::env::temp_dir().join(format!("sharp-torture-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let figures = in_folder(program, load, &folder);
    std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    figures
}

/// Makes a small packed model: its answers do not depend on what else is asked.
fn make_model(program: &Path, folder: &Path) -> Result<PathBuf> {
    let (checkpoint, model) = (folder.join("checkpoint"), folder.join("model.sharp"));
    let run = |command: &mut Command| {
        let ended = command.stdout(Stdio::null()).stderr(Stdio::null()).status().context("making a model")?;
        if !ended.success() {
            bail!("making a model ended with {ended}");
        }
        Ok(())
    };
    run(Command::new(program)
        .args(["synth", "--preset", "tiny", "--vocab", "512", "--out"])
        .arg(&checkpoint))?;
    run(Command::new(program)
        .args(["quantize", "--recipe", "q8", "--model"])
        .arg(&checkpoint)
        .arg("--out")
        .arg(&model))?;
    Ok(model)
}

fn in_folder(program: &Path, load: &Load, folder: &Path) -> Result<Figures> {
    let model = make_model(program, folder)?;
    let server = Server::start(program, &model, load.memory)?;
    let known: Vec<Known> = client::bodies()
        .into_iter()
        .map(|body| Ok(Known { text: server.ask(&body)?, body }))
        .collect::<Result<_>>()?;
    let (memory_before, files_before) = (server.memory()?, server.files()?);
    let (over, mut watch) = (AtomicBool::new(false), Watch::default());
    let seen = std::thread::scope(|scope| {
        let client = |i| {
            let (known, over, address) = (&known, &over, server.address);
            scope.spawn(move || client::run(i, address, known, over))
        };
        let clients: Vec<_> = (0..load.clients).map(client).collect();
        let watched = watch.run(&server, Duration::from_secs(load.seconds));
        over.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for client in clients {
            all.add(client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?);
        }
        watched.map(|()| all)
    })?;
    server.settle()?;
    let (memory_after, files_after) = (server.memory()?, server.files()?);
    for one in &known {
        if server.ask(&one.body)? != one.text {
            bail!("{} is answered otherwise than before", one.body);
        }
    }
    server.stop()?;
    Ok(Figures {
        seconds: load.seconds,
        clients: load.clients,
        memory_limit_mb: load.memory,
        seen,
        memory_before,
        memory_first: watch.memory_first,
        memory_last: watch.memory_last,
        memory_after,
        files_before,
        files_most: watch.files_most,
        files_after,
    })
}
