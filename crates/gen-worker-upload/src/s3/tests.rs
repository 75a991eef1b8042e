//! S3 against a store on loopback that does as it is told. What a real one makes of the signatures is tested in
//! `tests/tests/it/s3.rs`.

use std::{
    collections::HashSet,
    future::{pending, ready},
    io::Write,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{body::Body, http::Response};
use futures_util::FutureExt;
use gen_worker_core::{
    Algorithm, CancelReason, FailureKind, RawOutput,
    ports::{OutputStore, OutputTarget},
};
use jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use serde_json::json;

use super::*;
use crate::{
    config::UploadConfig,
    target::OutputTargets,
    testing::{Heard, Store as Peer, answer, bytes, client_allowing, config, hasty, transfers, watch},
};

/// What the store does with a request: `None`: as a store does.
type Script = dyn Fn(&Heard, usize) -> Option<Reaction> + Send + Sync;

enum Reaction {
    Answer(Response<Body>),
    Silence,
}

fn say(status: u16, body: &str) -> Option<Reaction> {
    Some(Reaction::Answer(answer(status, body)))
}

fn error(code: &str) -> String {
    format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>hunter2</Message></Error>")
}

/// A store that follows `script`, which is told how many requests came before.
async fn store(script: impl Fn(&Heard, usize) -> Option<Reaction> + Send + Sync + 'static) -> Peer {
    let (script, count): (Box<Script>, _) = (Box::new(script), AtomicUsize::new(0));
    Peer::deciding(move |heard| match script(&heard, count.fetch_add(1, Ordering::Relaxed)) {
        Some(Reaction::Answer(answer)) => ready(answer).boxed(),
        Some(Reaction::Silence) => pending().boxed(),
        None => ready(behave(&heard)).boxed(),
    })
    .await
}

fn behave(heard: &Heard) -> Response<Body> {
    let is_asked_for = heard.headers.contains_key("x-amz-checksum-mode");
    match (heard.method.as_str(), heard.query("uploads"), heard.query("uploadId")) {
        ("HEAD", "", "") if is_asked_for => answer(404, ""),
        ("POST", "1", "") => answer(200, "<R><UploadId>id&amp;1</UploadId></R>"),
        ("POST", "", "id%261") => answer(
            200,
            "<CompleteMultipartUploadResult><ETag>&quot;whole-3&quot;</ETag></CompleteMultipartUploadResult>",
        ),
        ("DELETE", "", "id%261") => answer(204, ""),
        ("GET", "", "id%261") => answer(404, &error("NoSuchUpload")),
        ("PUT", "", _) => {
            let mut taken = answer(200, "");
            let etag = format!("\"<{}>\"", heard.query("partNumber"));
            taken.headers_mut().insert("etag", etag.parse().unwrap());
            taken
        }
        _ => answer(400, &error("InvalidRequest")),
    }
}

fn told(there: &Peer) -> Value {
    json!({"s3": {
        "bucket": "b", "key": "a/cat 1.png", "region": "r-1", "endpoint": there.url,
        "access_key_id": "AKID", "secret_access_key": "hunter2", "session_token": "hunter2-session",
    }})
}

fn targets(there: &Peer) -> (OutputTargets, Arc<dyn OutputTarget>) {
    let config = UploadConfig { max_upload: ByteLimit::Max(ByteSize::mib(80)), ..config() };
    let targets = OutputTargets::new(&config, transfers());
    let target = targets.target(told(there).to_string().as_str().into()).unwrap();
    (targets, target)
}

fn target(there: &Peer) -> Arc<dyn OutputTarget> {
    targets(there).1
}

async fn put(there: &Peer, data: impl Into<axum::body::Bytes>) -> Result<StoredOutput, JobFailure> {
    let output = RawOutput::bytes(data, "image/png");
    let stored = target(there).store(&output, &watch().0).await;
    if let Err(failure) = &stored {
        let shown = format!("{failure:?} {} {}", failure.error_message(), failure.chain());
        for secret in ["hunter2", "Signature=", "AKID", "127.0.0.1"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
    stored
}

fn of_kind<'a>(heard: &'a [Heard], method: &str, query: &str) -> Vec<&'a Heard> {
    heard.iter().filter(|heard| heard.method == method && !heard.query(query).is_empty()).collect()
}

/// Large enough for three parts.
fn large() -> axum::body::Bytes {
    bytes((2 * PART_BYTES + 12345) as usize)
}

#[tokio::test]
async fn a_small_output_is_one_signed_request() {
    let there = store(|_, _| None).await;
    let stored = put(&there, "data").await.unwrap();
    let sha256 = Digest::of(Algorithm::Sha256, b"data");
    let [heard] = &there.heard()[..] else { panic!("one request") };
    assert_eq!(
        (heard.method.as_str(), heard.uri.path(), &heard.body[..]),
        ("PUT", "/b/a/cat%201.png", &b"data"[..])
    );
    assert_eq!(heard.query("X-Amz-SignedHeaders"), "content-type%3Bhost%3Bx-amz-checksum-sha256");
    assert_eq!(heard.query("X-Amz-Security-Token"), "hunter2-session");
    assert_eq!(heard.query("X-Amz-Signature").len(), 64);
    assert_eq!(heard.header("x-amz-checksum-sha256"), sha256.base64());
    assert_eq!((heard.header("content-type"), heard.header("content-length")), ("image/png", "4"));
    assert_eq!(heard.header("authorization"), "");
    let expected = StoredOutput {
        url: format!("{}/b/a/cat%201.png", there.url),
        key: Some("a/cat 1.png".to_owned()),
        bucket: Some("b".to_owned()),
        size_bytes: 4,
        sha256: sha256.hex(),
        content_type: "image/png".to_owned(),
        etag: Some("\"<>\"".to_owned()),
    };
    assert_eq!(stored, expected);
}

#[tokio::test]
async fn a_large_output_goes_in_parts_from_memory_and_from_disk() {
    let (directory, data) = (tempfile::tempdir().unwrap(), large());
    let path = directory.path().join("out");
    std::fs::write(&path, &data).unwrap();
    for output in [RawOutput::bytes(data.clone(), "a/b"), RawOutput::file(path, "a/b")] {
        let there = store(|_, _| None).await;
        let (watch, said) = watch();
        let stored = target(&there).store(&output, &watch).await.unwrap();
        assert_eq!(stored.sha256, Digest::of(Algorithm::Sha256, &data).hex());
        assert_eq!((stored.size_bytes, stored.etag.as_deref()), (data.len() as u64, Some("\"whole-3\"")));

        let heard = there.heard();
        assert_eq!(heard[0].header("x-amz-checksum-algorithm"), "CRC32C");
        let mut parts = of_kind(&heard, "PUT", "partNumber");
        parts.sort_by_key(|part| part.query("partNumber").to_owned());
        let sent: Vec<u8> = parts.iter().flat_map(|part| part.body.clone()).collect();
        assert!(sent == data, "{} bytes arrived", sent.len());
        let mut list = String::new();
        for (number, part) in (1..).zip(parts) {
            let checksum = part.header("x-amz-checksum-crc32c");
            list += &format!(
                "<Part><PartNumber>{number}</PartNumber><ETag>\"&lt;{number}&gt;\"</ETag>\
                <ChecksumCRC32C>{checksum}</ChecksumCRC32C></Part>"
            );
        }
        let complete = heard.last().unwrap();
        assert!(
            complete.body.ends_with(format!("{list}</CompleteMultipartUpload>").as_bytes()),
            "{complete:?}"
        );
        assert!(of_kind(&heard, "DELETE", "uploadId").is_empty());
        let last = said.payloads("output.upload").pop().unwrap();
        assert_eq!((&last["bytes_done"], &last["bytes_total"]), (&data.len().into(), &data.len().into()));
    }
}

#[tokio::test]
async fn a_refused_time_is_signed_again_by_the_stores_clock() {
    let there = store(|heard, _| {
        let theirs = Timestamp::now() + SignedDuration::from_hours(2);
        let signed: Timestamp = heard.query("X-Amz-Date").parse().unwrap();
        if (theirs - signed).get_seconds().abs() < 60 {
            return None;
        }
        let mut refused = answer(403, &error("AccessDenied"));
        let date = rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&theirs).unwrap();
        refused.headers_mut().insert("date", date.parse().unwrap());
        Some(Reaction::Answer(refused))
    })
    .await;
    put(&there, "data").await.unwrap();
    assert_eq!(there.heard().len(), 2);
}

