//! The Cozy hub: its snapshot API, its model manifests, and files at its URL plus the reference.

use std::sync::atomic::{AtomicBool, Ordering};

use gen_worker_core::HubRef;
use gen_worker_net::Trust;
use serde_json::{Map, Value};
use url::Url;

use super::{
    Resolved,
    api::{Answer, Api, text},
    direct,
    manifest::{self, Listed},
};
use crate::{
    config::{HubApi, HubConfig},
    error::HubError,
    snapshot::{FilePath, RemoteFile, Snapshot},
};

/// Longest digest that a hub may name a snapshot by.
const MAX_DIGEST_BYTES: usize = 200;

/// What was learnt of the hub.
#[derive(Debug, Default)]
pub(crate) struct Cozy {
    /// It has answered in its own words: from then on a page that says "not found" is not its answer.
    speaks: AtomicBool,
}

/// One question to one hub.
struct Question<'a> {
    base: &'a Url,
    api: &'a Api<'a>,
    hub: HubRef<'a>,
}

impl Cozy {
    pub(crate) async fn resolve(
        &self,
        config: &HubConfig,
        api: &Api<'_>,
        hub: HubRef<'_>,
    ) -> Result<Resolved, HubError> {
        let base = config.hub_url.as_ref().ok_or(HubError::NoHub)?;
        let question = Question { base, api, hub };
        let wanted = match config.hub_api {
            HubApi::Direct => return Ok(question.direct()),
            // Where there is one repository there is an owner in front of it.
            HubApi::Auto if !hub.path.contains('/') => return Ok(question.direct()),
            HubApi::Auto if !self.speaks.load(Ordering::Relaxed) => question.probe().await?,
            HubApi::Auto | HubApi::Snapshots => Some(question.digest().await?),
        };
        if let Some(digest) = wanted {
            self.speaks.store(true, Ordering::Relaxed);
            return question.snapshot(digest).await;
        }
        match question.model_manifest().await? {
            Some(resolved) => Ok(resolved),
            None => Ok(question.direct()),
        }
    }
}

