//! The invariants of ARCHITECTURE.md that can be read off the workspace.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use crate::fixture::{cargo, repository, succeed};

/// Package name to the names of the packages it needs to build and run; and the workspace's own packages.
fn graph() -> (BTreeMap<String, BTreeSet<String>>, BTreeSet<String>) {
    let output = succeed(cargo().args(["metadata", "--format-version", "1"]));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let name_of: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (package["id"].as_str().unwrap(), package["name"].as_str().unwrap()))
        .collect();
    let mut graph = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let needed: BTreeSet<String> = node["deps"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|dependency| {
                let kinds = dependency["dep_kinds"].as_array().unwrap();
                kinds.iter().any(|kind| kind["kind"].as_str() != Some("dev"))
            })
            .map(|dependency| name_of[dependency["pkg"].as_str().unwrap()].to_owned())
            .collect();
        let entry: &mut BTreeSet<String> =
            graph.entry(name_of[node["id"].as_str().unwrap()].to_owned()).or_default();
        entry.extend(needed);
    }
    let members = metadata["workspace_members"].as_array().unwrap();
    (graph, members.iter().map(|id| name_of[id.as_str().unwrap()].to_owned()).collect())
}

/// Everything that a package needs, directly or not.
fn needs(graph: &BTreeMap<String, BTreeSet<String>>, package: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![package.to_owned()];
    while let Some(next) = waiting.pop() {
        for needed in &graph[&next] {
            if found.insert(needed.clone()) {
                waiting.push(needed.clone());
            }
        }
    }
    found
}

#[test]
fn only_sharp_train_links_libtorch() {
    let (graph, members) = graph();
    assert!(needs(&graph, "sharp-train").contains("tch"));
    for member in members.iter().filter(|member| *member != "sharp-train") {
        let needed = needs(&graph, member);
        assert!(!needed.contains("tch") && !needed.contains("torch-sys"), "{member} links libtorch");
        assert!(!needed.contains("sharp-train"), "{member} depends on sharp-train");
    }
}

#[test]
fn arrows_run_one_way() {
    let (graph, members) = graph();
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("sharp-schema", &[][..]),
        ("sharp-host", &[]),
        ("sharp-chart", &[]),
        ("sharp-progress", &[]),
        ("sharp-quant", &[]),
        ("sharp-model", &["sharp-progress", "sharp-quant"]),
        ("sharp-data", &["sharp-model"]),
        ("sharp-strategy", &["sharp-model"]),
        ("sharp-infer", &["sharp-model", "sharp-progress", "sharp-quant"]),
        ("sharp-similarity", &["sharp-infer", "sharp-model", "sharp-progress", "sharp-quant"]),
        ("sharp-eval", &["sharp-data", "sharp-infer", "sharp-model", "sharp-progress", "sharp-quant"]),
        ("sharp-serve", &["sharp-data", "sharp-infer", "sharp-model", "sharp-quant"]),
        ("sharp-train", &["sharp-data", "sharp-model", "sharp-progress", "sharp-quant"]),
        ("sharp-pipeline", &[]),
        ("xtask", &["sharp-pipeline"]),
        ("sharp-tests", &[]),
        (
            "sharp-fuzz",
            &["sharp-data", "sharp-infer", "sharp-model", "sharp-progress", "sharp-quant", "sharp-serve"],
        ),
    ]);
    for member in &members {
        // The command line program may use every library.
        let Some(allowed) = allowed.get(member.as_str()) else {
            assert_eq!(member, "sharp-cli", "a new crate needs its place in this table");
            continue;
        };
        // Names, file schemas, the machine's facts and charts are for everybody but each other.
        let leaf = |needed: &str| ["sharp-schema", "sharp-host", "sharp-chart"].contains(&needed);
        let ours = graph[member]
            .iter()
            .filter(|needed| members.contains(*needed) && (leaf(member) || !leaf(needed)));
        for needed in ours {
            assert!(allowed.contains(&needed.as_str()), "{member} depends on {needed}");
        }
    }
}

#[test]
fn unsafe_code_is_forbidden_but_in_two_crates() {
    let mut roots = ["xtask/src/main.rs", "tests/src/lib.rs", "fuzz/src/lib.rs", "fuzz/src/main.rs"]
        .map(str::to_owned)
        .to_vec();
    for entry in fs::read_dir(repository().join("crates")).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        for root in ["lib.rs", "main.rs"] {
            let path = format!("crates/{name}/src/{root}");
            if repository().join(&path).is_file() && !["sharp-quant", "sharp-model"].contains(&name.as_str())
            {
                roots.push(path);
            }
        }
    }
    for root in roots {
        let text = fs::read_to_string(repository().join(&root)).unwrap();
        assert!(text.contains("#![forbid(unsafe_code)]"), "{root} does not forbid unsafe code");
    }
}

#[test]
fn sharp_model_has_one_unsafe_function() {
    let folder = repository().join("crates/sharp-model/src");
    let blocks: usize = crate::fixture::files(&folder)
        .iter()
        .filter(|path| path.extension().is_some_and(|ending| ending == "rs"))
        .map(|path| fs::read_to_string(path).unwrap().matches("unsafe {").count())
        .sum();
    assert!(blocks <= 1, "{blocks} unsafe blocks; one maps files, and there should be no other");
}
