//! Times an analysis of a model folder on text drawn from its own vocabulary order:
//! `cargo run --release -p sharp-similarity --example time_analysis -- MODEL TEXT [TOKENS] [WINDOW]
//! [DELTA_TOKENS]`

use std::error::Error;
use std::time::Instant;

use sharp_infer::Model;
use sharp_progress::Terminal;
use sharp_similarity::{Options, analyze};

#[expect(clippy::print_stdout, reason = "an example program")]
fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(folder), Some(text)) = (args.first(), args.get(1)) else {
        return Err("MODEL and TEXT are needed".into());
    };
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |a| a.parse());
    let (tokens, window, delta) = (number(2, 16_384)?, number(3, 2)?, number(4, 0)?);
    let model = Model::open(folder, &sharp_infer::Options::default())?;
    let ids = Model::open_tokenizer(folder)?.encode(&std::fs::read_to_string(text)?, false)?;
    let sequences: Vec<Vec<u32>> = ids.chunks(512).take(tokens.div_ceil(512)).map(<[u32]>::to_vec).collect();
    let start = Instant::now();
    let options = Options { window, delta_nll_tokens: delta, ..Options::default() };
    let report = analyze(&model, &sequences, &options, &Terminal::stderr())?;
    println!("{} tokens, window {window}: {:.1} s", report.tokens, start.elapsed().as_secs_f64());
    std::fs::write("similarity.json", report.to_json()?)?;
    std::fs::write("similarity.html", sharp_similarity::html_page(&report))?;
    Ok(())
}
