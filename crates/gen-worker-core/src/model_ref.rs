//! References to models, parsed once; and what a reference becomes on disk.

use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use url::Url;

use crate::digest::Digest;

/// Longest reference accepted, in bytes; a signed URL has about 1,000.
const MAX_REF_BYTES: usize = 4096;

/// Where a model comes from.
///
/// | written | meaning |
/// |---|---|
/// | `org/repo`, `org/repo:tag`, `org/repo@sha256:…`, each also with `cozy:` in front | at the Cozy hub; no tag means `latest` |
/// | `hf:org/repo`, `hf:org/repo@revision`, each also with `#glob` behind | at Hugging Face; the glob says which files, `*` stays within a directory and `**` does not |
/// | `http://…`, `https://…` | that file |
/// | `file:/path` | that file or directory on this machine; never accepted from a payload |
///
/// Two spellings of one reference are equal.
#[derive(Clone)]
pub struct ModelRef {
    written: String,
    canonical: String,
    source: Source,
}

#[derive(Clone)]
enum Source {
    Hub { path: String, tag: Option<String>, digest: Option<Digest> },
    HuggingFace { repo: String, revision: Option<String>, files: Option<String> },
    Url(Url),
    File(PathBuf),
}

/// A reference to a model at the Cozy hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubRef<'a> {
    /// `org/repo`, or more segments.
    pub path: &'a str,
    /// The tag; `None`: `latest`.
    pub tag: Option<&'a str>,
    /// What the reference pins; a pinned reference needs no tag.
    pub digest: Option<Digest>,
}

/// A reference to a model at Hugging Face.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HuggingFaceRef<'a> {
    /// `org/repo`.
    pub repo: &'a str,
    /// A branch, tag or commit; `None`: `main`.
    pub revision: Option<&'a str>,
    /// Which files, as a glob; `None`: those that ONNX models are run from.
    pub files: Option<&'a str>,
}

/// Why a text is no model reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelRefError {
    /// The text is empty or longer than 4096 bytes.
    #[error("a model reference has 1 to {MAX_REF_BYTES} bytes")]
    Length,
    /// The text in front of the first colon is no known scheme.
    #[error("model reference scheme `{scheme}:` is not known; use org/repo, cozy:, hf:, https: or file:")]
    UnknownScheme {
        /// What stands in front of the colon.
        scheme: String,
    },
    /// The path has an empty, `.` or `..` segment or a character that no repository name has.
    #[error("`{path}` is no model path: segments of letters, digits, `.`, `_`, `-` separated by `/`")]
    Path {
        /// The path as written.
        path: String,
    },
    /// What follows `@` is no digest.
    #[error("what follows `@` must be `sha256:` or `blake3:` and 64 hexadecimal digits")]
    Digest,
    /// A `hf:` reference is not `org/repo`, or its revision or glob has a character that none has.
    #[error("`hf:` takes org/repo, org/repo@revision or org/repo#glob")]
    HuggingFace,
    /// The URL cannot be used.
    #[error("a model URL needs a host and no user name or password")]
    Url,
    /// A `file:` reference is not an absolute path.
    #[error("`file:` takes an absolute path")]
    File,
}

impl ModelRef {
    /// Parses a reference.
    ///
    /// # Errors
    /// The text follows none of the forms of the table above.
    pub fn parse(text: &str) -> Result<Self, ModelRefError> {
        let written = text.trim();
        if written.is_empty() || written.len() > MAX_REF_BYTES {
            return Err(ModelRefError::Length);
        }
        let source = parse_source(written)?;
        let canonical = source.canonical();
        Ok(Self { written: written.to_owned(), canonical, source })
    }

    /// The reference as it was written: how the scheduler knows it.
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// The reference as it may be shown: as it was written, but for a URL's query, which may carry a signature.
    pub fn known_as(&self) -> &str {
        match &self.source {
            Source::Url(_) => self.written.split(['?', '#']).next().unwrap_or_default(),
            Source::Hub { .. } | Source::HuggingFace { .. } | Source::File(_) => &self.written,
        }
    }

