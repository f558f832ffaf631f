//! Runs a model: `cargo run --release -p sharp-infer --example run -- MODEL "Once upon a time"`. MODEL is a
//! checkpoint folder, a GGUF file or a `model.sharp`.

use std::io::Write;

use sharp_infer::{GenerateOptions, Model, Options, Session, generate};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(prompt)) = (args.next(), args.next()) else {
        return Err("usage: run MODEL PROMPT".into());
    };
    let model = Model::open(&path, &Options::default())?;
    let tokenizer = Model::open_tokenizer(&path)?;
    let prompt = tokenizer.encode(&prompt, true)?;
    let options = GenerateOptions { max_tokens: 64, ..GenerateOptions::default() };
    let mut session = Session::new(&model, prompt.len() + options.max_tokens)?;
    let mut out = std::io::stdout();
    let mut show = |piece: &str| write!(out, "{piece}").and_then(|()| out.flush()).is_ok();
    generate(&mut session, &tokenizer, &prompt, &options, &mut show)?;
    Ok(writeln!(std::io::stdout())?)
}
