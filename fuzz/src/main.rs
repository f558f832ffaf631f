//! Fuzzes one target under libFuzzer: `cargo xtask fuzz` builds and starts it, and says what the variables
//! are.
#![no_main]
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::{env, fs};

use libfuzzer_sys::fuzz_target;
use sharp_fuzz::{TARGETS, Target, Workbench, seeds};

/// Names the target; without it, the targets' names are printed.
const TARGET: &str = "SHARP_FUZZ_TARGET";
/// Names the folder of the target's seeds, made here, and of the file that holds the last input.
const FOLDER: &str = "SHARP_FUZZ_FOLDER";

static FOLDER_OF_RUN: LazyLock<PathBuf> = LazyLock::new(|| {
    env::var_os(FOLDER).map_or_else(|| exit(&format!("{FOLDER} is not set")), PathBuf::from)
});

static BENCH: LazyLock<Workbench<'static>> = LazyLock::new(|| {
    static FILE: LazyLock<PathBuf> = LazyLock::new(|| FOLDER_OF_RUN.join("file"));
    Workbench::new(target(), &FILE)
});

/// Finds the target by the environment.
fn target() -> &'static Target {
    static ALL: [Target; TARGETS.len()] = TARGETS;
    let name = env::var(TARGET).unwrap_or_default();
    ALL.iter()
        .find(|target| target.name == name)
        .unwrap_or_else(|| exit(&format!("{TARGET}: no target {name:?}")))
}

/// Ends the program with a message.
fn exit(what: &str) -> ! {
    write(&mut std::io::stderr(), &format!("{what}\n"));
    std::process::exit(2)
}

/// Writes a text to a stream, as far as that can be done.
fn write(stream: &mut dyn std::io::Write, text: &str) {
    let _ = stream.write_all(text.as_bytes());
}

/// Runs before libFuzzer looks for its inputs: writes the seeds of the target.
fn prepare() {
    if env::var_os(TARGET).is_none() {
        for target in TARGETS {
            write(&mut std::io::stdout(), &format!("{} {}\n", target.name, target.longest));
        }
        std::process::exit(0);
    }
    let (target, folder) = (target(), FOLDER_OF_RUN.as_path());
    let save = |path: &Path, bytes: &[u8]| {
        fs::write(path, bytes).unwrap_or_else(|e| exit(&format!("{}: {e}", path.display())));
    };
    for (number, seed) in seeds(target).into_iter().enumerate() {
        save(&folder.join("seeds").join(format!("{number:03}")), &seed);
    }
    LazyLock::force(&BENCH);
}

fuzz_target!(init: { prepare(); }, |input: &[u8]| {
    if let Err(fault) = BENCH.check(input) {
        write(&mut std::io::stderr(), &format!("{}: {fault}\n", target().name));
        std::process::abort();
    }
});
