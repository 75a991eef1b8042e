//! Files named in a payload: as a caller sends them, and as the function finds them.

use std::{
    borrow::Cow,
    cell::RefCell,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, Weak},
};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::failure::WorkerError;

/// A file as the wire names it. A `local_path` in a payload is not read: a caller does not say which file on this
/// machine is opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Asset", extend("x-asset" = true))]
pub struct AssetRef {
    /// A path at the file API, or an `http(s)://` URL.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Whose file it is.
    #[serde(default)]
    pub tenant_id: Option<String>,
    /// The media type, such as `image/png`.
    #[serde(default)]
    pub mime_type: Option<String>,
    /// The size in bytes.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// The SHA-256 of the content, 64 hexadecimal digits.
    #[serde(default)]
    pub sha256: Option<String>,
}

/// A file that was made present on this machine, with what was found about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// Where it is; readable until the run ends.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The SHA-256 of its content, 64 hexadecimal digits.
    pub sha256: String,
    /// The media type found in its first bytes, else from its name.
    pub mime_type: Option<String>,
}

/// A file in a payload or a result. In a payload the worker fetches it before the function is called, wherever it nests.
#[derive(Debug, Clone)]
pub struct Asset {
    sent: AssetRef,
    found: Arc<OnceLock<LocalFile>>,
}

impl Asset {
    /// An asset that names a stored file; it has no local file.
    pub fn new(sent: AssetRef) -> Self {
        Self { sent, found: Arc::default() }
    }

    /// A path at the file API, or a URL.
    pub fn reference(&self) -> &str {
        &self.sent.reference
    }

    /// Where the file is on this machine, readable until the run ends.
    ///
    /// # Errors
    /// The asset was not part of a payload, so it was never fetched.
    pub fn path(&self) -> Result<&Path, WorkerError> {
        self.found
            .get()
            .map(|file| file.path.as_path())
            .ok_or_else(|| WorkerError::internal(format!("asset {} has no local file", self.sent.reference)))
    }

    /// Opens the local file for reading.
    ///
    /// # Errors
    /// There is no local file, or it cannot be opened.
    pub fn open(&self) -> Result<File, WorkerError> {
        Ok(File::open(self.path()?)?)
    }

    /// The local file's content.
    ///
    /// # Errors
    /// There is no local file, it cannot be read, or it has more than `max_bytes`.
    pub fn read(&self, max_bytes: u64) -> Result<Vec<u8>, WorkerError> {
        let mut content = Vec::new();
        self.open()?.take(max_bytes.saturating_add(1)).read_to_end(&mut content)?;
        if content.len() as u64 > max_bytes {
            return Err(WorkerError::validation(format!("the file is larger than {max_bytes} bytes")));
        }
        Ok(content)
    }

    /// The media type: as found, else as sent.
    pub fn mime_type(&self) -> Option<&str> {
        self.found.get().and_then(|f| f.mime_type.as_deref()).or(self.sent.mime_type.as_deref())
    }

    /// The size in bytes: as found, else as sent.
    pub fn size_bytes(&self) -> Option<u64> {
        self.found.get().map(|f| f.size_bytes).or(self.sent.size_bytes)
    }

    /// The SHA-256 of the content: as found, else as sent.
    pub fn sha256(&self) -> Option<&str> {
        self.found.get().map(|f| f.sha256.as_str()).or(self.sent.sha256.as_deref())
    }
}

impl<'de> Deserialize<'de> for Asset {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let asset = Self::new(AssetRef::deserialize(deserializer)?);
        COLLECTED.with_borrow_mut(|collected| {
            if let Some(slots) = collected {
                slots.push(AssetSlot { sent: asset.sent.clone(), found: Arc::downgrade(&asset.found) });
            }
        });
        Ok(asset)
    }
}

impl Serialize for Asset {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        AssetRef {
            reference: self.sent.reference.clone(),
            tenant_id: self.sent.tenant_id.clone(),
            mime_type: self.mime_type().map(str::to_owned),
            size_bytes: self.size_bytes(),
            sha256: self.sha256().map(str::to_owned),
        }
        .serialize(serializer)
    }
}

impl JsonSchema for Asset {
    fn schema_name() -> Cow<'static, str> {
        AssetRef::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        AssetRef::json_schema(generator)
    }
}

/// The place of an [`Asset`] in a decoded payload, where its file is put once it is fetched.
#[derive(Debug)]
pub struct AssetSlot {
    sent: AssetRef,
    found: Weak<OnceLock<LocalFile>>,
}

impl AssetSlot {
    /// The file as the payload names it.
    pub fn asset(&self) -> &AssetRef {
        &self.sent
    }

    /// Tells the asset where its file is. Does nothing if it was told before or is gone.
    pub fn fill(&self, file: LocalFile) {
        if let Some(cell) = self.found.upgrade() {
            cell.get_or_init(|| file);
        }
    }
}

thread_local! {
    /// Set while a payload is decoded on this thread: deserialising an asset is the one place that sees each of them,
    /// however deep it nests and whatever type holds it.
    static COLLECTED: RefCell<Option<Vec<AssetSlot>>> = const { RefCell::new(None) };
}

/// Runs `decode` and returns, beside its result, a slot for each asset that its result holds.
pub(crate) fn collect_assets<R>(decode: impl FnOnce() -> R) -> (R, Vec<AssetSlot>) {
    let outer = COLLECTED.replace(Some(Vec::new()));
    let result = decode();
    let mut slots = COLLECTED.replace(outer).unwrap_or_default();
    // An untagged enum tries variants and drops what does not fit: those assets nobody will see.
    slots.retain(|slot| slot.found.strong_count() > 0);
    (result, slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    #[serde(untagged)]
    #[allow(dead_code)]
    enum Either {
        Two { a: Asset, b: Asset },
        One { a: Asset },
    }

    #[test]
    fn finds_each_asset_that_the_value_keeps() {
        let text = r#"{"x": [{"a": {"ref": "1", "local_path": "/etc/passwd"}}]}"#;
        let (value, slots) =
            collect_assets(|| serde_json::from_str::<std::collections::BTreeMap<String, Vec<Either>>>(text));
        assert_eq!(slots.len(), 1);
        slots[0].fill(LocalFile {
            path: "/tmp/in".into(),
            size_bytes: 3,
            sha256: "ab".into(),
            mime_type: None,
        });
        let Either::One { a } = &value.unwrap()["x"][0] else { panic!("one") };
        assert_eq!(a.path().unwrap(), Path::new("/tmp/in"));
        assert_eq!(a.size_bytes(), Some(3));
    }

    #[test]
    fn outside_a_run_there_is_no_file() {
        let asset: Asset = serde_json::from_str(r#"{"ref": "r", "local_path": "/etc/passwd"}"#).unwrap();
        assert!(asset.path().is_err());
        assert!(!serde_json::to_string(&asset).unwrap().contains("passwd"));
    }
}