#[tokio::test]
async fn a_part_that_fails_is_sent_again_and_the_others_are_not() {
    let failed = Mutex::new(2);
    let there = store(move |heard, _| {
        let mut left = failed.lock().unwrap();
        if heard.query("partNumber") != "2" || *left == 0 {
            return None;
        }
        *left -= 1;
        say(503, &error("SlowDown"))
    })
    .await;
    put(&there, large()).await.unwrap();
    let heard = there.heard();
    let mut numbers: Vec<_> =
        of_kind(&heard, "PUT", "partNumber").iter().map(|part| part.query("partNumber")).collect();
    numbers.sort();
    assert_eq!(numbers, ["1", "2", "2", "2", "3"]);
    let again =
        of_kind(&heard, "PUT", "partNumber").into_iter().filter(|part| part.query("partNumber") == "2");
    assert_eq!(again.map(|part| part.port).collect::<HashSet<_>>().len(), 3, "by a connection of its own");
}

#[tokio::test]
async fn a_missing_output_fails_the_run() {
    type Case = (&'static str, fn(&Heard) -> Option<Reaction>, FailureKind, &'static str);
    let cases: [Case; 6] = [
        ("storm", |heard| (heard.method == "PUT").then(|| say(503, ""))?, FailureKind::Retryable, "503"),
        (
            "wrong signature",
            |heard| (heard.query("partNumber") == "3").then(|| say(403, &error("SignatureDoesNotMatch")))?,
            FailureKind::Auth,
            "SignatureDoesNotMatch",
        ),
        (
            "forgotten",
            |heard| (heard.query("partNumber") == "1").then(|| say(404, &error("NoSuchUpload")))?,
            FailureKind::Retryable,
            "NoSuchUpload",
        ),
        (
            "redirect",
            |heard| (heard.method == "PUT").then(|| say(307, &error("TemporaryRedirect")))?,
            FailureKind::Validation,
            "TemporaryRedirect",
        ),
        (
            "a late refusal",
            |heard| heard.body.starts_with(b"<Complete").then(|| say(200, &error("InternalError")))?,
            FailureKind::Retryable,
            "InternalError",
        ),
        (
            "a success that says nothing",
            |heard| heard.body.starts_with(b"<Complete").then(|| say(200, "<html>"))?,
            FailureKind::Retryable,
            "500",
        ),
    ];
    for (name, script, kind, word) in cases {
        let there = store(move |heard, _| script(heard)).await;
        let failure = put(&there, large()).await.unwrap_err();
        assert_eq!(failure.kind, kind, "{name}: {failure:?}");
        assert!(failure.safe_message.contains(word), "{name}: {failure:?}");
        assert_eq!(of_kind(&there.heard(), "DELETE", "uploadId").len(), 1, "{name}: nothing is left open");
    }
}