impl Question<'_> {
    /// The digest that the reference leads to; `None`: this hub has no snapshot API.
    async fn probe(&self) -> Result<Option<String>, HubError> {
        let first = match self.hub.digest {
            Some(digest) => self.route(&["snapshots", &digest.to_string(), "manifest"]),
            None => self.resolve_route(),
        };
        let answer = self.api.probe(&first).await?;
        match (answer, self.hub.digest) {
            (None, _) => Ok(None),
            (Some(answer), None) => self.named(answer).map(Some),
            (Some(_), Some(digest)) => Ok(Some(digest.to_string())),
        }
    }

    async fn digest(&self) -> Result<String, HubError> {
        if let Some(digest) = self.hub.digest {
            return Ok(digest.to_string());
        }
        self.named(self.ask(&self.resolve_route()).await?)
    }

    fn named(&self, answer: Answer) -> Result<String, HubError> {
        let object = self.api.success(answer)?;
        let digest = text(&object, &["digest", "snapshot_digest"]);
        let digest = digest.filter(|digest| is_digest(digest));
        digest.map(str::to_owned).ok_or_else(|| self.api.listing("it names no snapshot"))
    }

    async fn snapshot(&self, digest: String) -> Result<Resolved, HubError> {
        let answer = self.ask(&self.route(&["snapshots", &digest, "manifest"])).await?;
        let manifest = self.api.success(answer)?;
        self.echoed(&manifest, &["snapshot_digest", "digest"], &digest)?;
        let mut listed = self.listed(&manifest, None)?;
        for (name, object) in self.objects(&manifest)? {
            let answer = self.ask(&self.object_route(&object)).await?;
            let manifest = self.api.success(answer)?;
            self.echoed(&manifest, &["object_digest", "digest"], &object)?;
            listed.extend(self.listed(&manifest, Some(name.as_str()))?);
        }
        let files = listed.into_iter().map(|file| self.vouched(file)).collect::<Result<_, _>>()?;
        let snapshot = self.complete(Some(digest), files)?;
        Ok(Resolved { snapshot, moves: self.hub.digest.is_none(), source: "cozy" })
    }

    /// The model's manifest as older hubs have it; `None`: this one has none.
    async fn model_manifest(&self) -> Result<Option<Resolved>, HubError> {
        let url = self.below(&["models", self.hub.path, "manifest"]);
        let Some(answer) = self.api.probe(&url).await? else {
            return Ok(None);
        };
        let listed = self.listed(&self.api.success(answer)?, None)?;
        let files = listed.into_iter().map(|file| self.of_model(file)).collect::<Result<_, _>>()?;
        let snapshot = self.complete(None, files)?;
        Ok(Some(Resolved { snapshot, moves: false, source: "cozy" }))
    }

    fn direct(&self) -> Resolved {
        let file = direct::hub(self.base, self.api);
        Resolved { snapshot: Snapshot { revision: None, files: vec![file] }, moves: false, source: "cozy" }
    }

    async fn ask(&self, url: &Url) -> Result<Answer, HubError> {
        self.api.ask(url).await
    }

    fn listed(&self, manifest: &Map<String, Value>, prefix: Option<&str>) -> Result<Vec<Listed>, HubError> {
        manifest::files(manifest, prefix).map_err(|reason| self.api.listing(reason))
    }

    /// The objects of a snapshot: a directory's name, and the digest of what is in it.
    fn objects(&self, manifest: &Map<String, Value>) -> Result<Vec<(FilePath, String)>, HubError> {
        let objects = match manifest.get("objects") {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(objects) => objects.as_object().ok_or_else(|| self.api.listing("`objects` is no object"))?,
        };
        let named = |(name, digest): (&String, &Value)| {
            let digest = digest.as_str().filter(|digest| is_digest(digest))?;
            Some((FilePath::parse(name)?, digest.to_owned()))
        };
        objects
            .iter()
            .map(|object| named(object).ok_or_else(|| self.api.listing("an object has no usable name")))
            .collect()
    }

    fn echoed(&self, manifest: &Map<String, Value>, keys: &[&str], asked: &str) -> Result<(), HubError> {
        match text(manifest, keys) {
            Some(digest) if digest != asked => Err(self.api.listing("it is that of another snapshot")),
            Some(_) | None => Ok(()),
        }
    }

    /// A file of a snapshot, which is nothing without its address and its digest. The address is permission enough.
    fn vouched(&self, file: Listed) -> Result<RemoteFile, HubError> {
        let Listed { path, url, promise } = file;
        if promise.digest.is_none() {
            return Err(self.api.listing(format!("{path} has no digest")));
        }
        let url = url.ok_or_else(|| self.api.listing(format!("{path} has no URL")))?;
        let url = self.url(&url, &path)?;
        Ok(RemoteFile { path, url, trust: Trust::Operator, token: None, trace: None, signed: true, promise })
    }

    /// A file of a model's manifest: at its address, or below the model. The credential stays with the hub.
    fn of_model(&self, file: Listed) -> Result<RemoteFile, HubError> {
        let Listed { path, url, promise } = file;
        let url = match url {
            Some(url) => self.url(&url, &path)?,
            None => self.below(&["models", self.hub.path, "files", path.as_str()]),
        };
        let own = url.origin() == self.base.origin();
        let token = self.api.token.cloned().filter(|_| own);
        let trace = self.api.trace.cloned().filter(|_| own);
        Ok(RemoteFile { path, url, trust: Trust::Operator, token, trace, signed: !own, promise })
    }

    fn url(&self, text: &str, path: &FilePath) -> Result<Url, HubError> {
        let url = self.base.join(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        url.ok_or_else(|| self.api.listing(format!("the URL of {path} cannot be used")))
    }

    /// The snapshot, if it has files and no two of one name.
    fn complete(&self, revision: Option<String>, mut files: Vec<RemoteFile>) -> Result<Snapshot, HubError> {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        if files.is_empty() {
            return Err(self.api.listing("it has no files"));
        }
        if let Some(two) = files.windows(2).find(|two| two[0].path == two[1].path) {
            return Err(self.api.listing(format!("{} is there twice", two[0].path)));
        }
        Ok(Snapshot { revision, files })
    }

    fn resolve_route(&self) -> Url {
        let mut url = self.route(&["resolve"]);
        url.query_pairs_mut().append_pair("tag", self.hub.tag.unwrap_or("latest"));
        url
    }

    fn object_route(&self, digest: &str) -> Url {
        self.below(&["api/v1/objects", digest, "manifest"])
    }

    fn route(&self, rest: &[&str]) -> Url {
        let repo = format!("api/v1/repos/{}", self.hub.path);
        self.below(&[&[repo.as_str()], rest].concat())
    }

    /// A path below the hub's URL; what is no character of a path in it is encoded.
    fn below(&self, parts: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts.iter().flat_map(|part| part.split('/')));
        }
        url
    }
}

/// Whether this is fit to name a snapshot, and for a segment of a path.
fn is_digest(text: &str) -> bool {
    text.len() <= MAX_DIGEST_BYTES
        && text.chars().all(|c| c.is_ascii_alphanumeric() || ":_-.".contains(c))
        && !matches!(text, "." | "..")
}
