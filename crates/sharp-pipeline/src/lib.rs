#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod atomic;
pub mod config;
mod error;
mod event;
mod executor;
mod lock;
mod manifest;
mod process;
mod programs;
pub mod provision;
mod run_folder;
pub mod sharp;
pub mod stages;
pub mod study;
mod workspace;

pub use atomic::write_atomic;
pub use config::Config;
pub use error::{Error, Result, chain};
pub use event::{Event, Observer};
pub use executor::{Outcome, Span, StepStatus, dry_run, execute};
pub use lock::{Lock, lock};
pub use manifest::{Look, this_machine};
pub use process::{request_stop, stop_requested};
pub use programs::{InFolder, Program, ProgramPaths, Programs};
pub use run_folder::Run;
pub use stages::{CommandLine, Stage, Step, for_shell};
pub use study::Study;
pub use workspace::{Workspace, cache};