#[tokio::test]
async fn parts_that_come_after_an_abort_are_forgotten_too() {
    let list = |held: bool| {
        format!("<ListPartsResult>{}</ListPartsResult>", if held { "<Part></Part>" } else { "" })
    };
    let forbidden = || say(403, &error("AccessDenied"));
    for (name, late, aborts) in [("none", 0, 1), ("one that was late", 1, 2), ("ever more", usize::MAX, 3)] {
        let listed = AtomicUsize::new(0);
        let there = store(move |heard, _| match heard.method.as_str() {
            "PUT" => forbidden(),
            "GET" => say(200, &list(listed.fetch_add(1, Ordering::Relaxed) < late)),
            _ => None,
        })
        .await;
        put(&there, large()).await.unwrap_err();
        assert_eq!(of_kind(&there.heard(), "DELETE", "uploadId").len(), aborts, "{name}");
    }
    let there = store(move |heard, _| matches!(heard.method.as_str(), "PUT" | "GET").then(forbidden)?).await;
    put(&there, large()).await.unwrap_err();
    assert_eq!(
        of_kind(&there.heard(), "DELETE", "uploadId").len(),
        1,
        "who may write may not be allowed to list"
    );
}

#[tokio::test]
async fn four_parts_are_on_their_way_at_once() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let (go_on, may_go_on) = tokio::sync::watch::channel(false);
    let there = Peer::deciding(move |heard| {
        let mut may_go_on = may_go_on.clone();
        if !heard.query("partNumber").is_empty() {
            tell.send("part".to_owned()).unwrap();
        }
        async move {
            if !heard.query("partNumber").is_empty() {
                may_go_on.wait_for(|go| *go).await.unwrap();
            }
            behave(&heard)
        }
        .boxed()
    })
    .await;
    let target = target(&there);
    let output = RawOutput::bytes(bytes(5 * PART_BYTES as usize), "a/b");
    let watch = watch().0;
    let mut storing = target.store(&output, &watch);
    let four = async {
        for _ in 0..4 {
            until(&mut told, "part").await;
        }
    };
    tokio::select! {
        _ = &mut storing => panic!("the store holds all parts"),
        () = four => {}
    }
    assert_eq!(of_kind(&there.heard(), "PUT", "partNumber").len(), 4);
    go_on.send(true).unwrap();
    storing.await.unwrap();
    assert_eq!(of_kind(&there.heard(), "PUT", "partNumber").len(), 5);
}

