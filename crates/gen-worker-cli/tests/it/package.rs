//! What is in an archive.

use std::{collections::BTreeMap, io::Read};

use flate2::read::GzDecoder;
use serde_json::{Value, json};

/// Fails unless it is an archive of the project that `new` made.
pub(crate) fn assert_holds_a_project(packed: &[u8]) {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(GzDecoder::new(packed)).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        files.insert(entry.path().unwrap().display().to_string(), text);
    }
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    let expected = [
        ".cargo/config.toml",
        ".cozy/manifest.json",
        ".gitignore",
        "Cargo.lock",
        "Cargo.toml",
        "Dockerfile",
        "README.md",
        "cozy.toml",
        "src/main.rs",
    ];
    assert_eq!(names, expected);
    let manifest: Value = serde_json::from_str(&files[".cozy/manifest.json"]).unwrap();
    let function = &manifest["functions"][0];
    assert_eq!((&function["name"], &function["module"]), (&json!("hello"), &json!("my_worker")));
    assert!(files["Dockerfile"].contains("ENTRYPOINT [\"/usr/local/bin/my-worker\"]"));
}
