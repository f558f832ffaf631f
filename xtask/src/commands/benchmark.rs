//! `cargo xtask benchmark`: the stage of that name, and with `--peer` our engine beside llama.cpp on the same
//! weights.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;
use sharp_pipeline::sharp::{self, Load, Measurement};
use sharp_pipeline::{Program, Stage};
use sharp_schema::run::IMPORT;

use super::goals::{Goals, Group};
use super::measure::{Format, median, ours_once, peer_once, run_sharp};
use super::run::{StageArgs, stage};
use crate::build;
use crate::paths;

/// Options of `benchmark`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    stage: StageArgs,
    /// llama.cpp's llama-bench: both engines then run the same checkpoint in turn, and no stage is run
    #[arg(long, value_name = "PROGRAM")]
    peer: Option<PathBuf>,
    /// The checkpoint they run: a Hugging Face directory; the original of the run by default
    #[arg(long, value_name = "DIR", requires = "peer")]
    model: Option<PathBuf>,
    /// Measure every goal of the engine instead, on random weights of three shapes
    #[arg(long, requires = "peer", conflicts_with = "model")]
    goals: bool,
    /// Only these of them
    #[arg(long, value_name = "GROUP", value_delimiter = ',', requires = "goals")]
    only: Vec<Group>,
    /// Only these shapes, by the names that `sharp synth --preset` has
    #[arg(long, value_name = "SHAPE", value_delimiter = ',', requires = "goals")]
    shapes: Vec<String>,
    /// Where the models for the goals are made (5 GB, and 4 more on the way) and found again
    #[arg(long, value_name = "DIR", default_value = "runs/goals", requires = "goals")]
    models: PathBuf,
    /// Numbers of threads
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2", requires = "peer")]
    threads: Vec<usize>,
    /// Formats: q4 (Q4_0, embedding Q8_0), q8 (Q8_0)
    #[arg(long, value_name = "FORMAT", value_delimiter = ',', default_value = "q4,q8", requires = "peer")]
    formats: Vec<Format>,
    /// How often each is measured; medians count
    #[arg(long, value_name = "N", default_value_t = 5, requires = "peer")]
    repeats: usize,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512, requires = "peer")]
    prompt_tokens: usize,
    /// Tokens decoded after an empty context
    #[arg(long, value_name = "N", default_value_t = 128, requires = "peer")]
    decode_tokens: usize,
}

/// What `--json` prints. Every ratio says how many times ours is as good.
#[derive(Debug, Serialize)]
struct Comparison {
    ratios: BTreeMap<String, f64>,
    /// Medians: tokens a second, and for `load` the seconds of a process that opens the model and makes one
    /// token.
    ours: BTreeMap<String, f64>,
    peer: BTreeMap<String, f64>,
    peer_build: String,
    model: String,
    repeats: usize,
}