#[tokio::test]
async fn an_output_is_cut_from_16_mib_on() {
    let there = store(|_, _| None).await;
    put(&there, bytes(PART_BYTES as usize - 1)).await.unwrap();
    assert_eq!(there.heard().len(), 1);
    put(&there, bytes(PART_BYTES as usize)).await.unwrap();
    assert_eq!(of_kind(&there.heard(), "PUT", "partNumber").len(), 1);
}

/// What a store says of the object that it made of these parts.
fn object(length: usize, checksum: Option<&str>) -> Option<Reaction> {
    let mut found = answer(200, "");
    found.headers_mut().insert("content-length", length.to_string().parse().unwrap());
    found.headers_mut().insert("etag", "\"whole\"".parse().unwrap());
    if let Some(checksum) = checksum {
        found.headers_mut().insert("x-amz-checksum-crc32c", checksum.parse().unwrap());
    }
    Some(Reaction::Answer(found))
}

/// The CRC-32C over those of the parts of `data`, as S3 writes it.
fn checksum(data: &[u8]) -> String {
    let parts: Vec<u8> =
        data.chunks(PART_BYTES as usize).flat_map(|part| crc32c::crc32c(part).to_be_bytes()).collect();
    let whole = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        crc32c::crc32c(&parts).to_be_bytes(),
    );
    format!("{whole}-{}", parts.len() / 4)
}

#[tokio::test]
async fn an_object_whose_making_was_not_answered_is_found() {
    let whole = checksum(&large());
    let cases = [
        (large().len(), Some(whole.clone()), true),
        (large().len(), Some("AAAAAA==-3".to_owned()), false),
        (large().len() - 1, Some(whole), false),
        // It knows no checksums, and does not say how old it is.
        (large().len(), None, false),
    ];
    for (length, told, is_stored) in cases {
        let (shown, made) = (told.clone(), AtomicUsize::new(0));
        let there = store(move |heard, _| match heard.method.as_str() {
            "HEAD" => object(length, told.as_deref()),
            // It makes the object, loses its answer, and knows the upload no more.
            "POST" if heard.query("uploads").is_empty() => match made.fetch_add(1, Ordering::Relaxed) {
                0 => say(503, ""),
                _ => say(404, &error("NoSuchUpload")),
            },
            "DELETE" => say(404, &error("NoSuchUpload")),
            _ => None,
        })
        .await;
        let stored = put(&there, large()).await;
        let asked = there
            .heard()
            .iter()
            .any(|heard| heard.method == "HEAD" && !heard.query("X-Amz-Signature").is_empty());
        assert!(asked, "{shown:?}");
        match stored {
            Ok(stored) => assert!(is_stored && stored.etag.as_deref() == Some("\"whole\""), "{stored:?}"),
            Err(failure) => {
                assert!(!is_stored && failure.kind == FailureKind::Retryable, "{failure:?}");
                assert!(failure.safe_message.contains("NoSuchUpload"), "{failure:?}");
            }
        }
    }
}

#[tokio::test]
async fn checksums_are_left_out_where_they_are_refused() {
    for status in [400, 501] {
        let there = store(move |heard, _| {
            let checked = heard.headers.keys().any(|name| name.as_str().starts_with("x-amz-checksum"));
            checked.then(|| say(status, &error("NotImplemented")))?
        })
        .await;
        put(&there, "data").await.unwrap();
        put(&there, large()).await.unwrap();
        assert!(!there.heard().last().unwrap().body.windows(8).any(|text| text == b"Checksum"));
    }
}

#[tokio::test]
async fn a_store_that_waited_too_long_for_bytes_is_asked_again() {
    let refused = AtomicUsize::new(0);
    let there = store(move |heard, _| {
        let refuses = heard.method == "PUT" && refused.fetch_add(1, Ordering::Relaxed) == 0;
        refuses.then(|| say(400, &error("RequestTimeout")))?
    })
    .await;
    put(&there, "data").await.unwrap();
    let [first, second] = &there.heard()[..] else { panic!("two requests") };
    assert_eq!(first.header("x-amz-checksum-sha256"), second.header("x-amz-checksum-sha256"));
    assert_ne!(first.port, second.port);
}

