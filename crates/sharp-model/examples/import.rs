//! Turns a GGUF file or a Hugging Face folder into the form every later stage reads.
//!
//! `cargo run --release -p sharp-model --example import -- model.gguf out-folder`

use std::process::ExitCode;

use sharp_model::DType;
use sharp_model::import;
use sharp_progress::Terminal;

#[allow(clippy::print_stderr)]
fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(source), Some(out), None) = (args.next(), args.next(), args.next()) else {
        eprintln!("usage: import SOURCE OUT");
        return ExitCode::from(2);
    };
    match import(source, out, DType::F32, &Terminal::stderr()) {
        Ok(written) => {
            eprintln!(
                "{} tensors, {} parameters, {} bytes",
                written.tensors, written.parameters, written.bytes
            );
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
