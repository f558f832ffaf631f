//! What the driver hears from the pipeline, and what it does about Ctrl-C.

use anyhow::{Context, Result};
use sharp_pipeline::Event;

/// Prints what happens to standard error.
pub(crate) fn stderr(event: &Event<'_>) {
    eprintln!("{event}");
}

/// Makes Ctrl-C and SIGTERM stop between steps instead of killing this process under its child.
pub(crate) fn catch_signals() -> Result<()> {
    ctrlc::set_handler(sharp_pipeline::request_stop).context("installing the Ctrl-C handler")
}
