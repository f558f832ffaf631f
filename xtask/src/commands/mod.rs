//! One file for each command.

pub(crate) mod benchmark;
pub(crate) mod cross;
pub(crate) mod doctor;
pub(crate) mod fuzz;
pub(crate) mod generate;
mod goals;
pub(crate) mod interop;
mod measure;
pub(crate) mod run;
pub(crate) mod setup;
#[cfg(test)]
mod stand_in;
pub(crate) mod study;
pub(crate) mod test;
pub(crate) mod torture;
