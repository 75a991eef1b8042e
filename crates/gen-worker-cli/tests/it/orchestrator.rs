//! `gen-worker orchestrator` as a process.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::Stdio,
    time::{Duration, Instant},
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

/// No answer takes this long unless it never comes.
const PATIENCE: Duration = Duration::from_secs(30);

/// The kind and the flags of the next HTTP/2 frame.
fn frame(stream: &mut TcpStream) -> (u8, u8) {
    let mut head = [0; 9];
    stream.read_exact(&mut head).unwrap();
    let [_, high, low, kind, flags, ..] = head;
    let mut body = vec![0; usize::from(u16::from_be_bytes([high, low]))];
    stream.read_exact(&mut body).unwrap();
    (kind, flags)
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut orchestrator = command();
    orchestrator.arg("orchestrator").current_dir(folder.path()).stderr(Stdio::piped());
    orchestrator.env("ORCHESTRATOR_GRPC_ADDR", address.to_string()).env("RUST_LOG", "h2=trace");
    let mut orchestrator = orchestrator.env("ORCHESTRATOR_HTTP_ADDR", "127.0.0.1:0").spawn().unwrap();
    let since = Instant::now();
    let mut stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(error) => assert!(since.elapsed() < PATIENCE, "{error}"),
        }
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    // Pings, each of which leaves several lines: more than the pipe takes.
    for _ in 0..1000 {
        stream.write_all(b"\0\0\x08\x06\0\0\0\0\0pingping").unwrap();
        while frame(&mut stream) != (6, 1) {}
    }
    drop(stream);
    signal(&orchestrator, "-TERM");
    assert_eq!(ended(&mut orchestrator).code(), Some(0));
    let mut log = Vec::new();
    orchestrator.stderr.take().unwrap().read_to_end(&mut log).unwrap();
    assert!(String::from_utf8_lossy(&log).contains("received frame"));
}
