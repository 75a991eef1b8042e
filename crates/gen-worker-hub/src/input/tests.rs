//! Inputs against a file server.

use std::fs as files;

use gen_worker_core::{Classify, FailureKind, RunId, Secret, TenantId};

use super::*;
use crate::testing::{Answer, FileServer, client, config};

const CONTENT: &[u8] = b"\x89PNG\r\n\x1a\n and so on";

fn scope(server: &FileServer) -> RunScope {
    RunScope {
        run_id: RunId::parse("run").unwrap(),
        tenant_id: Some(TenantId::parse("tenant").unwrap()),
        file_base_url: Some(server.url("/files").parse().unwrap()),
        file_token: Some(Secret::from("run-token")),
        trace: None,
    }
}

fn asset(reference: &str) -> AssetRef {
    AssetRef {
        reference: reference.to_owned(),
        tenant_id: Some("another".to_owned()),
        mime_type: None,
        size_bytes: None,
        sha256: None,
    }
}

/// Fetches with the worker's limit, and says what is left in the run's directory.
async fn fetch_from(
    server: &FileServer,
    asset: AssetRef,
    allow: &[&str],
) -> (Result<(LocalFile, Vec<u8>), HubError>, usize) {
    let directory = tempfile::tempdir().unwrap();
    let inputs = directory.path().join("inputs");
    let config = config(directory.path(), server);
    let fetched = fetch(&config, &client(allow), &Meters::default(), &scope(server), &asset, &inputs).await;
    let fetched = fetched.map(|file| {
        let content = files::read(&file.path).unwrap();
        (file, content)
    });
    (fetched, files::read_dir(inputs).map_or(0, Iterator::count))
}

async fn error_of(server: &FileServer, asset: AssetRef) -> HubError {
    let (fetched, left) = fetch_from(server, asset, &["127.0.0.1"]).await;
    assert_eq!(left, 0);
    fetched.unwrap_err()
}

#[tokio::test]
async fn a_stored_file_is_fetched_as_the_runs_tenant() {
    let server = FileServer::start(CONTENT, &[Answer::Status(503)]).await;
    let (fetched, left) = fetch_from(&server, asset("/a/cat pic"), &[]).await;
    let (file, content) = fetched.unwrap();
    let key = Digest::of(Algorithm::Sha256, b"/a/cat pic").hex();
    assert_eq!(file.path.file_name().unwrap().to_str().unwrap(), format!("{}.png", &key[..32]));
    assert_eq!(file.mime_type.unwrap(), "image/png");
    assert_eq!(file.sha256, Digest::of(Algorithm::Sha256, CONTENT).hex());
    assert_eq!((file.size_bytes, content.as_slice(), left), (CONTENT.len() as u64, CONTENT, 1));
    assert_eq!(server.paths(), ["/files/api/v1/file/a/cat%20pic"; 2]);
    assert_eq!(server.seen("authorization"), ["Bearer run-token"; 2]);
    assert_eq!(server.seen("x-cozy-tenant-id"), ["tenant"; 2]);
}

#[tokio::test]
async fn a_url_is_fetched_without_credentials() {
    let server = FileServer::start(CONTENT, &[]).await;
    let url = server.url("/cat.gif?sig=hunter2");
    let (fetched, _) = fetch_from(&server, asset(&url), &["127.0.0.1"]).await;
    let (file, _) = fetched.unwrap();
    assert_eq!(file.path.extension().unwrap(), "gif");
    assert_eq!(
        (server.seen("authorization"), server.seen("x-cozy-tenant-id")),
        (vec![String::new()], vec![String::new()])
    );

    let (fetched, _) = fetch_from(&server, asset(&url), &[]).await;
    let error = fetched.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Validation);
    assert_eq!(
        error.safe_message(),
        format!("input {}: the URL's address is blocked", server.url("/cat.gif"))
    );
}

#[tokio::test]
async fn content_that_is_not_what_was_promised_is_fetched_once_more_and_then_refused() {
    let claiming = |digest: String| AssetRef { sha256: Some(digest), ..asset("a") };
    let right = claiming(Digest::of(Algorithm::Sha256, CONTENT).hex());
    for asset in [asset("a"), right] {
        let server = FileServer::start(CONTENT, &[Answer::Corrupt]).await;
        let (fetched, _) = fetch_from(&server, asset.clone(), &[]).await;
        assert_eq!((fetched.unwrap().1.as_slice(), server.paths().len()), (CONTENT, 2));
        server.answer(&[Answer::Corrupt; 3]);
        // The file API says the same as the caller, so the transfer is at fault.
        assert_eq!(error_of(&server, asset).await.kind(), FailureKind::Retryable);
        assert_eq!(server.paths().len(), 4);
    }

    let server = FileServer::start(CONTENT, &[]).await;
    for (reference, requests) in [("a".to_owned(), 2), (server.url("/a"), 4)] {
        let error = error_of(&server, AssetRef { reference, ..claiming("00".repeat(32)) }).await;
        assert!(matches!(error, HubError::InputDigest { .. }), "{error:?}");
        assert_eq!(server.paths().len(), requests);
    }
    let malformed = AssetRef { sha256: Some("abc".to_owned()), ..asset("a") };
    assert_eq!(error_of(&server, malformed).await.kind(), FailureKind::Validation);
}

