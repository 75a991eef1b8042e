//! `gen-worker new`: what it makes builds, runs and passes `check`.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{cargo, command, done, new_project, share_builds, target};

/// The codes of what `check` finds, and its exit code.
fn check(project: &std::path::Path, arguments: &[&str]) -> (Option<i32>, Value) {
    let checked = done(
        command()
            .args(["check", "--json"])
            .args(arguments)
            .env("CARGO_TARGET_DIR", target())
            .current_dir(project),
    );
    let said: Value = serde_json::from_str(&checked.out).unwrap_or_else(|_| panic!("{checked:#?}"));
    let codes = said["findings"].as_array().unwrap().iter().map(|finding| finding["code"].clone()).collect();
    (checked.code, codes)
}

#[test]
fn a_new_project_builds_runs_and_can_be_packed() {
    let (folder, project) = new_project("hello");
    share_builds(&project);
    let run =
        done(cargo(&project).args(["run", "--quiet", "--locked", "--", "run", "hello", "world"])).ends(0);
    assert_eq!(run.out, "{\"result\":{\"text\":\"Hello, world!\"}}\n");
    // The crate is not the published one here, which is worth a warning.
    assert_eq!(check(&project, &[]), (Some(0), json!(["patched"])));

    let pack = |name: &str, arguments: &[&str]| {
        let mut package = command();
        package.args(["package", "-o", name]).args(arguments);
        done(package.env("CARGO_TARGET_DIR", target()).current_dir(&project))
    };
    let first = pack("first.tar.gz", &["--dockerfile"]).ends(0);
    assert_eq!(first.out.trim(), project.join("first.tar.gz").display().to_string());
    let read = |name: &str| fs::read(project.join(name)).unwrap();
    let packed = read("first.tar.gz");
    crate::package::assert_holds_a_project(&packed);
    // What was packed before is not packed again: git ignores it, and the output is left out however it is named.
    pack("second.tar.gz", &["--dockerfile"]).ends(0);
    assert_eq!(packed, read("second.tar.gz"));
    #[cfg(unix)]
    {
        let elsewhere = folder.path().join("elsewhere");
        std::os::unix::fs::symlink(&project, &elsewhere).unwrap();
        let output = elsewhere.join("third.tgz").display().to_string();
        pack(&output, &["--dockerfile"]).ends(0);
        pack(&output, &["--dockerfile"]).ends(0);
        assert_eq!(packed, read("third.tgz"));
        fs::remove_file(project.join("third.tgz")).unwrap();
    }

    fs::write(project.join("server.key"), "").unwrap();
    let refused = pack("third.tar.gz", &[]).ends(1);
    assert!(refused.log.contains("server.key looks like a secret"), "{refused:#?}");
    assert!(!project.join("third.tar.gz").exists());
    let told = pack("third.tar.gz", &["--allow-secret", "server.key", "--allow-secret", "sever.key"]).ends(0);
    assert!(told.log.contains("--allow-secret sever.key: there is no such secret"), "{told:#?}");

    let cozy = fs::read_to_string(project.join("cozy.toml")).unwrap();
    fs::write(project.join("cozy.toml"), format!("{cozy}[worker]\ncozy_hub_token = 'x'\n")).unwrap();
    assert_eq!(check(&project, &["--no-build"]), (Some(1), json!(["secret_setting", "patched"])));
    let refused = pack("fourth.tar.gz", &["--allow-secret", "server.key"]).ends(1);
    assert!(refused.log.contains("cozy.toml:7:1: `cozy_hub_token` is a credential"), "{refused:#?}");
    pack("fourth.tar.gz", &["--allow-secret", "server.key", "--allow-secret", "cozy.toml"]).ends(0);

    // What only the worker itself can tell.
    fs::write(project.join("cozy.toml"), "[functions]\nmodules = ['hallo']\n").unwrap();
    assert_eq!(check(&project, &[]), (Some(1), json!(["patched", "unknown_module"])));
}

/// The check builds it and asks it for its functions; what they do is tested elsewhere, from the same text, and `hello` above.
#[test]
fn every_template_builds_and_passes_its_check() {
    for template in ["image", "stream", "model"] {
        let (_folder, project) = new_project(template);
        share_builds(&project);
        assert_eq!(check(&project, &[]), (Some(0), json!(["patched"])), "{template}");
    }
}

#[test]
fn nothing_that_is_there_is_written_over() {
    let (folder, project) = new_project("hello");
    fs::write(project.join("src/main.rs"), "mine").unwrap();
    let again = done(command().args(["new", "my-worker"]).current_dir(folder.path())).ends(2);
    assert!(again.log.contains("my-worker is there already"), "{again:#?}");
    assert_eq!(fs::read_to_string(project.join("src/main.rs")).unwrap(), "mine");
    let nowhere =
        done(command().args(["new", "w", "--checkout", "/nowhere"]).current_dir(folder.path())).ends(2);
    assert!(nowhere.log.contains("no checkout of gen-worker"), "{nowhere:#?}");
}
