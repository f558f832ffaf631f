//! Seeds, the kept corpus and inputs that once failed go through their parsers.

use std::fs;
use std::path::{Path, PathBuf};

use sharp_fuzz::{TARGETS, Workbench, seeds};

/// The inputs in a folder of a target, with their files; none where there is no folder.
fn kept(folder: &str, target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(target);
    let Ok(entries) = fs::read_dir(&folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.clone(), fs::read(&file).unwrap())).collect()
}

#[test]
fn every_input_is_read_or_refused() {
    let mut faults = Vec::new();
    for target in &TARGETS {
        let folder = tempfile::tempdir().unwrap();
        let bench = Workbench::new(target, folder.path());
        let seeds = seeds(target).into_iter().enumerate();
        let seeds = seeds.map(|(number, seed)| (PathBuf::from(format!("seed {number}")), seed));
        let all = seeds.chain(kept("corpus", target.name)).chain(kept("regressions", target.name));
        for (name, input) in all.chain([(PathBuf::from("nothing"), Vec::new())]) {
            if let Err(fault) = bench.check(&input) {
                faults.push(format!("{}, {}: {fault}", target.name, name.display()));
            }
        }
    }
    drop(std::panic::take_hook());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn targets_and_folders_have_the_same_names() {
    for folder in ["corpus", "regressions", "words"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let name = name.strip_suffix(".dict").unwrap_or(&name);
            assert!(TARGETS.iter().any(|target| target.name == name), "no target is called {name}");
        }
    }
}
