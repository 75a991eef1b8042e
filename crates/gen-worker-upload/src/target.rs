//! A payload's `output_upload`, understood before the run starts.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use gen_worker_core::{
    ByteLimit, JobFailure, RawOutput, Secret,
    ports::{OutputStore, OutputTarget, StoredOutput, Watch},
};
use serde_json::Value;
#[cfg(feature = "s3")]
use tracing::warn;

#[cfg(feature = "s3")]
use crate::unfinished::FORGET_TIMEOUT;
use crate::{
    config::UploadConfig,
    error::UploadError,
    fields::Fields,
    meters::To,
    presigned::Presigned,
    signed_url::{self, SignedUrl},
    spool::{Body, Spooled},
    transfer::Transfers,
};

/// What `output_upload` may have.
const KEYS: [&str; 5] = ["put_url", "headers", "refresh_url", "public_url", "s3"];

/// Makes targets out of what payloads say.
#[derive(Debug, Clone)]
pub struct OutputTargets {
    transfers: Transfers,
    limit: ByteLimit,
    spool_dir: PathBuf,
}

/// Where one output goes, once it can be sent as often as it takes.
#[async_trait]
pub(crate) trait Place: Send + Sync {
    /// The media type that whatever is put there will have; `None`: that of the output.
    fn content_type(&self) -> Option<&str>;

    /// Puts it there.
    async fn put(&self, body: &Body, content_type: &str, watch: &Watch) -> Result<StoredOutput, JobFailure>;
}

/// A place, and how what goes there is made ready.
struct Target {
    place: Box<dyn Place>,
    transfers: Transfers,
    limit: ByteLimit,
    spool_dir: PathBuf,
}

#[async_trait]
impl OutputTarget for Target {
    fn content_type(&self) -> Option<&str> {
        self.place.content_type()
    }

    async fn store(&self, output: &RawOutput, watch: &Watch) -> Result<StoredOutput, JobFailure> {
        let put = async {
            let spooled = Spooled::of(&output.body, self.limit, &self.spool_dir);
            let spooled = watch.unless_canceled(spooled).await?;
            self.place.put(&spooled.body, &output.content_type, watch).await
        };
        self.transfers.meters().count(To::Outputs, put, |stored| stored.size_bytes).await
    }
}

impl OutputTargets {
    /// Targets by these settings.
    pub fn new(config: &UploadConfig, transfers: Transfers) -> Self {
        Self { transfers, limit: config.max_upload, spool_dir: config.spool_dir.clone() }
    }

    fn place(&self, text: &str) -> Result<Box<dyn Place>, UploadError> {
        let mut fields = Fields::parse("output_upload", text, &KEYS)?;
        match fields.take("s3") {
            None => Ok(Box::new(self.presigned(fields)?)),
            Some(_) if fields.take("put_url").is_some() => {
                Err(fields.wrong("s3", "cannot stand beside `put_url`: give one of them"))
            }
            Some(value) => self.s3(value),
        }
    }

    #[cfg(feature = "s3")]
    fn s3(&self, value: Value) -> Result<Box<dyn Place>, UploadError> {
        Ok(Box::new(crate::s3::S3Target::new(value, self.transfers.clone(), self.limit)?))
    }

    #[cfg(not(feature = "s3"))]
    fn s3(&self, _: Value) -> Result<Box<dyn Place>, UploadError> {
        let problem = "is given, but S3 targets are not built into this worker: give a `put_url`";
        Err(UploadError::Target { key: "output_upload.s3".to_owned(), problem })
    }

    fn presigned(&self, mut fields: Fields) -> Result<Presigned, UploadError> {
        let public_url = fields.text("public_url")?;
        let refresh_url = match fields.text("refresh_url")? {
            None => None,
            Some(text) => Some(signed_url::address("refresh_url", &text, &fields, self.transfers.client())?),
        };
        let to = SignedUrl::parse(&mut fields, self.transfers.client())?;
        let (transfers, limit) = (self.transfers.clone(), self.limit);
        Ok(Presigned { transfers, limit, to, refresh_url, public_url })
    }
}

impl OutputStore for OutputTargets {
    fn target(&self, output_upload: Secret<String>) -> Result<Arc<dyn OutputTarget>, JobFailure> {
        let place = self.place(output_upload.expose())?;
        let (transfers, spool_dir) = (self.transfers.clone(), self.spool_dir.clone());
        Ok(Arc::new(Target { place, transfers, limit: self.limit, spool_dir }))
    }

    #[cfg(feature = "s3")]
    fn settle(&self) {
        if !self.transfers.unfinished().wait(FORGET_TIMEOUT) {
            warn!("an S3 upload was left unfinished: its parts may have to be removed");
        }
    }
}

