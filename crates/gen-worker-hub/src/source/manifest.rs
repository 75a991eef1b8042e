//! A list of files in the hub's JSON, read without guesses.

use gen_worker_core::{Algorithm, Digest};
use serde_json::{Map, Value};

use super::api::text;
use crate::{part::Promise, snapshot::FilePath};

/// Most files of a model; the largest repositories have some thousands.
const MAX_FILES: usize = 50_000;

/// One file as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) path: FilePath,
    /// Where it is; `None`: the manifest does not say.
    pub(crate) url: Option<String>,
    pub(crate) promise: Promise,
}

/// The files of a manifest, each below `prefix`. An entry that cannot be used makes the list useless: a file that is left
/// out silently is missed when the model is loaded.
pub(crate) fn files(manifest: &Map<String, Value>, prefix: Option<&str>) -> Result<Vec<Listed>, String> {
    let entries = ["files", "root_files"].into_iter().find_map(|key| manifest.get(key));
    let entries = match entries {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(entries)) if entries.len() <= MAX_FILES => entries,
        Some(Value::Array(_)) => return Err(format!("more than {MAX_FILES} files")),
        Some(_) => return Err("`files` is no list".to_owned()),
    };
    entries.iter().map(|entry| file(entry, prefix)).collect()
}

fn file(entry: &Value, prefix: Option<&str>) -> Result<Listed, String> {
    let entry = entry.as_object().ok_or("a file is no object")?;
    let written = text(entry, &["path"]).ok_or("a file has no path")?;
    let path = FilePath::parse(written).and_then(|path| match prefix {
        Some(prefix) => FilePath::parse(&format!("{prefix}/{path}")),
        None => Some(path),
    });
    let path = path.ok_or_else(|| format!("{written:?} is no path of a file"))?;
    let size_bytes = match ["size_bytes", "size"].into_iter().find_map(|key| entry.get(key)) {
        None | Some(Value::Null) => None,
        Some(size) => Some(size.as_u64().ok_or_else(|| format!("{path} has no size in bytes"))?),
    };
    let digest = digest(entry).map_err(|()| format!("{path} has no digest that can be read"))?;
    let url = text(entry, &["url"]).map(str::to_owned);
    Ok(Listed { path, url, promise: Promise { size_bytes, digest } })
}

/// The digest of an entry, in any of the ways it is written; `None`: it has none.
fn digest(entry: &Map<String, Value>) -> Result<Option<Digest>, ()> {
    if let Some(tagged) = text(entry, &["digest"]) {
        return tagged.parse().map(Some).map_err(drop);
    }
    let named = [
        ("sha256", Algorithm::Sha256),
        ("sha256_hex", Algorithm::Sha256),
        ("blake3", Algorithm::Blake3),
        ("blake3_hex", Algorithm::Blake3),
    ];
    for (key, algorithm) in named {
        if let Some(digits) = text(entry, &[key]) {
            let digits = digits.strip_prefix(&format!("{}:", algorithm.name())).unwrap_or(digits);
            return Digest::from_hex(algorithm, digits).map(Some).map_err(drop);
        }
    }
    Ok(None)
}

/// How many files these bytes list, if they are a manifest; all of them stay in their place.
///
/// # Panics
/// One does not.
#[cfg(any(test, feature = "fuzzing"))]
pub fn check(bytes: &[u8]) -> usize {
    let Ok(manifest) = serde_json::from_slice(bytes) else { return 0 };
    let listed = [None, Some("unet")].map(|prefix| files(&manifest, prefix).unwrap_or_default());
    for file in listed.iter().flatten() {
        let away = file.path.as_str().split('/').any(|part| matches!(part, "" | "." | ".."));
        assert!(!away, "{manifest:?}");
    }
    assert!(listed[1].iter().all(|file| file.path.as_str().starts_with("unet/")), "{manifest:?}");
    listed[0].len()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(manifest: &Value, prefix: Option<&str>) -> Result<Vec<Listed>, String> {
        files(manifest.as_object().unwrap(), prefix)
    }

    #[test]
    fn files_are_read_as_hubs_write_them() {
        let digest = Digest::of(Algorithm::Blake3, b"x");
        let sha = Digest::of(Algorithm::Sha256, b"x");
        let manifest = json!({"root_files": [
            {"path": "a/b.onnx", "url": "https://h/b", "size_bytes": 1, "blake3": digest.hex()},
            {"path": "/c", "url": "u", "size": 2, "blake3_hex": digest.to_string(), "more": [1]},
            {"path": "d", "digest": sha.to_string()},
            {"path": "e", "sha256": sha.hex(), "blake3": ""},
        ]});
        let found = read(&manifest, Some("unet")).unwrap();
        let shown =
            found.iter().map(|file| (file.path.as_str(), file.promise.size_bytes, file.promise.digest));
        assert_eq!(
            shown.collect::<Vec<_>>(),
            [
                ("unet/a/b.onnx", Some(1), Some(digest)),
                ("unet/c", Some(2), Some(digest)),
                ("unet/d", None, Some(sha)),
                ("unet/e", None, Some(sha)),
            ]
        );
        assert_eq!(read(&json!({}), None), Ok(Vec::new()));
    }

    /// Manifests with pieces that are wrong in every way: each is refused, or all its files stay in their place.
    #[test]
    fn no_manifest_leads_out_of_its_place() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let values = [
            json!(null),
            json!(1),
            json!(-1),
            json!(1e300),
            json!([]),
            json!({}),
            json!(""),
            json!(".."),
            json!("a"),
            json!("a/../b"),
            json!("/a\\..\\b"),
            json!("x/y.onnx"),
            json!(digest.to_string()),
            json!(digest.hex()),
        ];
        let keys = ["path", "path", "url", "size", "size_bytes", "digest", "sha256", "blake3", "other"];
        let mut random = fastrand::Rng::with_seed(4);
        let mut pick = |count: usize| random.usize(..count);
        let mut accepted = 0;
        for _ in 0..20_000 {
            let mut entry = Map::new();
            for _ in 0..=pick(4) {
                entry.insert(keys[pick(keys.len())].to_owned(), values[pick(values.len())].clone());
            }
            let manifest = json!({"files": [entry]});
            accepted += check(manifest.to_string().as_bytes());
        }
        assert!(accepted > 100, "{accepted}");
    }

    /// What the fuzzer found or was given to begin with.
    #[test]
    fn the_corpus_of_the_fuzzer_holds() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/manifest");
        let manifests = std::fs::read_dir(corpus).unwrap();
        let listed =
            manifests.map(|entry| check(&std::fs::read(entry.unwrap().path()).unwrap())).sum::<usize>();
        assert!(listed > 5, "{listed}");
    }

    #[test]
    fn an_entry_that_cannot_be_used_is_no_list() {
        for entry in [
            json!("a"),
            json!({"url": "u"}),
            json!({"path": "../a", "url": "u"}),
            json!({"path": "a/../../b"}),
            json!({"path": "a", "size": -1}),
            json!({"path": "a", "size": "12"}),
            json!({"path": "a", "blake3": "abcd"}),
            json!({"path": "a", "digest": "ab".repeat(32)}),
        ] {
            assert!(read(&json!({"files": [entry]}), None).is_err(), "{entry}");
            assert!(read(&json!({"files": [entry]}), Some("x")).is_err(), "{entry}");
        }
        assert!(read(&json!({"files": {}}), None).is_err());
    }
}
