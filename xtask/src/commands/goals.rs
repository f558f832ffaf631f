//! `cargo xtask benchmark --goals`: every goal of the engine measured, on random weights of three shapes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use sharp_pipeline::sharp::{self, Load, Measurement, Synthetic};
use sharp_schema::benchmark;

use super::measure::{Format, PeerTest, finish, median, ours_once, peer_once, run_sharp};

/// What is measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Group {
    /// Decoding against llama.cpp
    Decode,
    /// A prompt of 512 tokens against llama.cpp; peak memory
    Prefill,
    /// Opening and the first token against llama.cpp, warm and cold
    Load,
    /// Decoding with shared MLPs against without, and against the bare loop
    Sharing,
    /// Eight sequences together against one
    Together,
    /// With as many busy processes as threads against without
    Busy,
    /// The cost of recovery against its share of the bytes
    Rank,
}

/// A preset of `sharp synth`, and what its goals are.
struct Shape {
    preset: &'static str,
    /// Tokens decoded in one run.
    tokens: usize,
    /// Times llama.cpp's speed at 4 and at 8 bits.
    decode: [f64; 2],
    /// Times the speed without sharing, for pairs and groups of four.
    sharing: [f64; 2],
}

const SHAPES: [Shape; 3] = [
    Shape { preset: "smollm2-135m", tokens: 100, decode: [2.0, 1.6], sharing: [1.15, 1.3] },
    Shape { preset: "llama-110m", tokens: 100, decode: [2.0, 1.6], sharing: [1.0, 1.0] },
    Shape { preset: "tinyllama-1.1b", tokens: 24, decode: [1.3, 1.25], sharing: [1.05, 1.2] },
];

/// One goal and what came of it.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    what: String,
    threads: usize,
    /// Medians of what is divided; the unit is that of the group.
    ours: f64,
    /// llama.cpp's, or ours without what is measured.
    other: f64,
    figure: f64,
    goal: f64,
    /// Whether the figure may be at most the goal instead of at least.
    at_most: bool,
    met: bool,
}

/// The programs, where the models are, and how much is measured.
pub(super) struct Goals<'a> {
    pub(super) sharp: &'a Path,
    pub(super) peer: &'a Path,
    pub(super) models: &'a Path,
    pub(super) threads: &'a [usize],
    pub(super) repeats: usize,
    pub(super) shapes: &'a [String],
}

/// Measurements by name, to be reduced to medians.
#[derive(Default)]
struct Samples(BTreeMap<String, Vec<f64>>);

impl Samples {
    fn add(&mut self, name: &str, value: f64) {
        self.0.entry(name.to_owned()).or_default().push(value);
    }

    fn median(&self, name: &str) -> f64 {
        median(self.0.get(name).cloned().unwrap_or_default())
    }
}