#[tokio::test]
async fn bytes_that_arrive_damaged_are_sent_again_and_never_unchecked() {
    for code in ["BadDigest", "IncompleteBody", "XAmzContentChecksumMismatch"] {
        let there = store(move |heard, _| (heard.method == "PUT").then(|| say(400, &error(code)))?).await;
        assert_eq!(put(&there, "data").await.unwrap_err().kind, FailureKind::Retryable);
        assert_eq!(there.heard().len(), 3, "{code}: as often as the settings say");
        assert!(there.heard().iter().all(|heard| heard.headers.contains_key("x-amz-checksum-sha256")));
    }
}

#[tokio::test]
async fn a_checksum_that_is_none_is_not_left_out() {
    let there = store(|heard, _| (heard.method == "PUT").then(|| say(400, &error("InvalidDigest")))?).await;
    put(&there, "data").await.unwrap_err();
    assert_eq!(there.heard().len(), 1);
}

#[tokio::test]
async fn a_part_that_arrives_damaged_is_sent_again() {
    let refused = AtomicUsize::new(0);
    let there = store(move |heard, _| {
        let refuses = heard.method == "PUT" && refused.fetch_add(1, Ordering::Relaxed) == 0;
        refuses.then(|| say(400, &error("BadDigest")))?
    })
    .await;
    put(&there, large()).await.unwrap();
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_sent_is_not_stored() {
    let (directory, data) = (tempfile::tempdir().unwrap(), large());
    for length in [1000, data.len()] {
        let path = directory.path().join("out");
        std::fs::write(&path, &data[..length]).unwrap();
        let (changed, count) = (path.clone(), AtomicUsize::new(0));
        // Every part is asked for once more, from what is another file by then.
        let there = store(move |heard, _| {
            let refuses = heard.method == "PUT" && count.fetch_add(1, Ordering::Relaxed) < 3;
            refuses.then(|| {
                let mut changed = std::fs::OpenOptions::new().write(true).open(&changed).unwrap();
                changed.write_all(&vec![7; length]).unwrap();
                say(503, "")
            })?
        })
        .await;
        let stored = target(&there).store(&RawOutput::file(path, "a/b"), &watch().0).await;
        assert_eq!(stored.unwrap_err().kind, FailureKind::Retryable, "{length}");
        assert!(of_kind(&there.heard(), "POST", "uploadId").is_empty());
    }
}

#[tokio::test]
async fn a_success_before_the_last_byte_is_none() {
    let (url, _server) = hasty().await;
    let told = json!({
        "bucket": "b", "key": "k", "region": "r", "endpoint": url, "access_key_id": "AKID",
        "secret_access_key": "hunter2",
    });
    let target = S3Target::new(told, transfers(), ByteLimit::Unlimited).unwrap();
    let output = crate::spool::Body::Bytes(bytes(PART_BYTES as usize - 1));
    let failure = target.put(&output, "a/b", &watch().0).await.unwrap_err();
    assert_eq!(failure.safe_message, "the store did not confirm the output");
}

/// A store that takes no second part, and whom it tells of that.
async fn store_that_hangs() -> (Peer, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    let there = store(move |heard, _| {
        let hangs = heard.query("partNumber") == "2";
        let method = heard.method.as_str();
        tell.send(if hangs { "hangs".to_owned() } else { method.to_owned() }).unwrap();
        hangs.then_some(Reaction::Silence)
    })
    .await;
    (there, told)
}

async fn until(told: &mut tokio::sync::mpsc::UnboundedReceiver<String>, word: &str) {
    while told.recv().await.expect("the store is there") != word {}
}

#[tokio::test]
async fn a_cancelled_upload_leaves_no_part_behind() {
    let (there, mut told) = store_that_hangs().await;
    let (watch, _) = watch();
    let (output, target) = (RawOutput::bytes(large(), "a/b"), target(&there));
    let mut storing = target.store(&output, &watch);
    tokio::select! {
        _ = &mut storing => panic!("the store hangs"),
        () = until(&mut told, "hangs") => assert!(watch.cancellation.cancel(CancelReason::Deadline)),
    }
    assert_eq!(storing.await.unwrap_err().kind, FailureKind::Canceled);
    assert_eq!(of_kind(&there.heard(), "DELETE", "uploadId").len(), 1);
}

#[tokio::test]
async fn a_dropped_upload_leaves_no_part_behind() {
    let (there, mut told) = store_that_hangs().await;
    let (output, target) = (RawOutput::bytes(large(), "a/b"), target(&there));
    let watch = watch().0;
    tokio::select! {
        _ = target.store(&output, &watch) => panic!("the store hangs"),
        () = until(&mut told, "hangs") => {}
    }
    until(&mut told, "DELETE").await;
    assert_eq!(there.heard().last().unwrap().query("uploadId"), "id%261");
}

#[tokio::test]
async fn an_upload_that_is_given_up_while_it_begins_is_forgotten() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let (go_on, may_go_on) = tokio::sync::watch::channel(false);
    let there = Peer::deciding(move |heard| {
        tell.send(heard.method.to_string()).unwrap();
        let mut may_go_on = may_go_on.clone();
        async move {
            if heard.query("uploads") == "1" {
                may_go_on.wait_for(|go| *go).await.unwrap();
            }
            behave(&heard)
        }
        .boxed()
    })
    .await;
    let (watch, _) = watch();
    let (output, target) = (RawOutput::bytes(large(), "a/b"), target(&there));
    let mut storing = target.store(&output, &watch);
    tokio::select! {
        _ = &mut storing => panic!("the store hangs"),
        () = until(&mut told, "POST") => assert!(watch.cancellation.cancel(CancelReason::User)),
    }
    assert_eq!(storing.await.unwrap_err().kind, FailureKind::Canceled);
    go_on.send(true).unwrap();
    until(&mut told, "DELETE").await;
    assert_eq!(there.heard().last().unwrap().query("uploadId"), "id%261");
}