/// Whether this text says where an output goes. Whatever it is, a refusal repeats none of its texts.
///
/// # Panics
/// One does.
#[cfg(any(test, feature = "fuzzing"))]
pub fn check(text: &str) -> bool {
    use gen_worker_core::config::{ConfigErrors, Env};
    use gen_worker_net::{HttpClient, NetConfig};

    static TARGETS: std::sync::LazyLock<OutputTargets> = std::sync::LazyLock::new(|| {
        let (env, mut errors) = (Env::default(), ConfigErrors::default());
        let client = HttpClient::new(NetConfig::from_env(&env, &mut errors)).expect("TLS can be set up");
        let config = UploadConfig::from_env(&env, &mut errors);
        OutputTargets::new(&config, Transfers::new(&config, client))
    });
    let failure = match TARGETS.target(text.into()) {
        Ok(_) => return true,
        Err(failure) => failure,
    };
    let shown = format!("{failure:?} {}", failure.chain());
    let texts = serde_json::from_str::<Value>(text).map(|value| texts(&value)).unwrap_or_default();
    // A short one may be a word of ours.
    let repeated = texts.iter().find(|text| text.chars().count() > 12 && shown.contains(text.as_str()));
    assert!(repeated.is_none(), "{repeated:?} in {shown}");
    false
}

/// All texts in a value, but for the names of fields, which a refusal names.
#[cfg(any(test, feature = "fuzzing"))]
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(all) => all.iter().flat_map(texts).collect(),
        Value::Object(fields) => fields.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use gen_worker_core::FailureKind;

    use super::*;
    use crate::testing::{config, transfers};

    /// What the fuzzer found or was given to begin with.
    #[test]
    fn the_corpus_of_the_fuzzer_holds() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/output_upload");
        let texts =
            std::fs::read_dir(corpus).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
        let places = texts.filter(|text| check(&String::from_utf8_lossy(text))).count();
        assert!(places > 1, "{places}");
    }

    fn refused(output_upload: &str) -> String {
        let targets = OutputTargets::new(&config(), transfers());
        let failure = targets.target(output_upload.into()).map(drop).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Validation, "{output_upload}");
        let shown = format!("{failure:?} {}", failure.chain());
        assert!(!shown.contains("hunter2"), "{shown}");
        failure.safe_message
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (output_upload, message) in [
            ("[]", "`output_upload` is no JSON object"),
            (r#"{"put_url": "http"#, "`output_upload` is no JSON object"),
            ("{}", "`output_upload.put_url` is missing"),
            (r#"{"put_url": 7}"#, "`output_upload.put_url` is no text"),
            (r#"{"put_url": "ftp://a/hunter2"}"#, "`output_upload.put_url` is no http or https URL"),
            (r#"{"url": "hunter2"}"#, "`output_upload.url` is not known"),
            (r#"{"public_url": ["hunter2"]}"#, "`output_upload.public_url` is no text"),
            (r#"{"headers": "hunter2"}"#, "`output_upload.headers` is no JSON object"),
            (r#"{"refresh_url": "hunter2"}"#, "`output_upload.refresh_url` is no http or https URL"),
            (
                r#"{"refresh_url": "http://10.0.0.1/hunter2"}"#,
                "`output_upload.refresh_url` names an address that may not be reached",
            ),
        ] {
            assert_eq!(refused(output_upload), message);
        }
        let both = refused(r#"{"put_url": "https://a/hunter2", "s3": {}}"#);
        assert_eq!(both, "`output_upload.s3` cannot stand beside `put_url`: give one of them");
        let s3 = refused(r#"{"s3": {"secret_access_key": "hunter2"}}"#);
        #[cfg(feature = "s3")]
        assert_eq!(s3, "`output_upload.s3.bucket` is missing");
        #[cfg(not(feature = "s3"))]
        assert!(s3.contains("S3 targets are not built into this worker"), "{s3}");
    }

    #[test]
    fn private_addresses_are_refused() {
        for url in [
            "http://10.0.0.1/hunter2",
            "http://[::1]/hunter2",
            "http://169.254.169.254/latest",
            "http://2130706434/x",
            "https://user:hunter2@files.example/x",
        ] {
            let message = refused(&format!(r#"{{"put_url": "{url}"}}"#));
            assert_eq!(message, "`output_upload.put_url` names an address that may not be reached", "{url}");
        }
    }

    #[test]
    fn headers_that_frame_the_request_are_refused() {
        for (headers, problem) in [
            (r#"{"Host": "hunter2"}"#, "may not set Host"),
            (r#"{"content-LENGTH": "4"}"#, "may not set Host"),
            (r#"{"Transfer-Encoding": "chunked"}"#, "may not set Host"),
            (r#"{"X A": "hunter2"}"#, "has a name or a value"),
            (r#"{"x-a": "hunter2\r\nx-b: 1"}"#, "has a name or a value"),
            (r#"{"x-a": 7}"#, "has a name or a value"),
            (r#"{"x-a": "1", "X-A": "2"}"#, "names a header twice"),
        ] {
            let message =
                refused(&format!(r#"{{"put_url": "https://files.example/x", "headers": {headers}}}"#));
            assert!(message.contains(problem), "{message}");
        }
    }

    #[test]
    fn a_public_address_is_a_target_and_null_is_absent() {
        let targets = OutputTargets::new(&config(), transfers());
        let text = r#"{"put_url": "https://files.example/x?s=1", "headers": null, "public_url": null}"#;
        assert!(targets.target(text.into()).is_ok());
    }
}
