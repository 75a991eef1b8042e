//! A model that is one file: at a URL, or at the hub's base URL plus its path.

use gen_worker_net::Trust;
use url::Url;

use super::api::Api;
use crate::{
    part::Promise,
    snapshot::{FilePath, RemoteFile},
};

/// The file's name when its address has none.
const DEFAULT_NAME: &str = "model.bin";
/// Longest file name taken from an address, in bytes; file systems allow 255.
const MAX_NAME_BYTES: usize = 200;

/// A file at a URL, which anybody may have named: no credential goes there.
pub(crate) fn url(url: &Url) -> RemoteFile {
    RemoteFile {
        path: file_name(url.path()),
        url: url.clone(),
        trust: Trust::Payload,
        token: None,
        trace: None,
        signed: false,
        promise: Promise::default(),
    }
}

/// A file at the hub: its URL plus the reference.
pub(crate) fn hub(base: &Url, api: &Api<'_>) -> RemoteFile {
    let path = api.model.hub_path().unwrap_or_default();
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", url.path().trim_end_matches('/')));
    RemoteFile {
        path: file_name(&path),
        url,
        trust: Trust::Operator,
        token: api.token.cloned(),
        trace: api.trace.cloned(),
        signed: false,
        promise: Promise { size_bytes: None, digest: api.model.digest() },
    }
}

/// The last segment without a tag, if it is fit for a file's name.
fn file_name(path: &str) -> FilePath {
    let last = path.rsplit('/').next().unwrap_or_default();
    let name = last.split(':').next().unwrap_or_default();
    let fits = !name.is_empty()
        && !name.starts_with('.')
        && name.len() <= MAX_NAME_BYTES
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c));
    FilePath::parse(if fits { name } else { DEFAULT_NAME }).expect("such names are paths")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_directory() {
        for (path, name) in [
            ("org/repo:v1", "repo"),
            ("a/b/c.onnx", "c.onnx"),
            ("/", DEFAULT_NAME),
            ("/a/..", DEFAULT_NAME),
            ("/a/.complete.json", DEFAULT_NAME),
            ("/a/x%2F..%2Fy", DEFAULT_NAME),
        ] {
            assert_eq!(file_name(path).as_str(), name, "{path}");
        }
    }
}