#[test]
fn an_upload_outlives_the_runtime_that_dropped_it_until_it_is_forgotten() {
    let serving = tokio::runtime::Runtime::new().unwrap();
    let (there, mut told) = serving.block_on(store_that_hangs());
    let (targets, target) = targets(&there);
    let working = tokio::runtime::Runtime::new().unwrap();
    working.spawn(async move { target.store(&RawOutput::bytes(large(), "a/b"), &watch().0).await });
    serving.block_on(until(&mut told, "hangs"));
    assert_eq!(of_kind(&there.heard(), "DELETE", "uploadId").len(), 0);
    working.shutdown_background();
    targets.settle();
    assert_eq!(of_kind(&there.heard(), "DELETE", "uploadId").len(), 1);
}

#[tokio::test]
async fn a_bucket_may_be_the_name_of_a_host() {
    let there =
        store(|heard, _| (!heard.header("host").starts_with("b.localhost:")).then(|| say(404, ""))?).await;
    let mut told = told(&there);
    told["s3"]["endpoint"] = there.url.replace("127.0.0.1", "localhost").into();
    told["s3"]["path_style"] = false.into();
    let target = OutputTargets::new(&config(), transfers()).target(told.to_string().as_str().into()).unwrap();
    for data in [bytes(9), large()] {
        let stored = target.store(&RawOutput::bytes(data, "a/b"), &watch().0).await.unwrap();
        assert_eq!(stored.url, format!("{}/a/cat%201.png", there.url.replace("127.0.0.1", "b.localhost")));
    }
    assert!(there.heard().iter().all(|heard| heard.uri.path() == "/a/cat%201.png"));
}

#[tokio::test]
async fn nothing_is_sent_of_what_is_refused_here() {
    let there = store(|_, _| None).await;
    let too_large = put(&there, bytes((80 << 20) + 1)).await.unwrap_err();
    assert_eq!(too_large.kind, FailureKind::Validation);
    let untyped = RawOutput::bytes("x", "a/b\r\nx-evil: 1");
    assert_eq!(target(&there).store(&untyped, &watch().0).await.unwrap_err().kind, FailureKind::Internal);
    assert!(there.heard().is_empty());
}

#[tokio::test]
async fn a_name_is_judged_by_the_address_it_leads_to() {
    let there = store(|_, _| None).await;
    let told = json!({"s3": {
        "bucket": "b", "key": "k", "region": "r", "endpoint": there.url.replace("127.0.0.1", "localhost"),
        "access_key_id": "AKID", "secret_access_key": "hunter2",
    }});
    let targets = OutputTargets::new(&config(), Transfers::new(&config(), client_allowing(&[])));
    let target = targets.target(told.to_string().as_str().into()).unwrap();
    let failure = target.store(&RawOutput::bytes("x", "a/b"), &watch().0).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Validation);
    assert!(there.heard().is_empty());
}