impl Goals<'_> {
    /// Measures the groups in turn; what they need is made first, and kept.
    pub(super) fn run(&self, groups: &[Group]) -> Result<Vec<Row>> {
        let known: Vec<&str> = SHAPES.iter().map(|shape| shape.preset).collect();
        if let Some(wrong) = self.shapes.iter().find(|name| !known.contains(&name.as_str())) {
            bail!("there is no shape {wrong}; there are {}", known.join(", "));
        }
        let mut rows = Vec::new();
        for shape in
            SHAPES.iter().filter(|s| self.shapes.is_empty() || self.shapes.iter().any(|n| n == s.preset))
        {
            for group in groups {
                eprintln!("{}: {group:?}", shape.preset);
                match group {
                    Group::Decode => self.decode(shape, &mut rows)?,
                    Group::Prefill => self.prefill(shape, &mut rows)?,
                    Group::Load => self.load(shape, &mut rows)?,
                    Group::Sharing => self.sharing(shape, &mut rows)?,
                    Group::Together => self.together(shape, &mut rows)?,
                    Group::Busy => self.busy(shape, &mut rows)?,
                    Group::Rank => self.rank(shape, &mut rows)?,
                }
            }
        }
        Ok(rows)
    }

    /// Makes a packed model of random weights, unless it is there.
    fn packed(&self, shape: &Shape, name: &str, kind: Synthetic<'_>) -> Result<PathBuf> {
        let path = self.models.join(format!("{}-{name}.sharp", shape.preset));
        if !path.is_file() {
            run_sharp(self.sharp, &sharp::synth(shape.preset, kind, &path))?;
        }
        Ok(path)
    }

    /// Makes the same weights for both engines.
    fn both(&self, shape: &Shape, format: Format) -> Result<(PathBuf, PathBuf)> {
        let ours = self.packed(shape, format.name(), Synthetic::Packed { recipe: format.name() })?;
        let theirs = self.models.join(format!("{}-{}.gguf", shape.preset, format.name()));
        if !theirs.is_file() {
            let plain = self.models.join(format!("{}-f32", shape.preset));
            run_sharp(self.sharp, &sharp::synth(shape.preset, Synthetic::Checkpoint, &plain))?;
            run_sharp(self.sharp, &sharp::export_gguf(&plain, format.gguf_dtype(), &theirs))?;
            fs::remove_dir_all(&plain).with_context(|| format!("removing {}", plain.display()))?;
        }
        Ok((ours, theirs))
    }

    /// Measures ours once: a prompt and then decoding, of these many tokens.
    fn ours(
        &self,
        model: &Path,
        threads: usize,
        (prompt, decode): (usize, usize),
    ) -> Result<(benchmark::Measurement, f64)> {
        ours_once(self.sharp, measurement(model, threads, (prompt, decode)))
    }

    fn theirs(
        &self,
        model: &Path,
        threads: usize,
        size: (usize, usize),
        more: &[&str],
    ) -> Result<(PeerTest, f64)> {
        peer_once(self.peer, model, threads, size, more)
    }

    fn decode(&self, shape: &Shape, rows: &mut Vec<Row>) -> Result<()> {
        for (format, goal) in [Format::Q4, Format::Q8].into_iter().zip(shape.decode) {
            let (packed, gguf) = self.both(shape, format)?;
            for &threads in self.threads {
                let mut all = Samples::default();
                for _ in 0..self.repeats {
                    let (ours, _) = self.ours(&packed, threads, (1, shape.tokens))?;
                    all.add("ours", ours.decode_tokens_per_second);
                    let (theirs, _) = self.theirs(&gguf, threads, (0, shape.tokens), &[])?;
                    all.add("theirs", theirs.avg_ts);
                }
                let what = format!("{} decode {}", shape.preset, format.name());
                rows.push(Row::times(what, threads, all.median("ours"), all.median("theirs"), goal));
            }
        }
        Ok(())
    }

    fn prefill(&self, shape: &Shape, rows: &mut Vec<Row>) -> Result<()> {
        for format in [Format::Q4, Format::Q8] {
            let (packed, gguf) = self.both(shape, format)?;
            let bytes = fs::metadata(&packed).with_context(|| format!("reading {}", packed.display()))?.len();
            for &threads in self.threads {
                let mut all = Samples::default();
                for _ in 0..self.repeats {
                    let (ours, _) = self.ours(&packed, threads, (512, 1))?;
                    all.add("ours", ours.prefill_tokens_per_second);
                    all.add("peak", ours.peak_memory_bytes as f64);
                    all.add("kv", ours.kv_cache_bytes as f64);
                    let (theirs, _) = self.theirs(&gguf, threads, (512, 0), &[])?;
                    all.add("theirs", theirs.avg_ts);
                }
                let what = |what| format!("{} {what} {}", shape.preset, format.name());
                rows.push(Row::times(
                    what("prefill"),
                    threads,
                    all.median("ours"),
                    all.median("theirs"),
                    2.0,
                ));
                let least = (bytes as f64 + all.median("kv")) / 1e6;
                let peak = all.median("peak") / 1e6;
                rows.push(Row::new(what("peak memory"), threads, (peak, least), peak / least, (1.1, true)));
            }
        }
        Ok(())
    }

    fn load(&self, shape: &Shape, rows: &mut Vec<Row>) -> Result<()> {
        let threads = self.threads.iter().copied().max().unwrap_or(1);
        for format in [Format::Q4, Format::Q8] {
            let (packed, gguf) = self.both(shape, format)?;
            for (state, cold) in [("warm", false), ("cold", true)] {
                let mut all = Samples::default();
                for _ in 0..self.repeats {
                    for (load, how) in [("map", Load::Map), ("read", Load::Read)] {
                        if cold {
                            forget(&packed)?;
                        }
                        let (own, _) = ours_once(
                            self.sharp,
                            Measurement { load: how, ..measurement(&packed, threads, (1, 1)) },
                        )?;
                        all.add(load, own.first_token_seconds);
                    }
                    if cold {
                        forget(&gguf)?;
                    }
                    let (_, wall) = self.theirs(&gguf, threads, (0, 1), &["--no-warmup"])?;
                    all.add("theirs", wall);
                }
                for (load, how) in [("map", "mapped"), ("read", "onto large pages")] {
                    let what = format!("{} first token {} {state}, {how}", shape.preset, format.name());
                    let (ours, theirs) = (all.median(load), all.median("theirs"));
                    rows.push(Row::new(what, threads, (ours, theirs), theirs / ours, (2.0, false)));
                }
            }
        }
        Ok(())
    }

    fn sharing(&self, shape: &Shape, rows: &mut Vec<Row>) -> Result<()> {
        let dense = self.packed(shape, "q4", Synthetic::Packed { recipe: "q4" })?;
        let pairs = self.packed(shape, "s2", Synthetic::Shared { group: 2, rank: None })?;
        let fours = self.packed(shape, "s4", Synthetic::Shared { group: 4, rank: None })?;
        for &threads in self.threads {
            let mut all = Samples::default();
            for _ in 0..self.repeats {
                for (name, model) in [("dense", &dense), ("pairs", &pairs), ("fours", &fours)] {
                    let (ours, _) = self.ours(model, threads, (1, shape.tokens))?;
                    let decode = ours.decode_tokens_per_second;
                    all.add(name, decode);
                    let bare = ours.bare_loop_tokens_per_second;
                    all.add(&format!("bare {name}"), bare);
                    all.add(&format!("fraction {name}"), decode / bare);
                }
            }
            let base = all.median("dense");
            for (name, goal) in ["pairs", "fours"].into_iter().zip(shape.sharing) {
                let what = format!("{} decode, {name} sharing", shape.preset);
                rows.push(Row::times(what, threads, all.median(name), base, goal));
            }
            for name in ["dense", "pairs", "fours"] {
                let what = format!("{} of the bare loop, {name}", shape.preset);
                let values = (all.median(name), all.median(&format!("bare {name}")));
                let fraction = all.median(&format!("fraction {name}"));
                rows.push(Row::new(what, threads, values, fraction, (0.85, false)));
            }
        }
        Ok(())
    }

    fn together(&self, shape: &Shape, rows: &mut Vec<Row>) -> Result<()> {
        let model = self.packed(shape, "q4", Synthetic::Packed { recipe: "q4" })?;
        for &threads in self.threads {
            let mut all = Samples::default();
            for _ in 0..self.repeats {
                let (ours, _) = ours_once(
                    self.sharp,
                    Measurement { together: Some(8), ..measurement(&model, threads, (1, shape.tokens)) },
                )?;
                all.add("one", ours.decode_tokens_per_second);
                all.add("eight", ours.together_tokens_per_second);
            }
            let what = format!("{} eight sequences", shape.preset);
            rows.push(Row::times(what, threads, all.median("eight"), all.median("one"), 4.0));
        }
        Ok(())
    }

    fn busy(&self, shape: &Shape, rows: &mut Vec<Row>) -> Result<()> {
        let (packed, gguf) = self.both(shape, Format::Q4)?;
        let threads = self.threads.iter().copied().max().unwrap_or(1);
        let mut all = Samples::default();
        for _ in 0..self.repeats {
            for busy in [false, true] {
                let others = if busy { Others::start(threads)? } else { Others(Vec::new()) };
                let (ours, _) = self.ours(&packed, threads, (1, shape.tokens))?;
                let (theirs, _) = self.theirs(&gguf, threads, (0, shape.tokens), &[])?;
                drop(others);
                let state = if busy { "busy" } else { "quiet" };
                all.add(&format!("ours {state}"), ours.decode_tokens_per_second);
                all.add(&format!("theirs {state}"), theirs.avg_ts);
            }
        }
        for (who, goal) in [("ours", 0.4), ("theirs", 0.0)] {
            let what = format!("{} busy cores, {who}", shape.preset);
            let (busy, quiet) = (all.median(&format!("{who} busy")), all.median(&format!("{who} quiet")));
            rows.push(Row::times(what, threads, busy, quiet, goal));
        }
        Ok(())
    }

    fn rank(&self, shape: &Shape, rows: &mut Vec<Row>) -> Result<()> {
        const RANKS: [usize; 4] = [0, 8, 32, 128];
        let model = |rank| {
            let kind = Synthetic::Shared { group: 2, rank: Some(rank) };
            self.packed(shape, &format!("rank{rank}"), kind)
        };
        let models = RANKS.map(model).into_iter().collect::<Result<Vec<_>>>()?;
        for &threads in self.threads {
            let mut all = Samples::default();
            for _ in 0..self.repeats {
                for (rank, model) in RANKS.iter().zip(&models) {
                    let (ours, _) = self.ours(model, threads, (1, shape.tokens))?;
                    all.add(&rank.to_string(), 1e3 / ours.decode_tokens_per_second);
                    all.add(&format!("bytes {rank}"), ours.bytes_used_per_token as f64);
                }
            }
            let base = all.median("0");
            for rank in RANKS.into_iter().skip(1) {
                let bytes = all.median(&format!("bytes {rank}")) / all.median("bytes 0") - 1.0;
                let what =
                    format!("{} cost of rank {rank} beyond {:.1} % of bytes", shape.preset, 100.0 * bytes);
                let time = all.median(&rank.to_string());
                rows.push(Row::new(what, threads, (time, base), time / base - 1.0 - bytes, (0.03, true)));
            }
        }
        Ok(())
    }
}

