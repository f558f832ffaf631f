//! Speed and loss of a model on a text: `cargo run --release -p sharp-infer --example speed -- MODEL TEXT
//! [THREADS]`.
//!
//! MODEL is a checkpoint folder or a `model.sharp`, TEXT a file. Prints the mean loss over up to 2,048 tokens
//! in windows of 512, prefill and decode speed, and the bytes of weights read a second.

use std::error::Error;
use std::io::Write;
use std::time::Instant;

use sharp_infer::{Model, Options, Session};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, path, text, rest @ ..] = args.as_slice() else {
        return Err("usage: speed MODEL TEXT [THREADS]".into());
    };
    let threads = rest.first().map_or(Ok(0), |t| t.parse())?;
    let begun = Instant::now();
    let model = Model::open(path, &Options { threads, ..Options::default() })?;
    let load = begun.elapsed();
    let text = std::fs::read_to_string(text)?;
    // About four bytes a token; cut at a character.
    let end = text.char_indices().map(|(i, _)| i).take_while(|&i| i < 12_000).last().unwrap_or(0);
    let tokens = Model::open_tokenizer(path)?.encode(&text[..end], false)?;
    let mut losses = Vec::new();
    for window in tokens[..tokens.len().min(2048)].chunks(512) {
        losses.extend(model.losses(window)?);
    }
    let mean = losses.iter().sum::<f64>() / losses.len().max(1) as f64;

    let prompt: Vec<u32> = tokens.iter().copied().cycle().take(512).collect();
    let mut session = Session::new(&model, 1024)?;
    let best = |f: &mut dyn FnMut() -> sharp_infer::Result<()>| -> sharp_infer::Result<f64> {
        let mut best = f64::MAX;
        for _ in 0..4 {
            let begun = Instant::now();
            f()?;
            best = best.min(begun.elapsed().as_secs_f64());
        }
        Ok(best)
    };
    let prefill = best(&mut || {
        session.truncate(0);
        session.prefill(&prompt).map(drop)
    })?;
    let decode = best(&mut || {
        session.truncate(16);
        prompt[..32].iter().try_for_each(|&t| session.decode(t).map(drop))
    })? / 32.0;
    let bytes = model.weight_bytes();
    let mut out = std::io::stdout();
    writeln!(out, "{:?}, loaded in {:.1} ms", model.team(), load.as_secs_f64() * 1e3)?;
    writeln!(out, "loss {mean:.4} nats (perplexity {:.2}) over {} tokens", mean.exp(), losses.len())?;
    writeln!(out, "prefill {:.0} tokens/s", 512.0 / prefill)?;
    writeln!(
        out,
        "decode {:.0} tokens/s, {:.1} GB/s of {:.1} MB a token",
        1.0 / decode,
        bytes.per_token as f64 / decode / 1e9,
        bytes.per_token as f64 / 1e6
    )?;
    Ok(())
}
