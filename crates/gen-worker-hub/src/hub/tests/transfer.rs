//! Files in pieces, side by side.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::*;
use crate::testing::Answer::{
    Changed, Corrupt, Cut, CutWhole, Empty, Good, Huge, Long, Packed, Said, Short, Stall, Status, Whole,
    WrongRange,
};
use crate::testing::{client_that_waits, config_at};

const PIECE: u64 = 500_000;

/// A hub with pieces so small that the content has six.
fn in_pieces(cache: &Path, server: &FileServer) -> Hub {
    let config = HubConfig { range_bytes: PIECE, ..config(cache, server) };
    Hub::new(config, client(&["127.0.0.1"]))
}

async fn fetch(hub: &Hub) -> Result<LocalModel, JobFailure> {
    hub.ensure(&model("org/m"), Arc::<RecordedEvents>::default()).await
}

/// The ranges asked for, in order of their places.
fn ranges(server: &FileServer) -> Vec<String> {
    let mut ranges = server.seen("range");
    ranges.sort_by_key(|range| {
        range.trim_start_matches("bytes=").split('-').next().unwrap().parse::<u64>().ok()
    });
    ranges
}

fn pieces() -> Vec<String> {
    (0..6).map(|n| format!("bytes={}-{}", n * PIECE, (n + 1) * PIECE - 1)).collect()
}

#[tokio::test]
async fn pieces_come_side_by_side_each_once() {
    let headers = [("etag", "\"v1\"")];
    // The first answer comes; the next four wait for each other.
    let server = FileServer::with_headers(&content(), &[], &headers, 1).await;
    let cache = tempfile::tempdir().unwrap();
    let hub = in_pieces(cache.path(), &server);
    let waiting = async {
        until(|| server.paths().len() == 5).await;
        server.open();
    };
    let (local, ()) = tokio::join!(fetch(&hub), waiting);
    assert_eq!(read(&local.unwrap(), "m"), content());
    assert_eq!(ranges(&server), pieces());
    assert_eq!(server.seen("if-range").iter().filter(|validator| *validator == "\"v1\"").count(), 5);
}

#[tokio::test]
async fn what_misbehaves_is_fetched_again_and_the_file_is_right() {
    for answers in [
        &[Short][..],
        &[Good, Short, Short],
        &[Long, Long],
        &[Good, Cut(1000), Cut(2000)],
        &[Good, WrongRange],
        &[Good, Changed],
        &[Good, Whole],
        &[Corrupt],
        &[Good, Good, Corrupt],
        &[Good, Status(503), Status(429)],
        &[CutWhole(1000), Whole],
        &[Whole],
    ] {
        let server = FileServer::start(&content(), answers).await;
        let cache = tempfile::tempdir().unwrap();
        let local = fetch(&in_pieces(cache.path(), &server)).await.unwrap();
        assert!(read(&local, "m") == content(), "{answers:?}");
    }
}

#[tokio::test]
async fn a_server_that_falls_silent_is_asked_for_the_rest() {
    let server = FileServer::start(&content(), &[Stall(1000), Stall(2000)]).await;
    let cache = tempfile::tempdir().unwrap();
    let config = HubConfig { connections: 1, ..config(cache.path(), &server) };
    let hub = Hub::new(config, client_that_waits(&[], Duration::from_millis(300)));
    assert_eq!(read(&fetch(&hub).await.unwrap(), "m"), content());
    let rests = ["bytes=0-16777215", "bytes=1000-2999999", "bytes=3000-2999999"];
    assert_eq!(server.seen("range"), rests);
}

