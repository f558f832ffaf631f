//! Compresses a model without any data: `cargo run --release -p sharp-infer --example compress -- MODEL
//! OUT.sharp`. MODEL is a checkpoint folder or a GGUF file.
//!
//! Every layer keeps the larger of its MLP's neurons, so that a fifth of the MLP parameters falls away, and
//! all matrices are rounded to 4 bits. With text to calibrate and train on much more of the quality stays
//! (`cargo xtask pipeline`).

use std::io::Write;
use std::path::Path;

use sharp_infer::{Recipe, Team, quantize};
use sharp_model::ModelSource;
use sharp_progress::Terminal;
use sharp_strategy::{Budget, Even, Form, LayerCosts, Options, make_plan};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(out)) = (args.next(), args.next()) else {
        return Err("usage: compress MODEL OUT".into());
    };
    let original = ModelSource::open(Path::new(&path))?;
    let config = original.config();

    let costs = LayerCosts::unmeasured(config.num_hidden_layers);
    let options = Options { form: Form::Pruned, ..Options::default() };
    let plan = make_plan(config, &Even, &costs, Budget::MlpFractionRemoved(0.2), &options)?;
    let smaller = ModelSource::overlay(&original, plan, None)?;

    let report = quantize(&smaller, &Recipe::q4(), Path::new(&out), &Team::new(0)?, &Terminal::stderr())?;
    Ok(writeln!(std::io::stdout(), "{out}: {} bytes", report.file_bytes)?)
}