/// Runs the stage, or the comparison.
pub(crate) fn run(args: &Args) -> Result<()> {
    let Some(peer) = &args.peer else { return stage(Stage::Benchmark, &args.stage) };
    if args.repeats == 0 || args.prompt_tokens == 0 || args.decode_tokens == 0 || args.threads.contains(&0) {
        bail!("--repeats, --prompt-tokens, --decode-tokens and --threads are at least 1");
    }
    if args.goals {
        return goals(args, peer);
    }
    let model = match &args.model {
        Some(model) => model.clone(),
        None => args.stage.run.resolve()?.path(IMPORT),
    };
    if !model.join("config.json").is_file() {
        bail!("{} is no checkpoint: give one with --model", paths::shown(&model));
    }
    let programs = build::provide(&[Program::Sharp])?;
    let sharp = programs.path(Program::Sharp)?;
    let folder = std::env::temp_dir().join(format!("sharp-peer-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let compared = compare(args, sharp, peer, &model, &folder);
    fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    let compared = compared?;
    if args.stage.json {
        println!("{}", serde_json::to_string_pretty(&compared).context("the comparison as JSON")?);
        return Ok(());
    }
    println!("{:<20} {:>10} {:>10} {:>7}", "", "sharp", "llama.cpp", "ratio");
    for (what, ratio) in &compared.ratios {
        let of = |values: &BTreeMap<String, f64>| values.get(what).copied().unwrap_or(f64::NAN);
        let unit = if what.starts_with("load") { "s" } else { "tokens/s" };
        println!("{what:<20} {:>10.4} {:>10.4} {ratio:>7.2}  {unit}", of(&compared.ours), of(&compared.peer));
    }
    println!("{}, medians of {}; llama.cpp {}", compared.model, compared.repeats, compared.peer_build);
    Ok(())
}

fn goals(args: &Args, peer: &Path) -> Result<()> {
    fs::create_dir_all(&args.models).with_context(|| format!("making {}", args.models.display()))?;
    let programs = build::provide(&[Program::Sharp])?;
    let goals = Goals {
        sharp: programs.path(Program::Sharp)?,
        peer,
        models: &args.models,
        threads: &args.threads,
        repeats: args.repeats,
        shapes: &args.shapes,
    };
    let groups = if args.only.is_empty() { Group::value_variants() } else { &args.only };
    let rows = goals.run(groups)?;
    if args.stage.json {
        println!("{}", serde_json::to_string_pretty(&rows).context("the goals as JSON")?);
        return Ok(());
    }
    println!("{:<56} {:>2} {:>10} {:>10} {:>7}", "", "t", "sharp", "other", "figure");
    for row in &rows {
        println!("{}", row.line());
    }
    Ok(())
}

/// Figures by name, to be reduced to medians.
type Samples = BTreeMap<String, Vec<f64>>;

fn compare(args: &Args, sharp: &Path, peer: &Path, model: &Path, folder: &Path) -> Result<Comparison> {
    let (mut ours, mut theirs) = (Samples::new(), Samples::new());
    let mut peer_build = String::new();
    for &format in &args.formats {
        let packed = folder.join(format!("{}.sharp", format.name()));
        let gguf = folder.join(format!("{}.gguf", format.name()));
        run_sharp(sharp, &sharp::quantize(model, format.name(), &packed))?;
        run_sharp(sharp, &sharp::export_gguf(model, format.gguf_dtype(), &gguf))?;
        for round in 0..args.repeats {
            for &threads in &args.threads {
                eprintln!("{}, {threads} threads, round {} of {}", format.name(), round + 1, args.repeats);
                let key = |what: &str| format!("{what}_{}_t{threads}", format.name());
                for (what, value) in our_figures(args, sharp, &packed, threads)? {
                    ours.entry(key(what)).or_default().push(value);
                }
                let (figures, build) = peer_figures(args, peer, &gguf, threads)?;
                for (what, value) in figures {
                    theirs.entry(key(what)).or_default().push(value);
                }
                peer_build = build;
            }
        }
    }
    let medians = |all: Samples| -> BTreeMap<String, f64> {
        all.into_iter().map(|(what, values)| (what, median(values))).collect()
    };
    let (ours, peer) = (medians(ours), medians(theirs));
    // Of seconds fewer are better, of tokens more.
    let ratio =
        |what: &str, ours: f64, peer: f64| if what.starts_with("load") { peer / ours } else { ours / peer };
    let both = ours.iter().filter_map(|(what, &ours)| Some((what, ours, *peer.get(what)?)));
    let ratios = both.map(|(what, ours, peer)| (what.clone(), ratio(what, ours, peer))).collect();
    Ok(Comparison { ratios, ours, peer, peer_build, model: paths::shown(model), repeats: args.repeats })
}

/// Measures ours once: tokens a second, and the seconds of a process that opens the model and makes one
/// token.
fn our_figures(args: &Args, sharp: &Path, model: &Path, threads: usize) -> Result<[(&'static str, f64); 3]> {
    let ask = |prompt_tokens, decode_tokens| {
        let load = Load::Default;
        ours_once(sharp, Measurement { model, threads, prompt_tokens, decode_tokens, load, together: None })
    };
    let (prefill, _) = ask(args.prompt_tokens, 1)?;
    let (decode, _) = ask(1, args.decode_tokens)?;
    let (_, load) = ask(1, 1)?;
    Ok([
        ("prefill", prefill.prefill_tokens_per_second),
        ("decode", decode.decode_tokens_per_second),
        ("load", load),
    ])
}

/// Measures llama.cpp once, and says which build it is.
fn peer_figures(
    args: &Args,
    peer: &Path,
    model: &Path,
    threads: usize,
) -> Result<([(&'static str, f64); 3], String)> {
    let (prefill, _) = peer_once(peer, model, threads, (args.prompt_tokens, 0), &[])?;
    let (decode, _) = peer_once(peer, model, threads, (0, args.decode_tokens), &[])?;
    let (_, load) = peer_once(peer, model, threads, (0, 1), &["--no-warmup"])?;
    let build = prefill.build_number.map_or_else(|| "unknown".into(), |number| number.to_string());
    let figures = [("prefill", prefill.avg_ts), ("decode", decode.avg_ts), ("load", load)];
    Ok((figures, format!("build {build}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stands in for llama-bench and for sharp: prints what both of them would for the asked test.
    const PROGRAM: &str = r#"#!/bin/sh
case "$1" in
    quantize | export) exit 0 ;;
    benchmark) echo '{"load_seconds": 0.1, "first_token_seconds": 0.2, "prefill_tokens_per_second": 300.0,
        "decode_tokens_per_second": 40.0, "bare_loop_tokens_per_second": 50.0, "together_tokens_per_second": 0.0,
        "peak_memory_bytes": 4, "kv_cache_bytes": 3, "bytes_per_token": 2, "bytes_used_per_token": 2}' ;;
    *) echo '[{"build_number": 7, "avg_ts": 20.0}]' ;;
esac
"#;

    #[test]
    #[cfg(unix)]
    fn ratios_are_ours_over_theirs() {
        use clap::Parser;
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        crate::commands::stand_in::write(&program, PROGRAM);
        let args = Line::parse_from(["benchmark", "--peer", "x", "--threads", "2", "--repeats", "2"]).args;
        let found = compare(&args, &program, &program, folder.path(), folder.path()).unwrap();
        assert_eq!(found.ratios["prefill_q4_t2"], 15.0);
        assert_eq!(found.ratios["decode_q8_t2"], 2.0);
        assert!(found.ratios["load_q4_t2"] > 0.0);
        assert_eq!((found.ratios.len(), found.peer_build.as_str()), (6, "build 7"));
    }
}
