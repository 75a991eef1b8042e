//! A model that is one file: at a URL, or at the hub's base URL plus its path.

use gen_worker_core::{Digest, ModelRef, Secret};
use gen_worker_net::Trust;
use url::Url;

use crate::{config::HubConfig, error::HubError};

/// The file's name when its address has none.
const DEFAULT_NAME: &str = "model.bin";
/// Longest file name taken from an address, in bytes; file systems allow 255.
const MAX_NAME_BYTES: usize = 200;

/// One file on a server.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(crate) url: Url,
    pub(crate) trust: Trust,
    pub(crate) token: Option<Secret<String>>,
    /// What the reference says its digest is.
    pub(crate) digest: Option<Digest>,
    pub(crate) file_name: String,
}

/// A file at a URL, which anybody may have named: no credential goes there.
pub(crate) fn url(url: &Url) -> Remote {
    Remote {
        url: url.clone(),
        trust: Trust::Payload,
        token: None,
        digest: None,
        file_name: file_name(url.path()),
    }
}

/// A file at the hub.
pub(crate) fn hub(config: &HubConfig, model: &ModelRef, path: &str) -> Result<Remote, HubError> {
    let mut url = config.hub_url.clone().ok_or(HubError::NoHub)?;
    url.set_path(&format!("{}/{path}", url.path().trim_end_matches('/')));
    Ok(Remote {
        url,
        trust: Trust::Operator,
        token: config.hub_token.clone(),
        digest: model.digest(),
        file_name: file_name(path),
    })
}

/// The last segment without a tag, if it is fit for a file's name.
fn file_name(path: &str) -> String {
    let last = path.rsplit('/').next().unwrap_or_default();
    let name = last.split(':').next().unwrap_or_default();
    let fits = !name.is_empty()
        && !name.starts_with('.')
        && name.len() <= MAX_NAME_BYTES
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c));
    if fits { name } else { DEFAULT_NAME }.to_owned()
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
            assert_eq!(file_name(path), name, "{path}");
        }
    }
}
