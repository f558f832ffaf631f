//! One file a command.

pub(crate) mod doctor;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod inspect;
