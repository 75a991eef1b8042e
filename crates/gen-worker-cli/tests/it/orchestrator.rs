//! `gen-worker orchestrator` as a process.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use crate::harness::{command, ended, signal};

#[test]
fn it_leaves_when_it_is_told_to() {
    for told in ["-TERM", "-INT"] {
        let folder = tempfile::tempdir().unwrap();
        let mut orchestrator = command();
        orchestrator.arg("orchestrator").current_dir(folder.path()).stderr(Stdio::piped());
        let anywhere = |name| (name, "127.0.0.1:0");
        orchestrator.envs(["ORCHESTRATOR_GRPC_ADDR", "ORCHESTRATOR_HTTP_ADDR"].map(anywhere));
        let mut orchestrator = orchestrator.spawn().unwrap();
        let mut said = BufReader::new(orchestrator.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(said.any(|line| line.starts_with("callers connect to")));
        signal(&orchestrator, told);
        assert_eq!(ended(&mut orchestrator).code(), Some(0), "{told}");
    }
}