/// Asks for a measurement of `prompt` tokens and then `decode` more.
fn measurement(model: &Path, threads: usize, (prompt, decode): (usize, usize)) -> Measurement<'_> {
    let (prompt_tokens, decode_tokens) = (prompt, decode);
    Measurement { model, threads, prompt_tokens, decode_tokens, load: Load::Default, together: None }
}

impl Row {
    fn new(
        what: String,
        threads: usize,
        (ours, other): (f64, f64),
        figure: f64,
        (goal, at_most): (f64, bool),
    ) -> Self {
        let met = if at_most { figure <= goal } else { figure >= goal };
        Self { what, threads, ours, other, figure, goal, at_most, met }
    }

    /// Makes a row of how many times as much ours is; the goal is at least `goal`.
    fn times(what: String, threads: usize, ours: f64, other: f64, goal: f64) -> Self {
        Self::new(what, threads, (ours, other), ours / other, (goal, false))
    }

    /// As a line of the table.
    pub(super) fn line(&self) -> String {
        let sign = if self.at_most { '<' } else { '>' };
        let met = if self.met { "met" } else { "missed" };
        format!(
            "{:<56} {:>2} {:>10.4} {:>10.4} {:>7.3}  {sign} {:<5} {met}",
            self.what, self.threads, self.ours, self.other, self.figure, self.goal
        )
    }
}

