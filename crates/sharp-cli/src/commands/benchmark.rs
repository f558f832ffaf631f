//! `sharp benchmark`: load, prefill, decode and memory of models, beside what the machine's memory allows.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sharp_infer::{Batch, Isa, Load, Model, Options, Session};
use sharp_model::{ModelSource, Stored, write_atomic};
use sharp_progress::{Progress, Terminal};
use sharp_schema::benchmark::{Bench, Measurement, ModelSpeed};

use crate::Global;
use crate::machine;
use crate::output::{self, Output};

/// Measure load, prefill and decode speed, memory, and the fraction of the machine's limit.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sharp benchmark --model original-q4.sharp --model model.sharp --threads 2"
)]
pub(crate) struct Args {
    /// Models to measure, in turn: model.sharp files, Hugging Face directories or GGUF files.
    #[arg(long, value_name = "PATH", required = true)]
    pub(crate) model: Vec<PathBuf>,
    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value_t = 512)]
    prompt_tokens: usize,
    /// Tokens to decode after it.
    #[arg(long, value_name = "N", default_value_t = 128)]
    decode_tokens: usize,
    /// Also decode so many sequences together, each token of which reads every weight once for all of them;
    /// 0: do not.
    #[arg(long, value_name = "N", default_value_t = 0)]
    together: usize,
    /// How often each model is measured; the models take turns, and the median counts.
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeats: usize,
    /// Where the result is written.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// How packed models come into memory: mapped, or read onto large pages; by default read where that
    /// fits.
    #[arg(long, value_enum, default_value = "auto")]
    load: LoadArg,
    /// Measure the one model in this process and print the measurement: what each repeat runs, so that every
    /// one loads afresh and has a peak of memory of its own.
    #[arg(long, hide = true)]
    single: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LoadArg {
    Auto,
    Map,
    Read,
}

impl LoadArg {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Map => "map",
            Self::Read => "read",
        }
    }
}

impl From<LoadArg> for Load {
    fn from(load: LoadArg) -> Self {
        match load {
            LoadArg::Auto => Load::Auto,
            LoadArg::Map => Load::Map,
            LoadArg::Read => Load::Read,
        }
    }
}

pub(crate) fn run(args: Args, global: &Global, output: &Output) -> Result<()> {
    if args.prompt_tokens == 0 || args.decode_tokens == 0 || args.repeats == 0 {
        bail!("--prompt-tokens, --decode-tokens and --repeats are at least 1");
    }
    if args.single {
        let [path] = args.model.as_slice() else { bail!("--single measures exactly one --model") };
        let measured = measure(path, &args, global.threads())?;
        return output.result(&measured, || format!("{measured:?}"));
    }
    let bench = compare(&args, global)?;
    if let Some(path) = &args.out {
        let text = serde_json::to_string_pretty(&bench)?;
        write_atomic(path, |w| writeln!(w, "{text}"))?;
    }
    output.result(&bench, || describe(&bench))
}

fn compare(args: &Args, global: &Global) -> Result<Bench> {
    let threads = global.threads();
    let this = std::env::current_exe().context("finding this program")?;
    let progress = Terminal::stderr();
    let task = progress.task("benchmark", (args.repeats * args.model.len()) as u64, "runs");
    let mut runs: Vec<Vec<Measurement>> = vec![Vec::new(); args.model.len()];
    for _ in 0..args.repeats {
        for (path, runs) in args.model.iter().zip(&mut runs) {
            let child = Command::new(&this)
                .args(["benchmark", "--single", "--json", "--threads", &threads.to_string()])
                .args(["--prompt-tokens", &args.prompt_tokens.to_string()])
                .args(["--decode-tokens", &args.decode_tokens.to_string()])
                .args(["--load", args.load.name(), "--together", &args.together.to_string()])
                .arg("--model")
                .arg(path)
                .output()
                .context("starting a measurement")?;
            if !child.status.success() {
                bail!("measuring {}: {}", path.display(), String::from_utf8_lossy(&child.stderr).trim());
            }
            runs.push(serde_json::from_slice(&child.stdout).context("reading a measurement")?);
            task.advance(1);
        }
    }
    drop(task);
    let bandwidth = machine::memory_bandwidth(threads).context("measuring the memory")?;
    let mut models = Vec::new();
    for (path, runs) in args.model.iter().zip(runs) {
        let median = median(&runs);
        models.push(ModelSpeed {
            name: path.file_stem().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned()),
            path: path.clone(),
            file_bytes: file_bytes(path)?,
            roofline_fraction: median.bytes_per_token as f64 * median.decode_tokens_per_second / bandwidth,
            decode_bytes_per_second: median.bytes_per_token as f64 * median.decode_tokens_per_second,
            bare_loop_fraction: bare_loop_fraction(&runs),
            median,
            runs,
        });
    }
    Ok(Bench {
        kernels: Isa::from_env()?.name().to_owned(),
        threads,
        prompt_tokens: args.prompt_tokens,
        decode_tokens: args.decode_tokens,
        memory_bandwidth_bytes_per_second: bandwidth,
        models,
    })
}