    /// The one spelling that all spellings of this reference share.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// The URL of a URL reference.
    pub fn url(&self) -> Option<&Url> {
        match &self.source {
            Source::Url(url) => Some(url),
            Source::Hub { .. } | Source::HuggingFace { .. } | Source::File(_) => None,
        }
    }

    /// A hub reference.
    pub fn hub(&self) -> Option<HubRef<'_>> {
        match &self.source {
            Source::Hub { path, tag, digest } => Some(HubRef { path, tag: tag.as_deref(), digest: *digest }),
            Source::HuggingFace { .. } | Source::Url(_) | Source::File(_) => None,
        }
    }

    /// A reference to a model at Hugging Face.
    pub fn hugging_face(&self) -> Option<HuggingFaceRef<'_>> {
        match &self.source {
            Source::HuggingFace { repo, revision, files } => {
                Some(HuggingFaceRef { repo, revision: revision.as_deref(), files: files.as_deref() })
            }
            Source::Hub { .. } | Source::Url(_) | Source::File(_) => None,
        }
    }

    /// The path below the hub's base URL of a hub reference: `org/repo`, or `org/repo:tag` when a tag was given.
    pub fn hub_path(&self) -> Option<String> {
        match &self.source {
            Source::Hub { path, tag: Some(tag), .. } => Some(format!("{path}:{tag}")),
            Source::Hub { path, .. } => Some(path.clone()),
            Source::HuggingFace { .. } | Source::Url(_) | Source::File(_) => None,
        }
    }

    /// The digest that a hub reference pins.
    pub fn digest(&self) -> Option<Digest> {
        match &self.source {
            Source::Hub { digest, .. } => *digest,
            Source::HuggingFace { .. } | Source::Url(_) | Source::File(_) => None,
        }
    }

    /// The path of a `file:` reference.
    pub fn file(&self) -> Option<&Path> {
        match &self.source {
            Source::File(path) => Some(path),
            Source::Hub { .. } | Source::HuggingFace { .. } | Source::Url(_) => None,
        }
    }
}

fn parse_source(text: &str) -> Result<Source, ModelRefError> {
    let scheme = text.split_once(':').filter(|(scheme, _)| !scheme.contains(['/', '@']));
    match scheme.map(|(scheme, rest)| (scheme.to_ascii_lowercase(), rest)) {
        Some((scheme, _)) if scheme == "http" || scheme == "https" => parse_url(text),
        Some((scheme, rest)) if scheme == "file" => parse_file(rest),
        Some((scheme, rest)) if scheme == "cozy" => parse_hub(rest),
        Some((scheme, rest)) if scheme == "hf" => parse_hugging_face(rest),
        Some((scheme, _)) => Err(ModelRefError::UnknownScheme { scheme }),
        None => parse_hub(text),
    }
}

fn parse_url(text: &str) -> Result<Source, ModelRefError> {
    let url = Url::parse(text).map_err(|_| ModelRefError::Url)?;
    let usable = url.has_host() && url.username().is_empty() && url.password().is_none();
    if usable { Ok(Source::Url(url)) } else { Err(ModelRefError::Url) }
}

fn parse_file(path: &str) -> Result<Source, ModelRefError> {
    let path = path.strip_prefix("//").unwrap_or(path);
    let below = path.strip_prefix('/').ok_or(ModelRefError::File)?;
    // Two slashes in front would be taken for those of a URL.
    Ok(Source::File(Path::new("/").join(below.trim_start_matches('/'))))
}

fn parse_hub(text: &str) -> Result<Source, ModelRefError> {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest.parse().map_err(|_| ModelRefError::Digest)?)),
        None => (text, None),
    };
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) => (path, Some(tag).filter(|t| !t.is_empty() && *t != "latest")),
        None => (name, None),
    };
    if !path.split('/').all(fits) || !tag.is_none_or(fits) {
        return Err(ModelRefError::Path { path: path.to_owned() });
    }
    Ok(Source::Hub { path: path.to_owned(), tag: tag.map(str::to_owned), digest })
}

