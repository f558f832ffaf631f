//! What the repository promises about itself as a whole. The tests of the pipeline beside this file join when training and
//! evaluation have their commands.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, reason = "a test says what it leaves out")]
#![allow(dead_code, reason = "the fixture also serves the tests of the pipeline")]

mod architecture;
mod fixture;
