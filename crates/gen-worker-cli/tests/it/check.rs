//! `gen-worker check` on projects that have something wrong.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::harness::{command, done};

const MANIFEST: &str = "[package]\nname = \"w\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
const LOCK: &str = "version = 4\n\n[[package]]\nname = \"w\"\nversion = \"0.1.0\"\n";

fn project(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn check(project: &Path) -> Value {
    let checked = done(command().args(["check", "--json", "--no-build"]).arg(project));
    let said: Value = serde_json::from_str(&checked.out).unwrap_or_else(|_| panic!("{checked:#?}"));
    assert_eq!(said["ok"], json!(checked.code == Some(0)), "{checked:#?}");
    said["findings"].clone()
}

fn codes(findings: &Value) -> Vec<&str> {
    findings.as_array().unwrap().iter().map(|finding| finding["code"].as_str().unwrap()).collect()
}

#[test]
fn an_empty_folder_lacks_everything() {
    let folder = project(&[("requirements.txt", "")]);
    let found = check(folder.path());
    assert_eq!(codes(&found), ["missing_cozy_toml", "missing_cargo_toml", "requirements_txt"]);
}

#[test]
fn all_that_is_wrong_is_said_at_once_and_where() {
    let outside = project(&[("Cargo.toml", &MANIFEST.replace("\"w\"", "\"outer\"")), ("src/lib.rs", "")]);
    let depends = format!(
        "{MANIFEST}\n[dependencies]\nouter = {{ path = {:?} }}\n",
        outside.path().display().to_string()
    );
    let folder = project(&[
        ("Cargo.toml", &depends),
        ("Cargo.lock", LOCK),
        ("cozy.toml", "[functions]\nmodules = 'w'\n[runtime]\nbase_imge = 'x'\n"),
        ("src/bin/a.rs", "fn main() {}"),
        ("src/bin/b.rs", "fn main() {}"),
    ]);
    let found = check(folder.path());
    assert_eq!(codes(&found), ["cozy_toml", "cozy_toml", "path_dependency", "binary", "stale_cargo_lock"]);
    assert_eq!(
        found[1],
        json!({
            "level": "error",
            "code": "cozy_toml",
            "message": "unknown key `base_imge` in `[runtime]`: did you mean `base_image`?; there are `base_image`",
            "file": "cozy.toml",
            "line": 4,
            "column": 1,
        })
    );
    let said = done(command().args(["check", "--no-build"]).arg(folder.path())).ends(1);
    assert!(
        said.out.starts_with("error: cozy.toml:2:11: expected a list of texts, found a string\n"),
        "{said:#?}"
    );
    assert!(said.out.ends_with("not ready to be packaged\n"), "{said:#?}");
}

#[test]
fn a_project_that_has_all_it_needs_is_fine() {
    let folder = project(&[
        ("Cargo.toml", MANIFEST),
        ("Cargo.lock", LOCK),
        ("cozy.toml", "[functions]\nmodules = ['w']\n"),
        ("src/main.rs", "fn main() {}"),
    ]);
    assert_eq!(check(folder.path()), json!([]));
    fs::write(folder.path().join("cozy.toml"), "[runtime]\nbase_image = 'x'\n").unwrap();
    assert_eq!(codes(&check(folder.path())), ["no_modules"]);
    fs::write(folder.path().join("cozy.toml"), "[functions]\nmodules = ['w']\n").unwrap();
    // It is no worker, which only its build shows.
    let mut built = command();
    built.args(["check", "--json"]).arg(folder.path()).env("CARGO_TARGET_DIR", folder.path().join("target"));
    let said: Value = serde_json::from_str(&done(&mut built).ends(1).out).unwrap();
    assert_eq!(codes(&said["findings"]), ["build"]);
    fs::remove_file(folder.path().join("Cargo.lock")).unwrap();
    assert_eq!(codes(&check(folder.path())), ["missing_cargo_lock"]);
}

#[test]
fn a_member_of_a_workspace_is_told_how_to_stand_alone() {
    let folder = project(&[
        ("Cargo.toml", "[workspace]\nmembers = ['w']\n"),
        ("w/Cargo.toml", MANIFEST),
        ("w/cozy.toml", "[functions]\nmodules = ['w']\n"),
        ("w/src/main.rs", "fn main() {}"),
    ]);
    let found = check(&folder.path().join("w"));
    assert_eq!(codes(&found), ["missing_cargo_lock"]);
    assert!(found[0]["message"].as_str().unwrap().contains("an empty `[workspace]`"), "{found}");
}
