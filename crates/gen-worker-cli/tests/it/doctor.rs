//! `gen-worker doctor` on machines that lack something.

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::Command,
    thread,
};

use serde_json::Value;

use crate::harness::{Done, command, done, template};

/// What it says of this: the level, and what was seen.
#[track_caller]
fn found(said: &Value, name: &str) -> (String, String) {
    let checks = said["checks"].as_array().unwrap();
    let check =
        checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name} in {said:#}"));
    let text = |key: &str| check[key].as_str().unwrap().to_owned();
    assert_eq!(text("level") == "ok", check["remedy"].is_null(), "{check}");
    (text("level"), text("seen"))
}

fn examine(command: &mut Command) -> (Option<i32>, Value) {
    let folder = tempfile::tempdir().unwrap();
    let set = ["WORKER_MODEL_CACHE_DIR", "WORKER_CACHE_DIR", "WORKER_RUN_DIR"];
    command.args(["doctor", "--json"]).current_dir(folder.path());
    command.envs(set.map(|name| (name, folder.path())));
    let Done { code, out, log } = done(command);
    let said: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}\n{log}"));
    assert_eq!(said["ok"], code == Some(0), "{said:#}");
    (code, said)
}

/// A hub of long ago.
fn hub_of_long_ago() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let date = "Date: Sun, 06 Nov 1994 08:49:37 GMT";
            let _ =
                write!(stream, "HTTP/1.1 404 -\r\n{date}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    url
}

#[test]
fn it_says_what_is_wrong_and_how_to_mend_it() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut command = command();
    command.envs([("SCHEDULER_ADDR", silent.as_str()), ("ORT_DYLIB_PATH", "/no/such/library.so")]);
    // A token of 1970.
    command
        .env("AUTH_TOKEN", "eyJhbGciOiJSUzI1NiIsImtpZCI6ImEifQ.eyJleHAiOjF9.eA")
        .env("COZY_HUB_URL", hub_of_long_ago());
    let (code, said) = examine(&mut command);
    assert_eq!(code, Some(1));
    for (name, level, seen) in [
        ("settings", "ok", "no mistakes"),
        ("cozy.toml", "ok", "none in this folder"),
        ("onnxruntime", "warn", "/no/such/library.so"),
        ("scheduler", "fail", "is not reached"),
        ("hub", "ok", "answers"),
        ("clock", "fail", "ahead of that of http://127.0.0.1"),
        ("token", "fail", "it has expired"),
        ("folder", "ok", "(WORKER_MODEL_CACHE_DIR) has"),
    ] {
        let found = found(&said, name);
        assert!(found.0 == level && found.1.contains(seen), "{name}: {found:?}");
    }
    assert!(!said.to_string().contains("eyJ"), "{said}");
}

#[test]
fn mistakes_in_the_settings_are_the_first_thing_to_mend() {
    let (code, said) = examine(command().env("WORKER_MAX_CONCURRENCY", "many"));
    assert_eq!(code, Some(1));
    assert_eq!(found(&said, "settings").0, "fail");
    assert!(found(&said, "settings").1.contains("WORKER_MAX_CONCURRENCY is `many`"), "{said:#}");
}

/// A worker knows what its functions need.
#[test]
fn a_worker_without_models_needs_no_library() {
    let scheduler = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = scheduler.local_addr().unwrap().to_string();
    thread::spawn(move || scheduler.incoming().for_each(drop));
    let mut worker = template("hello");
    worker.env("ORT_DYLIB_PATH", "/no/such/library.so").env("SCHEDULER_ADDR", address);
    let (_, said) = examine(&mut worker);
    assert_eq!(found(&said, "onnxruntime").0, "ok");
    let mut worker = template("model");
    worker.env("ORT_DYLIB_PATH", "/no/such/library.so");
    let (code, said) = examine(&mut worker);
    assert_eq!((code, found(&said, "onnxruntime").0.as_str()), (Some(1), "fail"));
}

#[test]
fn for_people_each_thing_is_a_line_with_what_helps_below() {
    let said = done(command().arg("doctor").env("WORKER_MAX_CONCURRENCY", "many")).ends(1);
    assert!(said.out.starts_with("FAIL  settings "), "{said:#?}");
    assert!(said.out.lines().nth(1).unwrap().contains("-> mend them"), "{said:#?}");
}
