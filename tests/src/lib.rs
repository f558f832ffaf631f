//! What the tests of several packages need. The tests of this one (`end_to_end/`) drive the built programs.
//! Beside them, `golden/` holds files that other implementations computed, each with the script that made it;
//! the crates' own tests read those.
#![forbid(unsafe_code)]

use std::path::PathBuf;

/// The default model in the project's cache, a GGUF file; `None`, with a note, where it has not been fetched.
///
/// # Panics
/// If it has not been fetched although `SHARP_REQUIRE_MATERIALS` is set.
#[allow(clippy::print_stderr)]
pub fn smollm2() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = set("SHARP_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|p| p.join("sharp")))
        .or_else(|| set("HOME").map(|p| p.join(".cache/sharp")));
    let path = cache.unwrap_or_default().join("models/smollm2-135m-instruct/model.gguf");
    if path.is_file() {
        return Some(path);
    }
    assert!(
        set("SHARP_REQUIRE_MATERIALS").is_none(),
        "{} is missing: run `cargo xtask setup`",
        path.display()
    );
    eprintln!("skipped: {} is missing; `cargo xtask setup` fetches it", path.display());
    None
}
