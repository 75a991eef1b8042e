//! Hugging Face: a revision's commit, its files, and which of them are wanted.

use std::collections::BTreeSet;

use gen_worker_core::{Algorithm, Digest, HuggingFaceRef};
use gen_worker_net::Trust;
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::{
    Resolved,
    api::{Api, text},
};
use crate::{
    config::HubConfig,
    error::HubError,
    part::Promise,
    select::{Nothing, components, select},
    snapshot::{FilePath, RemoteFile, Snapshot},
};

/// The length of a commit's name.
const COMMIT_HEX: usize = 40;

/// A file as the model's page lists it.
#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

/// A large file's content, by its digest.
#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: Option<String>,
    oid: Option<String>,
    size: Option<u64>,
}

/// A repository at one commit.
struct Repository<'a> {
    config: &'a HubConfig,
    endpoint: &'a Url,
    name: &'a str,
    commit: String,
}

pub(crate) async fn resolve(
    config: &HubConfig,
    api: &Api<'_>,
    repo: HuggingFaceRef<'_>,
) -> Result<Resolved, HubError> {
    let endpoint = config.hf_endpoint.as_ref().ok_or(HubError::NoHub)?;
    let revision = repo.revision.unwrap_or("main");
    let mut page = below(endpoint, &["api", "models"], repo.repo.split('/'));
    push(&mut page, ["revision", revision]);
    page.set_query(Some("blobs=true"));
    let page = api.success(api.ask(&page).await?)?;
    let commit = text(&page, &["sha"]).filter(|sha| is_commit(sha));
    let commit = commit.ok_or_else(|| api.listing("it names no commit"))?.to_owned();
    let siblings = page.get("siblings").cloned().unwrap_or(Value::Null);
    let siblings: Vec<Sibling> =
        serde_json::from_value(siblings).map_err(|_| api.listing("its files cannot be read"))?;
    let repository = Repository { config, endpoint, name: repo.repo, commit };
    let moves = revision != repository.commit;
    let files = repository.wanted(api, &siblings, repo.files).await?;
    let snapshot = Snapshot { revision: Some(repository.commit), files };
    Ok(Resolved { snapshot, moves, source: "huggingface" })
}

impl Repository<'_> {
    async fn wanted(
        &self,
        api: &Api<'_>,
        siblings: &[Sibling],
        glob: Option<&str>,
    ) -> Result<Vec<RemoteFile>, HubError> {
        let all: Vec<_> = siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
        let components = match glob {
            None if all.contains(&"model_index.json") => Some(self.components(api).await?),
            None | Some(_) => None,
        };
        let model = || api.model.to_string();
        let wanted = select(&all, glob, components.as_ref(), self.config.allow_pickle);
        let wanted: BTreeSet<_> = match wanted {
            Ok(wanted) => wanted.into_iter().collect(),
            Err(Nothing::Wanted) => return Err(HubError::NothingWanted { model: model() }),
            Err(Nothing::Safe) => return Err(HubError::Pickle { model: model() }),
        };
        let files = siblings.iter().filter(|sibling| wanted.contains(sibling.rfilename.as_str()));
        files.map(|sibling| self.file(api, sibling)).collect()
    }

    async fn components(&self, api: &Api<'_>) -> Result<BTreeSet<String>, HubError> {
        let url = self.address("model_index.json");
        let index = api.success(api.ask(&url).await?)?;
        Ok(components(&index))
    }

    /// A small file is in the commit itself and has no digest of its own; its size is checked.
    fn file(&self, api: &Api<'_>, sibling: &Sibling) -> Result<RemoteFile, HubError> {
        let name = &sibling.rfilename;
        let path =
            FilePath::parse(name).ok_or_else(|| api.listing(format!("{name:?} is no path of a file")))?;
        let digest = match &sibling.lfs {
            None => None,
            Some(lfs) => {
                let digits = lfs.sha256.as_deref().or(lfs.oid.as_deref()).unwrap_or_default();
                let digest = Digest::from_hex(Algorithm::Sha256, digits);
                Some(digest.map_err(|_| api.listing(format!("{path} has no digest that can be read")))?)
            }
        };
        let size_bytes = sibling.lfs.as_ref().and_then(|lfs| lfs.size).or(sibling.size);
        Ok(RemoteFile {
            url: self.address(path.as_str()),
            path,
            trust: Trust::Operator,
            token: api.token.cloned(),
            trace: None,
            signed: false,
            promise: Promise { size_bytes, digest },
        })
    }

    fn address(&self, path: &str) -> Url {
        let mut url = below(self.endpoint, &[], self.name.split('/'));
        push(&mut url, ["resolve", self.commit.as_str()]);
        push(&mut url, path.split('/'));
        url
    }
}

fn below<'a>(base: &Url, front: &[&'a str], rest: impl Iterator<Item = &'a str>) -> Url {
    let mut url = base.clone();
    push(&mut url, front.iter().copied().chain(rest));
    url
}

/// Adds segments to a path; a slash in one of them is encoded.
fn push<'a>(url: &mut Url, segments: impl IntoIterator<Item = &'a str>) {
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
}

fn is_commit(text: &str) -> bool {
    text.len() == COMMIT_HEX && text.chars().all(|c| c.is_ascii_hexdigit())
}