fn parse_hugging_face(text: &str) -> Result<Source, ModelRefError> {
    // A prefix that is written twice is what the original accepts.
    let text = text.get(..3).filter(|start| start.eq_ignore_ascii_case("hf:")).map_or(text, |_| &text[3..]);
    let (name, files) = split(text, '#');
    let (repo, revision) = split(name, '@');
    let two = repo.split_once('/').is_some_and(|(org, repo)| fits(org) && fits(repo));
    let named = revision.is_none_or(|revision| revision.split('/').all(fits));
    let shown = files.is_none_or(|files| files.chars().all(|c| c.is_ascii_graphic()));
    if !(two && named && shown) {
        return Err(ModelRefError::HuggingFace);
    }
    Ok(Source::HuggingFace {
        repo: repo.to_owned(),
        revision: revision.map(str::to_owned),
        files: files.map(str::to_owned),
    })
}

/// What stands in front of the mark, and what behind it if there is something.
fn split(text: &str, mark: char) -> (&str, Option<&str>) {
    let (front, behind) = text.split_once(mark).unwrap_or((text, ""));
    (front, Some(behind).filter(|behind| !behind.is_empty()))
}

/// Whether this is fit for a segment of a path, or a tag.
fn fits(part: &str) -> bool {
    !matches!(part, "" | "." | "..") && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c))
}

impl Source {
    fn canonical(&self) -> String {
        match self {
            Self::Hub { path, digest: Some(digest), .. } => format!("cozy:{path}@{digest}"),
            Self::Hub { path, tag, .. } => format!("cozy:{path}:{}", tag.as_deref().unwrap_or("latest")),
            Self::HuggingFace { repo, revision, files } => {
                let revision = revision.as_ref().map(|revision| format!("@{revision}")).unwrap_or_default();
                let files = files.as_ref().map(|files| format!("#{files}")).unwrap_or_default();
                format!("hf:{repo}{revision}{files}")
            }
            Self::Url(url) => url.to_string(),
            Self::File(path) => format!("file:{}", path.display()),
        }
    }
}

impl FromStr for ModelRef {
    type Err = ModelRefError;

    fn from_str(text: &str) -> Result<Self, ModelRefError> {
        Self::parse(text)
    }
}

impl PartialEq for ModelRef {
    fn eq(&self, other: &Self) -> bool {
        self.canonical == other.canonical
    }
}

impl Eq for ModelRef {}

impl Hash for ModelRef {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.canonical.hash(state);
    }
}

impl fmt::Display for ModelRef {
    /// The canonical form without a URL's query, which may carry a signature.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Url(url) => f.write_str(&url[..url::Position::AfterPath]),
            Source::Hub { .. } | Source::HuggingFace { .. } | Source::File(_) => f.write_str(&self.canonical),
        }
    }
}

impl fmt::Debug for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A model whose files are on this machine, complete and verified.
#[derive(Debug, Clone)]
pub struct LocalModel {
    /// The reference it was asked for by.
    pub model: ModelRef,
    /// The directory that holds its files.
    pub root: PathBuf,
    /// Its files by path below the root, with `/` between segments.
    pub files: BTreeMap<String, PathBuf>,
    /// The sum of their sizes in bytes.
    pub size_bytes: u64,
    /// Keeps the files from being evicted while this or a clone of it is alive; `None`: nobody evicts them.
    pub pin: Option<Arc<dyn Any + Send + Sync>>,
}

