//! What the repository promises about itself as a whole, and the real programs driven from outside.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, reason = "a test says what it leaves out")]

mod architecture;
mod circles;
mod damage;
mod documents;
mod fixture;
mod inputs;
mod pipeline;
mod stopped;
mod study;
mod torture;
