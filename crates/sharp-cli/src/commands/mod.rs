//! One file a command.

pub(crate) mod analyze;
pub(crate) mod benchmark;
pub(crate) mod chat;
pub(crate) mod doctor;
pub(crate) mod evaluate;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod plan;
pub(crate) mod quantize;
pub(crate) mod report;
pub(crate) mod serve;
pub(crate) mod shell;
pub(crate) mod synth;