/// Whether a text is a reference; if it is, its one spelling means itself and leads nowhere above its place.
///
/// # Panics
/// It is one, and that does not hold.
#[cfg(any(test, feature = "testing"))]
pub fn check(text: &str) -> bool {
    let Ok(model) = ModelRef::parse(text) else { return false };
    let again = ModelRef::parse(model.canonical()).expect("the one spelling is a reference");
    assert_eq!(again.canonical(), model.canonical(), "{text}");
    let path = model.hub_path().or_else(|| model.hugging_face().map(|repo| repo.repo.to_owned()));
    let stays = |path: &str| !path.split('/').any(|part| matches!(part, "" | "." | ".."));
    assert!(path.is_none_or(|path| stays(&path)), "{text}");
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn spellings_of_one_reference_are_equal() {
        for (written, canonical) in [
            ("org/repo", "cozy:org/repo:latest"),
            (" cozy:org/repo ", "cozy:org/repo:latest"),
            ("COZY:org/repo:", "cozy:org/repo:latest"),
            ("org/repo:v1", "cozy:org/repo:v1"),
            ("a/b/c.onnx", "cozy:a/b/c.onnx:latest"),
            ("https://Host.example:443/m.onnx", "https://host.example/m.onnx"),
            ("file:///models/m.onnx", "file:/models/m.onnx"),
            ("file:////models/m.onnx", "file:/models/m.onnx"),
            ("HF:hf:org/repo@", "hf:org/repo"),
            ("hf:org/repo@refs/pr/1#onnx/*.onnx", "hf:org/repo@refs/pr/1#onnx/*.onnx"),
        ] {
            assert_eq!(ModelRef::parse(written).unwrap().canonical(), canonical);
        }
        let pinned = ModelRef::parse(&format!("org/repo:v1@sha256:{HEX}")).unwrap();
        assert_eq!(pinned.canonical(), format!("cozy:org/repo@sha256:{HEX}"));
        assert_eq!(pinned.hub_path().unwrap(), "org/repo:v1");
    }

    #[test]
    fn refuses_what_could_leave_its_place() {
        for text in
            ["", "org/", "/repo", "a/../b", "a/./b", "foo:org/repo", "a b/c", "org/repo@v1", "file:rel"]
        {
            assert!(ModelRef::parse(text).is_err(), "{text}");
        }
        assert_eq!(ModelRef::parse("https://u:p@h/x").unwrap_err(), ModelRefError::Url);
    }

    #[test]
    fn a_reference_to_hugging_face_has_three_parts() {
        let model = ModelRef::parse("hf:org/repo@v1.0#*.onnx").unwrap();
        let parts = model.hugging_face().unwrap();
        assert_eq!((parts.repo, parts.revision, parts.files), ("org/repo", Some("v1.0"), Some("*.onnx")));
        for text in ["hf:one", "hf:", "hf:a/b/c", "hf:a/b@../x", "hf:a/b@x//y", "hf:a/b#x y", "hf:../b"] {
            assert_eq!(ModelRef::parse(text).unwrap_err(), ModelRefError::HuggingFace, "{text}");
        }
    }

    /// Texts made of the grammar's pieces.
    #[test]
    fn the_one_spelling_of_any_reference_means_itself() {
        const PIECES: [&str; 22] = [
            "cozy:",
            "hf:",
            "HF:",
            "http://",
            "https://h",
            "file:/",
            "org",
            "repo",
            "a",
            "/",
            "//",
            ":",
            "@",
            "#",
            "..",
            ".",
            "latest",
            "sha256:",
            HEX,
            "*",
            "é",
            "?q=1",
        ];
        let mut random = fastrand::Rng::with_seed(4);
        let mut parsed = 0;
        for _ in 0..50_000 {
            let text: String =
                (0..random.usize(1..9)).map(|_| PIECES[random.usize(..PIECES.len())]).collect();
            parsed += usize::from(check(&text));
        }
        assert!(parsed > 1000, "{parsed}");
    }

    /// What the fuzzer found or was given to begin with.
    #[test]
    fn the_corpus_of_the_fuzzer_holds() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/model_ref");
        let texts =
            std::fs::read_dir(corpus).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
        let parsed = texts.filter(|text| check(&String::from_utf8_lossy(text))).count();
        assert!(parsed > 10, "{parsed}");
    }

    #[test]
    fn a_signature_is_not_shown() {
        let model = ModelRef::parse("https://h/m.onnx?sig=abc").unwrap();
        assert_eq!(format!("{model} {model:?}"), "https://h/m.onnx https://h/m.onnx");
        assert_eq!(model.known_as(), "https://h/m.onnx");
    }
}
