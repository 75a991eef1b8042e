//! A disk that fills while a model comes: a real one, so small that it does.

use std::{
    io::{ErrorKind, Write},
    path::PathBuf,
    process::Command,
};

use super::*;
use crate::testing::Answer::{Good, Status, Unsized};

/// How the process on the small disk is told where that is.
const CHILD: &str = "GEN_WORKER_HUB_TEST_SMALL_DISK";
/// What is kept free and a little more than a model.
const DISK_BYTES: usize = 24 << 20;

/// Runs this test's process anew, with a file system of its own that has `DISK_BYTES`, and returns its directory there; `None`:
/// this is the process that ran it, or there can be no such file system.
fn small_disk(test: &str) -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "a word between two processes of one test, no setting")]
    if let Ok(directory) = std::env::var(CHILD) {
        return Some(directory.into());
    }
    let directory = tempfile::tempdir().unwrap();
    let mount = format!("mount -t tmpfs -o size={DISK_BYTES} small \"${CHILD}\"");
    let in_namespace = |then: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &format!("{mount} && {then}")]);
        command.env(CHILD, directory.path());
        command
    };
    if !in_namespace("true").output().is_ok_and(|tried| tried.status.success()) {
        let why = "skipped: no file system can be mounted here (unshare --user --mount)";
        writeln!(std::io::stderr(), "{test}: {why}").unwrap();
        return None;
    }
    let this = std::env::current_exe().unwrap();
    let run = format!("exec '{}' --exact hub::tests::disk::{test} --nocapture", this.display());
    let ran = in_namespace(&run).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    None
}

fn names(directory: PathBuf) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// What a failure for want of room must be.
fn check(bench: &Bench, failure: &JobFailure) {
    assert_eq!(failure.kind, FailureKind::Resource, "{failure:?}");
    assert!(failure.safe_message.starts_with("the worker's disk is full"), "{failure:?}");
    assert_eq!((bench.published(), bench.hub.on_disk().len()), (0, 0));
    assert_eq!(bench.states().last().unwrap(), "failed");
}

impl Bench {
    fn at(directory: PathBuf, server: FileServer, range_bytes: u64) -> Self {
        let cache = tempfile::tempdir_in(directory).unwrap();
        let config = HubConfig { range_bytes, connections: 1, ..config(cache.path(), &server) };
        Self { hub: Hub::new(config, client(&[])), events: Arc::default(), cache, server }
    }
}

/// A file of which nobody said how large it is.
#[tokio::test]
async fn a_file_that_turns_out_too_large_leaves_nothing() {
    let Some(directory) = small_disk("a_file_that_turns_out_too_large_leaves_nothing") else { return };
    let large = vec![7; DISK_BYTES + 1];
    let server = FileServer::with_headers(&large, &[Unsized], &[("etag", "\"v1\"")], 100).await;
    server.put("/org/small", content());
    let bench = Bench::at(directory, server, 0);
    let failure = bench.ensure("org/large").await.unwrap_err();
    check(&bench, &failure);
    assert_eq!(bench.server.paths().len(), 1, "it is not tried again");
    let left = names(bench.cache.path().join("partial"));
    assert!(left.iter().all(|name| name.ends_with(".lock")), "{left:?}");
    assert_eq!(names(bench.cache.path().join("objects/sha256")), [""; 0]);
    // Its room is free again.
    assert_eq!(read(&bench.ensure("org/small").await.unwrap(), "small"), content());
}

/// Others write too. The room for the model was taken before; what is said of it has none.
#[tokio::test]
async fn a_disk_that_others_fill_fails_the_model_once_and_keeps_what_came() {
    let Some(directory) = small_disk("a_disk_that_others_fill_fails_the_model_once_and_keeps_what_came")
    else {
        return;
    };
    let headers = [("etag", "\"v1\"")];
    let server = FileServer::with_headers(&content(), &[Good], &headers, 1).await;
    let bench = Bench::at(directory, server, 500_000);
    let ballast = bench.cache.path().join("ballast");
    let fill = async {
        until(|| bench.server.paths().len() == 2).await;
        let mut file = fs::File::create(&ballast).unwrap();
        let full = std::iter::repeat_with(|| file.write_all(&[1; 4096])).find_map(Result::err).unwrap();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        bench.server.open();
    };
    let (failed, ()) = tokio::join!(bench.ensure("org/m"), fill);
    check(&bench, &failed.unwrap_err());
    assert_eq!(bench.server.paths().len(), 2, "it is not tried again");

    fs::remove_file(ballast).unwrap();
    assert_eq!(read(&bench.ensure("org/m").await.unwrap(), "m"), content());
    // What was written down before is not fetched again.
    assert_eq!(bench.server.seen("range")[2], "bytes=500000-999999");
}

/// An earlier attempt has its room. With that the disk has enough, and without it not.
#[tokio::test]
async fn only_what_is_missing_needs_room() {
    let Some(directory) = small_disk("only_what_is_missing_needs_room") else { return };
    let headers = [("etag", "\"v1\"")];
    let server = FileServer::with_headers(&content(), &[Good, Status(404)], &headers, 100).await;
    let bench = Bench::at(directory, server, 500_000);
    bench.ensure("org/m").await.unwrap_err();
    fs::write(bench.cache.path().join("ballast"), vec![1; DISK_BYTES - (8 << 20)]).unwrap();
    let asked = bench.server.paths().len();
    let failure = bench.ensure("org/other").await.unwrap_err();
    check(&bench, &failure);
    assert_eq!(read(&bench.ensure("org/m").await.unwrap(), "m"), content());
    assert_eq!(bench.server.seen("range")[asked + 1], "bytes=500000-999999");
}
