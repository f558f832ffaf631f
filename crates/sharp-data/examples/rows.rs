//! Prints the rows of tokens that `sharp-train --model MODEL --data DATA --seed SEED --held-out 0.05` trains
//! on, as a JSON list of lists, so that a program in another language can train on the very same.
//!
//! ```text
//! cargo run --release -p sharp-data --example rows -- MODEL DATA SEED TOKENS > rows.json
//! ```

use sharp_data::{DataSpec, PackOptions, pack, read, split};
use sharp_model::tokenizer::Tokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, data, seed, tokens] = &arguments[..] else {
        return Err("usage: rows MODEL DATA SEED TOKENS".into());
    };
    let (seed, tokens) = (seed.parse()?, tokens.parse()?);
    let tokenizer = Tokenizer::load(model)?;
    let documents = read(&data.parse::<DataSpec>()?, None)?;
    let sides = split(documents, 0.05, seed)?;
    let options = PackOptions::of(&tokenizer, 512)?.with_budget(Some(tokens)).shuffled(seed);
    let blocks = pack(&sides.train, &tokenizer, &options)?;
    let rows: Vec<&[u32]> = blocks.iter().map(|(row, _)| row).collect();
    serde_json::to_writer(std::io::stdout().lock(), &rows)?;
    Ok(())
}