#[tokio::test]
async fn a_file_beyond_the_limit_is_refused_announced_or_not() {
    let large = vec![0; (1 << 20) + 1];
    let announced = FileServer::start(&large, &[]).await;
    let lied = [("x-cozy-size-bytes", "5")];
    let lied = FileServer::with_headers(&large, &[], &lied, 100).await;
    for server in [announced, lied] {
        let error = error_of(&server, asset("a")).await;
        assert!(matches!(error, HubError::InputTooLarge { max: 1_048_576, .. }), "{error:?}");
        assert_eq!(error.kind(), FailureKind::Validation);
    }
}

#[tokio::test]
async fn refusals_are_told_apart() {
    for (status, kind, message) in [
        (404, FailureKind::Validation, "input a/b not found"),
        (403, FailureKind::Auth, "input a/b read unauthorized (403): check file_token validity"),
        (400, FailureKind::Validation, "input a/b: a server answered 400"),
    ] {
        let server = FileServer::start(CONTENT, &[Answer::Status(status)]).await;
        let error = error_of(&server, asset("a/b")).await;
        assert_eq!((error.kind(), error.safe_message().as_str()), (kind, message));
        assert_eq!(server.paths().len(), 1);
    }
}

/// Not even at a host that the operator trusts: who put it there may want it sent elsewhere.
#[tokio::test]
async fn a_url_with_a_user_is_not_asked_for() {
    let server = FileServer::start(CONTENT, &[]).await;
    let url = format!("http://user:hunter2@{}/cat.png", server.address);
    let error = error_of(&server, asset(&url)).await;
    assert_eq!((error.kind(), server.paths().len()), (FailureKind::Validation, 0));
    assert!(!format!("{error:?} {}", error.safe_message()).contains("hunter2"));
}

/// No credential of the worker's goes to a URL, so none is at fault: the caller named it.
#[tokio::test]
async fn a_url_that_refuses_is_the_callers_fault() {
    for status in [401, 403] {
        let server = FileServer::start(CONTENT, &[Answer::Status(status)]).await;
        let error = error_of(&server, asset(&server.url("/cat.png?sig=1"))).await;
        assert_eq!((error.kind(), server.paths().len()), (FailureKind::Validation, 1));
        let message = format!("input {} answered {status}: its URL must", server.url("/cat.png"));
        assert!(error.safe_message().starts_with(&message), "{}", error.safe_message());
    }
}

#[tokio::test]
async fn a_way_out_of_the_file_api_is_not_tried() {
    let server = FileServer::start(CONTENT, &[]).await;
    let error = error_of(&server, asset("../admin")).await;
    assert!(matches!(error, HubError::InputRef { .. }), "{error:?}");
    assert!(server.paths().is_empty());
}

#[tokio::test]
async fn a_tenants_file_is_kept_for_its_later_runs_and_for_no_other() {
    let server = FileServer::start(CONTENT, &[]).await;
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), &server);
    let get = async |tenant: &str, run: &str| {
        let scope = RunScope { tenant_id: Some(TenantId::parse(tenant).unwrap()), ..scope(&server) };
        let file = fetch(
            &config,
            &client(&[]),
            &Meters::default(),
            &scope,
            &asset("a"),
            &directory.path().join(run),
        )
        .await?;
        assert_eq!(files::read(&file.path).unwrap(), CONTENT);
        assert_eq!(file.mime_type.unwrap(), "image/png");
        Ok::<_, HubError>(file.path)
    };
    let kept = || {
        let owners = files::read_dir(directory.path().join("kept")).unwrap();
        let files = owners.flat_map(|owner| files::read_dir(owner.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().path()).collect::<Vec<_>>()
    };
    let first = get("one", "1").await.unwrap();
    let [once] = &kept()[..] else { panic!("one file") };
    // To prove where the second comes from: the server has something else by now, and says the same of it.
    server.answer(&[Answer::Corrupt; 3]);
    get("one", "2").await.unwrap();
    get("two", "3").await.unwrap_err();
    get("two", "3").await.unwrap();
    assert_eq!((server.paths().len(), kept().len()), (5, 2));

    // What a function did to its own file is nobody else's.
    files::write(&first, b"scribbled").unwrap();
    assert_eq!(files::read(once).unwrap(), b"scribbled");
    get("one", "4").await.unwrap();
    assert_eq!(files::read(once).unwrap(), CONTENT);
}