/// Opens the model and runs it once: from nothing to the first token, a prompt, and tokens one by one.
fn measure(path: &Path, args: &Args, threads: usize) -> Result<Measurement> {
    let begun = Instant::now();
    let model = Model::open(path, &Options { threads, load: args.load.into(), ..Options::default() })?;
    let load_seconds = begun.elapsed().as_secs_f64();
    let vocabulary = u32::try_from(model.config().vocab_size).context("the vocabulary's size")?;
    // Which tokens they are does not matter to the time; a fixed sequence makes runs alike.
    let token = |i: usize| (i as u32).wrapping_mul(2_654_435_761) % vocabulary;
    let mut session = Session::new(&model, args.prompt_tokens + args.decode_tokens + 1)?;
    session.prefill(&[token(0)])?;
    let first_token_seconds = begun.elapsed().as_secs_f64();
    session.truncate(0);

    let prompt: Vec<u32> = (0..args.prompt_tokens).map(token).collect();
    let begun = Instant::now();
    session.prefill(&prompt)?;
    let prefill_seconds = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    for i in 0..args.decode_tokens {
        session.decode(token(args.prompt_tokens + i))?;
    }
    let decode_seconds = begun.elapsed().as_secs_f64();
    let peak_memory_bytes = sharp_host::peak_memory().unwrap_or(0);
    let bare = model.bare_loop(args.decode_tokens)?.map_or(0.0, |took| took.as_secs_f64());
    let together = together(&model, args.together, args.decode_tokens)?;
    let bytes = model.weight_bytes();
    let positions = args.prompt_tokens + args.decode_tokens + 1;
    Ok(Measurement {
        load_seconds,
        first_token_seconds,
        prefill_tokens_per_second: args.prompt_tokens as f64 / prefill_seconds.max(1e-9),
        decode_tokens_per_second: args.decode_tokens as f64 / decode_seconds.max(1e-9),
        bare_loop_tokens_per_second: if bare > 0.0 { args.decode_tokens as f64 / bare } else { 0.0 },
        together_tokens_per_second: together,
        peak_memory_bytes,
        kv_cache_bytes: (positions * session.bytes_per_token()) as u64,
        bytes_per_token: bytes.per_token,
        bytes_used_per_token: bytes.per_token_unshared,
    })
}

/// Tokens a second of `count` sequences decoded together from nothing.
fn together(model: &Model, count: usize, tokens: usize) -> Result<f64> {
    if count == 0 {
        return Ok(0.0);
    }
    let mut sessions = (0..count).map(|_| Session::new(model, tokens)).collect::<Result<Vec<_>, _>>()?;
    let mut batch = Batch::new(model, count)?;
    let mut all: Vec<&mut Session> = sessions.iter_mut().collect();
    let begun = Instant::now();
    for i in 0..tokens {
        let next: Vec<u32> =
            (0..count).map(|s| ((i * count + s) % model.config().vocab_size) as u32).collect();
        batch.decode(&mut all, &next)?;
    }
    Ok((count * tokens) as f64 / begun.elapsed().as_secs_f64().max(1e-9))
}

