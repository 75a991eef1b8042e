//! What is generated from the command's own arguments.

use std::fs;

use crate::harness::{command, done};

#[test]
fn shells_and_the_manual_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = done(command().args(["completions", shell])).ends(0).out;
        assert!(script.contains("package") && script.contains("allow-secret"), "{shell}");
    }
    let folder = tempfile::tempdir().unwrap();
    let written = done(command().args(["man", "pages"]).current_dir(folder.path())).ends(0);
    let pages = written.out.lines().collect::<Vec<_>>();
    assert!(
        pages.contains(&"pages/gen-worker.1") && pages.contains(&"pages/gen-worker-cache-ls.1"),
        "{pages:?}"
    );
    let page = fs::read_to_string(folder.path().join("pages/gen-worker-package.1")).unwrap();
    assert!(page.starts_with(".ie") && page.contains("allow\\-secret"), "{page}");
}