/// Has the system drop what it holds of a file, by coreutils' `dd`, which tells it that the file is not
/// needed again.
fn forget(path: &Path) -> Result<()> {
    finish(Command::new("sync").arg(path))?;
    let mut input = std::ffi::OsString::from("if=");
    input.push(path);
    finish(Command::new("dd").arg(input).args(["iflag=nocache", "count=0", "status=none"])).map(drop)
}

/// Processes that compute without end, until dropped.
struct Others(Vec<Child>);

impl Others {
    fn start(count: usize) -> Result<Self> {
        let mut all = Self(Vec::new());
        for _ in 0..count {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
            all.0.push(command.spawn().context("starting a busy process")?);
        }
        Ok(all)
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended by itself cannot be killed, and need not be.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stands in for sharp and llama-bench; `synth` makes the file that it is asked for.
    const PROGRAM: &str = r#"#!/bin/sh
case "$1" in
    synth) for last; do :; done; echo model > "$last" ;;
    benchmark) echo '{"load_seconds": 0.1, "first_token_seconds": 0.5, "prefill_tokens_per_second": 30.0,
        "decode_tokens_per_second": 40.0, "bare_loop_tokens_per_second": 50.0, "together_tokens_per_second": 120.0,
        "peak_memory_bytes": 60, "kv_cache_bytes": 44, "bytes_per_token": 10, "bytes_used_per_token": 10}' ;;
    *) echo '[{"avg_ts": 20.0}]' ;;
esac
"#;

    #[test]
    #[cfg(unix)]
    fn figures_are_held_to_their_goals() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        crate::commands::stand_in::write(&program, PROGRAM);
        for format in ["q4", "q8"] {
            fs::write(folder.path().join(format!("llama-110m-{format}.gguf")), "").unwrap();
        }
        let shapes = ["llama-110m".to_owned()];
        let goals = Goals {
            sharp: &program,
            peer: &program,
            models: folder.path(),
            threads: &[2],
            repeats: 1,
            shapes: &shapes,
        };
        use Group::{Busy, Decode, Load, Prefill, Rank, Sharing, Together};
        let rows = goals.run(&[Decode, Prefill, Sharing, Together, Busy, Rank]).unwrap();
        let row = |what: &str| rows.iter().find(|row| row.what == format!("llama-110m {what}")).unwrap();
        assert_eq!((row("decode q4").figure, row("decode q4").met), (2.0, true));
        assert_eq!((row("prefill q8").figure, row("prefill q8").met), (1.5, false));
        // 6 bytes of file and 44 of keys and values.
        assert_eq!((row("peak memory q4").figure, row("peak memory q4").met), (1.2, false));
        assert_eq!((row("decode, fours sharing").figure, row("decode, fours sharing").met), (1.0, true));
        assert_eq!(row("of the bare loop, pairs").figure, 0.8);
        assert_eq!(row("eight sequences").figure, 3.0);
        assert_eq!(row("busy cores, ours").figure, 1.0);
        assert!(row("cost of rank 128 beyond 0.0 % of bytes").met);
        assert!(row("decode q8").line().ends_with("met"));
        assert_eq!(goals.run(&[Load]).unwrap().len(), 8);
        let wrong = Goals { shapes: &["x".to_owned()], ..goals };
        assert!(wrong.run(&[Load]).unwrap_err().to_string().contains("tinyllama-1.1b"));
    }
}
