//! What a model consists of: a list of files, each with where it is and what it must be.

use std::fmt;

use gen_worker_core::{Algorithm, Digest, ModelRef, Secret, TraceContext};
use gen_worker_net::Trust;
use url::Url;

use crate::part::Promise;

/// Longest path of a file in a model, in bytes.
const MAX_PATH_BYTES: usize = 1024;
/// Longest name in a path, in bytes; file systems allow 255.
const MAX_NAME_BYTES: usize = 255;

/// A model as its source has it at one time.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    /// What names this content for good; `None`: the source has no name for it.
    pub(crate) revision: Option<String>,
    pub(crate) files: Vec<RemoteFile>,
}

/// One file on a server.
#[derive(Debug, Clone)]
pub(crate) struct RemoteFile {
    pub(crate) path: FilePath,
    pub(crate) url: Url,
    pub(crate) trust: Trust,
    pub(crate) token: Option<Secret<String>>,
    /// Told to the origin of `url` only, as the token is.
    pub(crate) trace: Option<TraceContext>,
    /// Whether the address itself is the permission, and may expire.
    pub(crate) signed: bool,
    pub(crate) promise: Promise,
}

/// A path below a model's directory that cannot leave it, with `/` between names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FilePath(String);

impl Snapshot {
    /// The name of the directory that this content of this model has.
    pub(crate) fn key(&self, model: &ModelRef) -> String {
        let revision = self.revision.as_deref().map(|revision| format!("\n{revision}")).unwrap_or_default();
        // Whatever tag or branch led here.
        let name = match (&self.revision, model.hub(), model.hugging_face()) {
            (Some(_), Some(hub), _) => format!("cozy:{}", hub.path),
            // Which of its files are wanted is for the reference and for the settings to say.
            (Some(_), _, Some(repo)) => format!("hf:{}#{}", repo.repo, self.paths().join("\n")),
            _ => model.canonical().to_owned(),
        };
        Digest::of(Algorithm::Sha256, format!("{name}{revision}").as_bytes()).hex()
    }

    /// The paths of its files, in order.
    fn paths(&self) -> Vec<&str> {
        let mut paths: Vec<_> = self.files.iter().map(|file| file.path.as_str()).collect();
        paths.sort_unstable();
        paths
    }

    /// Its size in bytes, if each file's is known.
    pub(crate) fn size_bytes(&self) -> Option<u64> {
        self.files.iter().map(|file| file.promise.size_bytes).sum()
    }
}

impl FilePath {
    /// The path, if it stays below its directory and none of its names is one of ours. Backslashes count as slashes, and
    /// slashes in front are dropped, as the original does.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let path = text.replace('\\', "/");
        let path = path.trim_start_matches('/');
        let fits = |name: &str| {
            !matches!(name, "" | "." | ".." | ".complete.json")
                && name.len() <= MAX_NAME_BYTES
                && !name.chars().any(char::is_control)
        };
        (path.len() <= MAX_PATH_BYTES && path.split('/').all(fits)).then(|| Self(path.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_below_its_directory() {
        for (text, path) in [("a/b.onnx", "a/b.onnx"), ("/a", "a"), ("a\\b", "a/b"), ("é/x y", "é/x y")] {
            assert_eq!(FilePath::parse(text).unwrap().as_str(), path);
        }
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        for text in ["", "/", "..", "a/../b", "..\\b", "a//b", "a/", "./a", "a\nb", ".complete.json", &long] {
            assert_eq!(FilePath::parse(text), None, "{text}");
        }
    }

    fn file(path: &str) -> RemoteFile {
        RemoteFile {
            path: FilePath::parse(path).unwrap(),
            url: "http://h/f".parse().unwrap(),
            trust: Trust::Operator,
            token: None,
            trace: None,
            signed: false,
            promise: Promise::default(),
        }
    }

    #[test]
    fn tags_that_lead_to_one_snapshot_share_it() {
        let of = |text: &str, revision: Option<&str>, paths: &[&str]| {
            let files = paths.iter().map(|path| file(path)).collect();
            let snapshot = Snapshot { revision: revision.map(str::to_owned), files };
            snapshot.key(&ModelRef::parse(text).unwrap())
        };
        let key = |text, revision| of(text, revision, &["a", "b"]);
        assert_eq!(key("a/b:v1", Some("s")), key("cozy:a/b", Some("s")));
        assert_ne!(key("a/b", Some("s")), key("a/b", Some("t")));
        assert_ne!(key("a/b", Some("s")), key("a/c", Some("s")));
        assert_ne!(key("a/b:v1", None), key("a/b", None));
        assert_eq!(key("hf:a/b@main", Some("s")), key("hf:a/b", Some("s")));
        // What is selected of a repository also depends on settings.
        assert_eq!(of("hf:a/b#*", Some("s"), &["b", "a"]), key("hf:a/b", Some("s")));
        assert_ne!(of("hf:a/b#*", Some("s"), &["a"]), of("hf:a/b#*", Some("s"), &["a", "b"]));
    }
}
