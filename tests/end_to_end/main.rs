//! The real programs on the tiny model: the whole way, stopped anywhere, with damaged and misspelt input.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, reason = "a test says what it leaves out")]

mod architecture;
mod damage;
mod fixture;
mod inputs;
mod pipeline;
mod stopped;
