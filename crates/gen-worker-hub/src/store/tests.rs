//! The store on a real disk.

use std::time::{Duration, SystemTime};

use super::*;
use crate::error::HubError;

struct Bench {
    cache: tempfile::TempDir,
    store: Store,
}

fn model(text: &str) -> ModelRef {
    ModelRef::parse(text).unwrap()
}

impl Bench {
    fn new(limit: Option<u64>) -> Self {
        let cache = tempfile::tempdir().unwrap();
        let store = Store::new(cache.path(), limit);
        store.prepare().unwrap();
        Self { cache, store }
    }

    /// Publishes files under a key, as a download does, and sets when it was last asked for.
    fn publish(&self, key: &str, files: &[(&str, &[u8])], hour: u64) -> Entry {
        let entry = self.store.entry(key);
        entry.build().unwrap();
        let marked = files.iter().map(|(path, content)| {
            let digest = Digest::of(Algorithm::Sha256, content);
            let object = self.store.object(digest);
            fs::write(&object, content).unwrap();
            entry.adopt(&FilePath::parse(path).unwrap(), &object).unwrap();
            MarkedFile {
                path: (*path).to_owned(),
                size_bytes: content.len() as u64,
                digest: digest.to_string(),
            }
        });
        let marker = Marker { written: key.to_owned(), revision: None, files: marked.collect() };
        entry.publish(&model("org/repo"), &marker).unwrap();
        let pin = File::options().append(true).open(&entry.pin).unwrap();
        pin.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(hour * 3600)).unwrap();
        entry
    }

    fn objects(&self) -> usize {
        list(&self.cache.path().join("objects/sha256")).count()
    }
}

fn is_there(entry: &Entry) -> bool {
    matches!(entry.look(), Verdict::Whole(_))
}

#[test]
fn a_published_model_is_opened() {
    let bench = Bench::new(None);
    let entry = bench.publish("k", &[("unet/m.onnx", b"abc"), ("index.json", b"{}")], 1);
    let local = entry.open(&model("org/repo")).unwrap();
    assert_eq!((local.size_bytes, fs::read(&local.files["unet/m.onnx"]).unwrap()), (5, b"abc".to_vec()));
    assert!(bench.store.entry("other").open(&model("org/repo")).is_none());
    assert!(!bench.store.entry("other").pin.exists());
}

#[test]
fn a_reference_is_remembered_while_its_model_is_there() {
    let bench = Bench::new(None);
    let led = Led { written: "org/repo".to_owned(), key: "k".to_owned(), asked: None, pickles: false };
    bench.store.remember(&model("org/repo"), &led).unwrap();
    assert_eq!(bench.store.recall(&model("cozy:org/repo:latest")).unwrap().key, "k");
    assert!(bench.store.scan().is_empty());
    bench.publish("k", &[("m", b"abc")], 1);
    assert_eq!(bench.store.scan(), [("org/repo".to_owned(), "k".to_owned())]);
}

#[test]
fn a_directory_that_lacks_something_is_no_model() {
    let bench = Bench::new(None);
    for lost in ["m.onnx", MARKER] {
        let entry = bench.publish("k", &[("m.onnx", b"abc")], 1);
        fs::remove_file(entry.home.join(lost)).unwrap();
        assert!(entry.open(&model("org/repo")).is_none(), "{lost}");
    }
    // Publishing again takes the broken one's place, without what the earlier attempt left.
    let entry = bench.store.entry("k");
    entry.build().unwrap();
    fs::write(entry.building.join("old.onnx"), b"x").unwrap();
    let local = bench.publish("k", &[("m.onnx", b"abc")], 1).open(&model("org/repo")).unwrap();
    assert!(!local.root.join("old.onnx").exists());
}

#[test]
fn models_share_their_files() {
    let bench = Bench::new(Some(100));
    bench.publish("a", &[("one", &[1; 40]), ("both", &[2; 40])], 1);
    bench.publish("b", &[("two", &[3; 20]), ("both", &[2; 40])], 2);
    assert_eq!((bench.objects(), bench.store.used()), (3, 100));
    let swept = bench.store.make_room(10).unwrap();
    assert_eq!((swept.models, swept.bytes, bench.objects()), (vec!["a".to_owned()], 40, 2));
    assert!(is_there(&bench.store.entry("b")));
}

#[test]
fn what_was_not_asked_for_for_longest_goes_first_and_what_is_in_use_never() {
    let bench = Bench::new(Some(100));
    let old = bench.publish("z-old", &[("m", &[1; 40])], 1);
    let new = bench.publish("a-new", &[("m", &[2; 40])], 2);
    let used = old.open(&model("org/repo")).unwrap();
    old.open(&model("org/repo")).unwrap();
    assert_eq!(bench.store.make_room(60).unwrap().models, ["a-new"]);
    assert!(is_there(&old) && !new.home.exists());
    let error = bench.store.make_room(61).unwrap_err();
    assert!(matches!(error, HubError::OverLimit { need: 61, have: 60 }), "{error:?}");
    drop(used);
    assert_eq!(bench.store.make_room(61).unwrap().models, ["z-old"]);
    assert_eq!((bench.objects(), bench.store.used()), (0, 0));
}

