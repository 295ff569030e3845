//! The shape of the workspace: which crate may use which.

#![expect(clippy::unwrap_used, reason = "all of it is tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// What each product crate may depend on. `tests` and `benches` may use anything.
const ALLOWED: &[(&str, &[&str])] = &[
    ("strata-sys", &[]),
    ("strata-layer", &["strata-sys"]),
    ("strata-unionfs", &["strata-layer", "strata-sys"]),
    ("strata-imagestore", &["strata-layer", "strata-sys"]),
    ("strata-sandbox", &["strata-layer", "strata-sys"]),
    ("strata-engine", &["strata-imagestore", "strata-layer", "strata-sandbox", "strata-sys", "strata-unionfs"]),
    ("strata-registry", &[]),
    ("strata-cli", &["strata-engine", "strata-registry", "strata-sys"]),
];

/// Crates that no product crate may use, directly: they are for tests.
const TEST_CRATES: &[&str] =
    &["strata-tests", "strata-benches", "libtest-mimic", "criterion", "libseccomp", "proptest", "tar"];

#[test]
fn dependencies_point_one_way() {
    let used = workspace_dependencies("normal");
    let mut violations = Vec::new();
    for (package, allowed) in ALLOWED {
        let dependencies = used.get(*package).unwrap_or_else(|| panic!("no crate {package} in the workspace"));
        for dependency in dependencies {
            if dependency.starts_with("strata-") && !allowed.contains(&dependency.as_str()) {
                violations.push(format!("{package} -> {dependency}"));
            }
            if TEST_CRATES.contains(&dependency.as_str()) {
                violations.push(format!("{package} -> {dependency} outside dev-dependencies"));
            }
        }
    }
    assert!(violations.is_empty(), "forbidden dependencies:\n{}", violations.join("\n"));
}

#[test]
fn development_dependencies_do_not_couple_the_middle_crates() {
    let middle = ["strata-unionfs", "strata-imagestore", "strata-sandbox"];
    for kind in ["dev", "build"] {
        let used = workspace_dependencies(kind);
        for package in middle {
            let coupled: Vec<_> = used[package].iter().filter(|name| middle.contains(&name.as_str())).collect();
            assert!(coupled.is_empty(), "{package} uses {coupled:?} as {kind}-dependency");
        }
    }
}

#[test]
fn every_crate_is_known_here() {
    let known: BTreeSet<&str> =
        ALLOWED.iter().map(|(name, _)| *name).chain(["strata-tests", "strata-benches"]).collect();
    let found = workspace_dependencies("normal");
    let found: BTreeSet<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(found, known);
}

#[test]
fn every_crate_shares_version_licence_and_compiler() {
    let metadata = metadata();
    for package in metadata["packages"].as_array().unwrap() {
        let name = &package["name"];
        assert_eq!(package["license"], "MIT OR Apache-2.0", "{name}");
        assert_eq!(package["rust_version"], metadata["packages"][0]["rust_version"], "{name}");
        assert_eq!(package["version"], metadata["packages"][0]["version"], "{name}");
        assert_eq!(package["publish"], serde_json::json!([]), "{name}");
    }
}

/// Every crate of the workspace with the names of its direct dependencies of one kind.
fn workspace_dependencies(kind: &str) -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata();
    let mut used = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        let names = dependencies
            .filter(|dependency| dependency["kind"].as_str().unwrap_or("normal") == kind)
            .map(|dependency| dependency["name"].as_str().unwrap().to_owned());
        used.insert(package["name"].as_str().unwrap().to_owned(), names.collect());
    }
    used
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