fn median(runs: &[Measurement]) -> Measurement {
    let of = |value: fn(&Measurement) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() % 2 {
            0 => (values[middle - 1] + values[middle]) / 2.0,
            _ => values[middle],
        }
    };
    Measurement {
        load_seconds: of(|run| run.load_seconds),
        first_token_seconds: of(|run| run.first_token_seconds),
        prefill_tokens_per_second: of(|run| run.prefill_tokens_per_second),
        decode_tokens_per_second: of(|run| run.decode_tokens_per_second),
        bare_loop_tokens_per_second: of(|run| run.bare_loop_tokens_per_second),
        together_tokens_per_second: of(|run| run.together_tokens_per_second),
        peak_memory_bytes: of(|run| run.peak_memory_bytes as f64) as u64,
        kv_cache_bytes: of(|run| run.kv_cache_bytes as f64) as u64,
        bytes_per_token: of(|run| run.bytes_per_token as f64) as u64,
        bytes_used_per_token: of(|run| run.bytes_used_per_token as f64) as u64,
    }
}

fn bare_loop_fraction(runs: &[Measurement]) -> Option<f64> {
    let fraction = |run: &Measurement| run.decode_tokens_per_second / run.bare_loop_tokens_per_second;
    let mut all: Vec<f64> = runs.iter().map(fraction).filter(|f| f.is_finite()).collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied()
}

/// Bytes of a file, or of the weights in a folder.
fn file_bytes(path: &Path) -> Result<u64> {
    match Stored::at(path)? {
        Stored::Folder(folder) => Ok(ModelSource::open(folder)?.stored_bytes()?),
        Stored::Gguf(file) | Stored::Packed(file) => {
            Ok(std::fs::metadata(&file).with_context(|| format!("reading {}", file.display()))?.len())
        }
    }
}

fn describe(bench: &Bench) -> String {
    let head = [
        "model",
        "file",
        "load s",
        "first token s",
        "prefill t/s",
        "decode t/s",
        "a token",
        "GB/s",
        "peak memory",
        "of bandwidth",
        "of bare loop",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for row in &bench.models {
        rows.push(vec![
            row.name.clone(),
            output::bytes(row.file_bytes),
            format!("{:.3}", row.median.load_seconds),
            format!("{:.3}", row.median.first_token_seconds),
            format!("{:.0}", row.median.prefill_tokens_per_second),
            format!("{:.1}", row.median.decode_tokens_per_second),
            output::bytes(row.median.bytes_per_token),
            format!("{:.1}", row.decode_bytes_per_second / 1e9),
            output::bytes(row.median.peak_memory_bytes),
            format!("{:.0} %", 100.0 * row.roofline_fraction),
            row.bare_loop_fraction.map_or_else(|| "-".into(), |f| format!("{:.0} %", 100.0 * f)),
        ]);
    }
    format!(
        "{}\n{} kernels, {} threads, {} prompt tokens, {} decoded; memory read at {:.1} GB/s\n",
        output::table(&rows),
        bench.kernels,
        bench.threads,
        bench.prompt_tokens,
        bench.decode_tokens,
        bench.memory_bandwidth_bytes_per_second / 1e9
    )
}

#[cfg(test)]
mod tests {
    use super::{Measurement, bare_loop_fraction, median};

    #[test]
    fn the_median_of_an_even_number_of_runs_lies_between_the_middle_two() {
        let run = |decode| Measurement {
            load_seconds: 1.0,
            first_token_seconds: 1.0,
            prefill_tokens_per_second: 1.0,
            decode_tokens_per_second: decode,
            bare_loop_tokens_per_second: 2.0 * decode,
            together_tokens_per_second: 0.0,
            peak_memory_bytes: 8,
            kv_cache_bytes: 2,
            bytes_per_token: 4,
            bytes_used_per_token: 4,
        };
        assert_eq!(median(&[run(1.0), run(9.0), run(2.0), run(4.0)]).decode_tokens_per_second, 3.0);
        assert_eq!(median(&[run(5.0)]).peak_memory_bytes, 8);
        assert_eq!(bare_loop_fraction(&[run(3.0), run(0.0), run(7.0)]), Some(0.5));
    }
}