#[test]
fn what_was_made_of_a_model_counts_and_goes_with_it() {
    let bench = Bench::new(Some(100));
    let old = bench.publish("old", &[("unet/m", &[1; 30])], 1);
    let new = bench.publish("new", &[("m", &[2; 20])], 2);
    let kept = old.home.join("unet/.ort/1.0-cpu/m");
    fs::create_dir_all(&kept).unwrap();
    fs::write(kept.join("weights.bin"), [3; 40]).unwrap();
    assert_eq!(bench.store.used(), 90);
    let swept = bench.store.make_room(11).unwrap();
    assert_eq!((swept.models, swept.bytes, bench.store.used()), (vec!["old".to_owned()], 70, 20));
    assert!(is_there(&new));
}

#[test]
fn a_model_that_is_being_built_is_not_evicted() {
    let bench = Bench::new(Some(10));
    let entry = bench.publish("k", &[("m", &[1; 10])], 1);
    let lock = Lock::take(&entry.lock).unwrap().unwrap();
    assert!(bench.store.make_room(10).is_err() && is_there(&entry));
    drop(lock);
    assert_eq!(bench.store.make_room(10).unwrap().models.len(), 1);
}

#[test]
fn what_alone_exceeds_the_limit_makes_nobody_go() {
    let bench = Bench::new(Some(100));
    let entry = bench.publish("k", &[("m", &[1; 10])], 1);
    let error = bench.store.make_room(101).unwrap_err();
    assert!(matches!(error, HubError::OverLimit { need: 101, have: 100 }), "{error:?}");
    assert!(is_there(&entry));
}

/// Whoever looks whether it is used holds it for a moment, and others who want it then must not find it missing.
#[test]
fn a_model_is_looked_at_only_while_nobody_can_miss_it() {
    let bench = Bench::new(None);
    let entry = bench.publish("k", &[("m", b"abc")], 1);
    assert!(!entry.is_used());
    let used = entry.open(&model("org/repo")).unwrap();
    assert!(entry.is_used());
    drop(used);
    let _built = Lock::take(&entry.lock).unwrap().unwrap();
    assert!(entry.is_used(), "those who build or mend it");
    assert_eq!(list(&bench.cache.path().join("models")).count(), 3, "no lock but theirs");
}

#[test]
fn more_than_the_disk_has_is_refused_before_the_first_byte() {
    let bench = Bench::new(None);
    let error = bench.store.make_room(1 << 60).unwrap_err();
    assert!(matches!(error, HubError::NoRoom { need, .. } if need == 1 << 60), "{error:?}");
}

#[test]
fn leftovers_are_swept_when_they_are_old_and_nobody_has_them() {
    let bench = Bench::new(None);
    let root = bench.cache.path();
    for name in ["a.part", "a.json", "b.part"] {
        fs::write(root.join("partial").join(name), b"abc").unwrap();
    }
    fs::create_dir(root.join("models/k.building")).unwrap();
    fs::create_dir(root.join("models/k.1.gone")).unwrap();
    fs::create_dir_all(root.join("quarantine/k.1")).unwrap();
    fs::write(bench.store.object(Digest::of(Algorithm::Sha256, b"abc")), b"abc").unwrap();
    let kept = bench.publish("kept", &[("m", b"kept")], 1);
    let _held = Lock::take(&root.join("partial/b.lock")).unwrap().unwrap();

    let soon = SystemTime::now();
    assert_eq!(bench.store.sweep(soon).unwrap(), 0);
    assert_eq!(bench.store.sweep(soon + Duration::from_secs(8 * 24 * 3600)).unwrap(), 6);
    let names = |directory: &str| {
        let names = list(&root.join(directory)).map(|path| path.file_name().unwrap().to_owned());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names("partial"), ["b.lock", "b.part"]);
    assert_eq!((names("quarantine").len(), bench.objects()), (0, 1));
    assert!(is_there(&kept));
    assert_eq!(names("models"), ["kept", "kept.pin"], "neither what is old nor a lock of it");
}

#[tokio::test(start_paused = true)]
async fn a_lock_keeps_others_out_until_its_file_is_gone() {
    let bench = Bench::new(None);
    let path = bench.cache.path().join("lock");
    let held = Lock::wait(&path).await.unwrap();
    let minute = Duration::from_secs(60);
    assert!(tokio::time::timeout(minute, Lock::wait(&path)).await.is_err());
    let waiting = tokio::time::timeout(minute, Lock::wait(&path));
    let (next, ()) = tokio::join!(waiting, async { held.remove().unwrap() });
    let _next = next.unwrap().unwrap();
    assert!(Lock::take(&path).unwrap().is_none());
}
