//! The journal without a worker.

use std::{fs, sync::mpsc};

use bytes::Bytes;
use gen_worker_core::RunId;
use tempfile::TempDir;

use super::{
    record::{Codec, HEADER, decode},
    *,
};
use crate::wire::{kept::delivered, outbound};

fn key(run: &str) -> Key {
    (RunId::parse(run).unwrap(), 1)
}

fn result(run: &str, output: impl Into<Bytes>) -> Message {
    outbound::result(&key(run).0, 1, &Ok(output.into()))
}

fn keep(run: &str, output: impl Into<Bytes>) -> Change {
    Change::Keep { id: 0, key: key(run), message: result(run, output) }
}

/// The runs whose results a new process would send, oldest first.
fn undelivered(directory: &Path) -> Vec<String> {
    let store = Store::open(directory).unwrap();
    store.undelivered().into_iter().map(|(key, _)| key.0.as_str().to_owned()).collect()
}

fn size_of(directory: &Path) -> u64 {
    fs::metadata(directory.join("results.journal")).unwrap().len()
}

/// A file with these records, and where each starts.
fn file(messages: &[Message]) -> (Vec<u8>, Vec<usize>) {
    let codec = Codec::fresh();
    let (mut file, mut starts) = (codec.header(), Vec::new());
    for message in messages {
        starts.push(file.len());
        file.extend(codec.encode(message));
    }
    (file, starts)
}

#[test]
fn a_torn_record_is_dropped_and_never_those_before_it() {
    let messages = [result("a", "1"), delivered(&key("a").0, 1), result("b", vec![7; 100])];
    let (whole, mut ends) = file(&messages);
    ends.push(whole.len());
    for cut in HEADER..=whole.len() {
        let contents = decode(&whole[..cut]);
        let last = ends.iter().rposition(|end| *end <= cut).unwrap();
        assert_eq!(contents.messages, messages[..last], "cut at {cut}");
        assert_eq!((contents.corrupt, contents.torn), (0, cut - ends[last]), "cut at {cut}");
    }
}

#[test]
fn a_corrupt_record_costs_no_other() {
    let messages = [result("a", "1"), result("b", "2"), result("c", "3")];
    let (whole, starts) = file(&messages);
    for at in starts[1]..starts[2] {
        let mut broken = whole.clone();
        broken[at] ^= 0x20;
        let contents = decode(&broken);
        assert_eq!(contents.messages, [result("a", "1"), result("c", "3")], "byte {at}");
        assert_eq!((contents.corrupt, contents.torn), (starts[2] - starts[1], 0), "byte {at}");
    }
}

#[test]
fn an_output_that_looks_like_a_record_is_none() {
    let (forged, _) = file(&[result("forged", "")]);
    let (whole, _) = file(&[result("honest", forged[HEADER..].to_vec())]);
    assert!(decode(&whole[..whole.len() - 1]).messages.is_empty());
}

#[test]
fn what_was_not_delivered_is_there_for_the_next_process() {
    let directory = TempDir::new().unwrap();
    let mut store = Store::open(directory.path()).unwrap();
    store.write(vec![keep("a", "1"), keep("b", "2"), keep("c", "3")]).unwrap();
    store.write(vec![keep("a", "4"), Change::Forget(key("b"))]).unwrap();
    drop(store);
    assert_eq!(undelivered(directory.path()), ["c", "a"], "a was finished again after c");
    assert_eq!(undelivered(directory.path()), ["c", "a"], "reading delivers nothing");
}

#[test]
fn a_file_of_delivered_results_is_written_anew() {
    let directory = TempDir::new().unwrap();
    let mut store = Store::open(directory.path()).unwrap();
    store.write(vec![keep("stays", "x")]).unwrap();
    for _ in 0..40 {
        store.write(vec![keep("goes", vec![0; 100_000]), Change::Forget(key("goes"))]).unwrap();
        store.compact();
        assert!(size_of(directory.path()) < 1_300_000);
    }
    store.write(vec![keep("appended", "y")]).unwrap();
    drop(store);
    assert_eq!(undelivered(directory.path()), ["stays", "appended"]);
    assert!(size_of(directory.path()) < 1_000, "a start drops what is dead");
}

#[test]
fn a_journal_that_is_none_is_kept_aside() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("results.journal"), "something else").unwrap();
    assert!(undelivered(directory.path()).is_empty());
    let aside = fs::read(directory.path().join("results.journal.corrupt")).unwrap();
    assert_eq!(aside, b"something else");
}

#[test]
fn a_result_that_no_message_can_hold_is_kept_and_not_sent() {
    let directory = TempDir::new().unwrap();
    let (_journal, mut writer) = Journal::open(directory.path()).unwrap();
    writer.store.write(vec![keep("large", vec![0; 100]), keep("small", "")]).unwrap();
    let runs = |max| writer.undelivered(max).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(runs(50), [key("small")]);
    assert_eq!(runs(500), [key("large"), key("small")]);
}

#[test]
fn one_worker_has_a_directory() {
    let directory = TempDir::new().unwrap();
    let first = Journal::open(directory.path()).unwrap();
    assert!(matches!(Journal::open(directory.path()), Err(JournalError::Taken { .. })));
    drop(first);
    assert!(Journal::open(directory.path()).is_ok());
}

#[cfg(unix)]
#[test]
fn only_the_user_of_the_worker_reads_results() {
    use std::os::unix::fs::PermissionsExt;

    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("a/b");
    drop(Store::open(&directory).unwrap());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&directory.join("results.journal"))), (0o700, 0o600));
}

#[test]
fn a_result_may_be_sent_once_it_is_in_the_file() {
    let directory = TempDir::new().unwrap();
    let (journal, writer) = Journal::open(directory.path()).unwrap();
    let (told, heard) = mpsc::channel();
    let path = directory.path().join("results.journal");
    writer
        .start(move |ids| {
            let kept = decode(&fs::read(&path).unwrap()).messages.len();
            told.send((ids.to_vec(), kept)).unwrap();
        })
        .unwrap();
    assert!(journal.keep(7, key("a"), result("a", "1")));
    assert_eq!(heard.recv().unwrap(), (vec![7], 1));
    journal.close();
    assert!(!journal.keep(8, key("b"), result("b", "2")), "a closed journal takes nothing");
    assert_eq!(undelivered(directory.path()), ["a"], "and the directory is free");
}

#[cfg(target_os = "linux")]
#[test]
fn a_result_that_cannot_be_written_may_be_sent_all_the_same() {
    let directory = TempDir::new().unwrap();
    let (journal, mut writer) = Journal::open(directory.path()).unwrap();
    writer.store.write_to_full_disk();
    let (told, heard) = mpsc::channel();
    writer.start(move |ids| told.send(ids.to_vec()).unwrap()).unwrap();
    assert!(journal.keep(7, key("a"), result("a", "1")));
    assert_eq!(heard.recv().unwrap(), [7]);
    journal.close();
}