#[tokio::test]
async fn a_piece_that_is_there_is_not_fetched_by_the_next_process() {
    let refused = [Status(503); 8];
    let server = FileServer::start(&content(), &[&[Good, Good, Cut(1000)][..], &refused].concat()).await;
    let cache = tempfile::tempdir().unwrap();
    let config = HubConfig { range_bytes: PIECE, connections: 1, ..config(cache.path(), &server) };
    fetch(&Hub::new(config.clone(), client(&[]))).await.unwrap_err();
    let before = server.paths().len();
    while !server.is_good() {
        fetch(&Hub::new(config.clone(), client(&[]))).await.unwrap_err();
    }
    let after = server.paths().len();
    assert_eq!(read(&fetch(&Hub::new(config, client(&[]))).await.unwrap(), "m"), content());
    assert_eq!(before, 5);
    let rest =
        ["bytes=1001000-1499999", "bytes=1500000-1999999", "bytes=2000000-2499999", "bytes=2500000-2999999"];
    assert_eq!(server.seen("range")[after..], rest);
}

/// What a process that is killed leaves: pieces as the state file says, and nothing or anything in the rest.
#[tokio::test]
async fn a_killed_download_goes_on_with_what_its_state_says() {
    let server = FileServer::start(&content(), &[Good, Good, Good, Status(404)]).await;
    let cache = tempfile::tempdir().unwrap();
    let config = HubConfig { range_bytes: PIECE, connections: 1, ..config(cache.path(), &server) };
    fetch(&Hub::new(config.clone(), client(&[]))).await.unwrap_err();
    let partial = fs::read_dir(cache.path().join("partial")).unwrap().map(|entry| entry.unwrap().path());
    let part = partial.into_iter().find(|path| path.extension().is_some_and(|e| e == "part")).unwrap();
    assert_eq!(fs::metadata(&part).unwrap().len(), 3_000_000, "its room was taken at once");
    let torn = fs::OpenOptions::new().write(true).open(&part).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&torn, &[7; 1000], 3 * PIECE + 17).unwrap();

    let before = server.paths().len();
    assert_eq!(read(&fetch(&Hub::new(config, client(&[]))).await.unwrap(), "m"), content());
    assert_eq!(server.seen("range")[before..], pieces()[3..]);
    assert_eq!(fs::read_dir(cache.path().join("partial")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_state_that_cannot_be_believed_is_no_state() {
    let whole = r#"{"size_bytes":3000000,"digest":null,"etag":"\"v1\"","spans":[[0,3000000]]}"#;
    for (state, part) in [("{", vec![0; 3_000_000]), (whole, vec![0; 10]), (whole, vec![0; 3_000_000])] {
        let server = FileServer::start(&content(), &[Status(503); 3]).await;
        let cache = tempfile::tempdir().unwrap();
        let hub = in_pieces(cache.path(), &server);
        fetch(&hub).await.unwrap_err();
        let digest = Digest::of(Algorithm::Sha256, &content());
        // The one place where this file is while it comes.
        let name = fs::read_dir(cache.path().join("partial")).unwrap().map(|entry| entry.unwrap().path());
        let part_path = name.into_iter().find(|path| path.extension().is_some_and(|e| e == "part")).unwrap();
        fs::write(&part_path, &part).unwrap();
        fs::write(part_path.with_extension("json"), state).unwrap();
        let pinned = format!("org/m@{digest}");
        let local = hub.ensure(&model(&pinned), Arc::<RecordedEvents>::default()).await.unwrap();
        assert_eq!(read(&local, "m"), content());
    }
}

#[tokio::test]
async fn an_empty_file_is_a_file() {
    let server = FileServer::start(b"", &[]).await;
    let cache = tempfile::tempdir().unwrap();
    let local = fetch(&in_pieces(cache.path(), &server)).await.unwrap();
    assert_eq!((read(&local, "m"), local.size_bytes), (Vec::new(), 0));
}

/// No digest is promised: nothing but the validator tells that the second piece is another file's.
#[tokio::test]
async fn pieces_of_two_versions_make_no_file() {
    let server = FileServer::with_headers(&content(), &[Good, Changed], &[("etag", "\"v1\"")], 100).await;
    let cache = tempfile::tempdir().unwrap();
    let config = HubConfig { range_bytes: PIECE, connections: 1, ..config(cache.path(), &server) };
    let local = fetch(&Hub::new(config, client(&[]))).await.unwrap();
    assert_eq!(read(&local, "m"), content());
    assert_eq!(server.paths().len(), 8, "it is fetched anew");
}

/// A place is taken for a file of the size that is promised, and stays empty if the server has none of it.
#[tokio::test]
async fn a_file_of_which_nothing_came_is_not_one_of_zeros() {
    let server = FileServer::with_headers(b"", &[], &[("etag", "\"v1\"")], 100).await;
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(config(cache.path(), &server), client(&[]));
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let page = serde_json::json!({"sha": commit, "siblings": [{"rfilename": "m.onnx", "size": 9}]});
    server.put("/api/models/org/m/revision/main?blobs=true", page.to_string());
    server.answer(&[Good, Empty, Empty, Empty]);
    let m = model("hf:org/m");
    let failure = hub.ensure(&m, Arc::<RecordedEvents>::default()).await.unwrap_err();
    assert_eq!((failure.kind, server.paths().len()), (FailureKind::Retryable, 4), "{failure:?}");
    assert!(hub.on_disk().is_empty());
}

#[tokio::test]
async fn an_answer_that_is_no_file_is_not_taken_for_one() {
    for status in [202, 204] {
        let server = FileServer::start(&content(), &[Said(status)]).await;
        let cache = tempfile::tempdir().unwrap();
        let hub = in_pieces(cache.path(), &server);
        let failure = fetch(&hub).await.unwrap_err();
        assert_eq!(failure.safe_message, format!("model cozy:org/m:latest: a server answered {status}"));
        assert_eq!(read(&fetch(&hub).await.unwrap(), "m"), content());
    }
}

/// Servers count in 63 bits.
#[tokio::test]
async fn a_file_in_one_piece_is_asked_for_to_its_end() {
    let headers = [("etag", "\"v1\"")];
    let server = FileServer::with_headers(&content(), &[Cut(1000)], &headers, 100).await;
    let cache = tempfile::tempdir().unwrap();
    let config = HubConfig { range_bytes: 0, ..config(cache.path(), &server) };
    assert_eq!(read(&fetch(&Hub::new(config, client(&[]))).await.unwrap(), "m"), content());
    assert_eq!(server.seen("range"), ["bytes=0-", "bytes=1000-2999999"]);
}

#[tokio::test]
async fn more_than_was_asked_for_is_asked_for_once_more() {
    let server = FileServer::start(&content(), &[Good, Long]).await;
    let cache = tempfile::tempdir().unwrap();
    let config = HubConfig { range_bytes: PIECE, connections: 1, ..config(cache.path(), &server) };
    assert_eq!(read(&fetch(&Hub::new(config, client(&[]))).await.unwrap(), "m"), content());
    let asked = [&pieces()[..2], &pieces()[1..]].concat();
    assert_eq!(server.seen("range"), asked, "the piece, and no range that is none");
}

#[tokio::test]
async fn what_is_packed_unasked_is_refused() {
    let server = FileServer::start(&content(), &[Packed; 3]).await;
    let cache = tempfile::tempdir().unwrap();
    let failure = fetch(&in_pieces(cache.path(), &server)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Retryable);
    assert_eq!(failure.safe_message, "model cozy:org/m:latest: a server's answer was not understood");
    assert_eq!(server.paths().len(), 3);
}

#[tokio::test]
async fn two_processes_fetch_a_model_once() {
    let server = FileServer::start(&content(), &[]).await;
    let cache = tempfile::tempdir().unwrap();
    let hubs: Vec<_> = (0..4).map(|_| in_pieces(cache.path(), &server)).collect();
    let all = futures_util::future::join_all(hubs.iter().map(fetch)).await;
    for local in all {
        assert_eq!(read(&local.unwrap(), "m"), content());
    }
    assert_eq!(ranges(&server), pieces());
}

#[tokio::test]
async fn a_model_beyond_the_limit_is_refused_and_one_below_makes_others_go() {
    let server = FileServer::start(&content(), &[]).await;
    let cache = tempfile::tempdir().unwrap();
    let limit = |bytes| ByteLimit::Max(ByteSize(bytes));
    let snapshot = |limit| {
        let config =
            HubConfig { hub_api: HubApi::Snapshots, cache_limit: limit, ..config(cache.path(), &server) };
        Hub::new(config, client(&[]))
    };
    for name in ["a", "b"] {
        // Each has a content of its own.
        let own = [name.as_bytes(), &content()].concat();
        sources::serve(&server, name, "v1", &[("m.onnx", &own)]);
    }
    let events = Arc::<RecordedEvents>::default();
    let small = snapshot(limit(2_000_000));
    let failure = small.ensure(&model("org/a"), events.clone()).await.unwrap_err();
    assert_eq!((failure.kind, server.seen("range").len()), (FailureKind::Resource, 2), "{failure:?}");

    let hub = snapshot(limit(4_000_000));
    let first = hub.ensure(&model("org/a"), events.clone()).await.unwrap();
    let failure = hub.ensure(&model("org/b"), events.clone()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Resource, "the first is in use");
    drop(first);
    drop(failure);
    hub.ensure(&model("org/b"), events.clone()).await.unwrap();
    assert_eq!(hub.on_disk(), ["org/b"]);
}

/// The room of the first is its own, though none of it is taken yet.
#[tokio::test]
async fn two_models_that_come_at_once_share_the_limit() {
    let etag = [("etag", "\"v1\"")];
    let server = FileServer::with_headers(b"", &[], &etag, 100).await;
    let files = FileServer::with_headers(b"", &[], &etag, 0).await;
    for name in ["a", "b"] {
        let own = [name.as_bytes(), &content()].concat();
        sources::serve(&server, name, "v1", &[("m.onnx", &own)]);
        files.put(&format!("/{name}"), own);
        server.redirect(&format!("/files/{name}/v1/m.onnx"), &files.url(&format!("/{name}")));
    }
    let cache = tempfile::tempdir().unwrap();
    let cache_limit = ByteLimit::Max(ByteSize(4_000_000));
    let config = HubConfig { hub_api: HubApi::Snapshots, cache_limit, ..config(cache.path(), &server) };
    let hub = Hub::new(config, client(&[]));
    let (a, b) = (model("org/a"), model("org/b"));
    let others = async {
        until(|| files.paths().len() == 1).await;
        let second = hub.ensure(&b, Arc::<RecordedEvents>::default()).await;
        files.open();
        second
    };
    let (first, second) = tokio::join!(hub.ensure(&a, Arc::<RecordedEvents>::default()), others);
    assert_eq!(second.unwrap_err().kind, FailureKind::Resource);
    drop(first.unwrap());
    hub.ensure(&b, Arc::<RecordedEvents>::default()).await.unwrap();
    assert_eq!(hub.on_disk(), ["org/b"]);
}

/// No list says how large it is, so that room can be made only when its server has answered.
#[tokio::test]
async fn a_file_whose_size_only_its_server_says_makes_others_go_too() {
    let server = FileServer::with_headers(&content(), &[], &[("etag", "\"v1\"")], 100).await;
    server.put("/org/other", [b"x", content().as_slice()].concat());
    let cache = tempfile::tempdir().unwrap();
    let hub = |bytes| {
        let cache_limit = ByteLimit::Max(ByteSize(bytes));
        Hub::new(HubConfig { cache_limit, ..config(cache.path(), &server) }, client(&[]))
    };
    let failure = fetch(&hub(2_000_000)).await.unwrap_err();
    assert_eq!((failure.kind, server.paths().len()), (FailureKind::Resource, 1), "{failure:?}");
    let hub = hub(4_000_000);
    let first = fetch(&hub).await.unwrap();
    let other = model("org/other");
    let failure = hub.ensure(&other, Arc::<RecordedEvents>::default()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Resource, "the first is in use");
    drop(first);
    hub.ensure(&other, Arc::<RecordedEvents>::default()).await.unwrap();
    assert_eq!(hub.on_disk(), ["org/other"]);
}

#[tokio::test]
async fn a_file_for_which_there_is_no_room_leaves_nothing() {
    let server = FileServer::start(&content(), &[Huge]).await;
    let cache = tempfile::tempdir().unwrap();
    let hub = in_pieces(cache.path(), &server);
    let failure = fetch(&hub).await.unwrap_err();
    assert_eq!((failure.kind, server.paths().len()), (FailureKind::Resource, 1), "{failure:?}");
    let held = fs::read_dir(cache.path().join("partial")).unwrap();
    let bytes: u64 = held.map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert_eq!((bytes, hub.on_disk().len()), (0, 0));
    assert_eq!(read(&fetch(&hub).await.unwrap(), "m"), content());
}

/// How the process that is killed is told where to fetch from and where to.
const CHILD: &str = "GEN_WORKER_HUB_TEST_CHILD";

/// The process of the test below. By itself it does nothing.
#[tokio::test]
async fn a_process_that_is_killed() {
    #[expect(clippy::disallowed_methods, reason = "a word between two processes of one test, no setting")]
    let Ok(told) = std::env::var(CHILD) else { return };
    let (base, cache) = told.split_once(' ').unwrap();
    let config = config_at(cache.as_ref(), &base.parse().unwrap());
    let config = HubConfig { range_bytes: PIECE, connections: 1, ..config };
    fetch(&Hub::new(config, client(&[]))).await.unwrap();
}

/// A process that fetches the model.
fn fetching(server: &FileServer, cache: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hub::tests::transfer::a_process_that_is_killed"])
        .env(CHILD, format!("{} {}", server.url("/"), cache.display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The kill comes while pieces are under way, wherever the process is by then.
#[tokio::test]
async fn a_process_killed_anywhere_leaves_a_model_that_is_absent_or_whole() {
    let mut random = fastrand::Rng::new();
    for _ in 0..8 {
        let server = FileServer::start(&content(), &[]).await;
        let cache = tempfile::tempdir().unwrap();
        for _ in 0..3 {
            let mut child = fetching(&server, cache.path());
            let enough = server.paths().len() + random.usize(0..3);
            until(|| server.paths().len() >= enough || child.try_wait().unwrap().is_some()).await;
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let hub = in_pieces(cache.path(), &server);
        let (there, asked) = (!hub.on_disk().is_empty(), server.paths().len());
        assert_eq!(read(&fetch(&hub).await.unwrap(), "m"), content());
        assert!(!there || server.paths().len() == asked, "what is there is not fetched");
        // Each life has one piece under way at a time, and that one at most is fetched again.
        assert!(server.paths().len() <= 6 + 3, "{:?}", server.seen("range"));
    }
}

#[tokio::test]
async fn after_a_kill_no_piece_that_was_finished_is_fetched_again() {
    for finished in 0..6 {
        let headers = [("etag", "\"v1\"")];
        let server = FileServer::with_headers(&content(), &[], &headers, finished).await;
        let cache = tempfile::tempdir().unwrap();
        let mut child = fetching(&server, cache.path());
        // It asks for a piece only after the one before is written down.
        until(|| server.paths().len() == finished + 1).await;
        child.kill().unwrap();
        child.wait().unwrap();
        server.open();
        let config = HubConfig { range_bytes: PIECE, connections: 1, ..config(cache.path(), &server) };
        assert_eq!(read(&fetch(&Hub::new(config, client(&[]))).await.unwrap(), "m"), content());
        assert_eq!(server.seen("range")[finished + 1..], pieces()[finished..]);
    }
}
