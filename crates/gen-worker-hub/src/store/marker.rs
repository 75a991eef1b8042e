//! What a complete model says of itself, and whether it holds.

use std::{fs, path::Path};

use gen_worker_core::Digest;
use serde::{Deserialize, Serialize};

/// The file that makes a directory a model.
pub(super) const MARKER: &str = ".complete.json";

/// Says that a directory is complete, and of what.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Marker {
    /// The reference that it was first fetched for, as it may be shown.
    #[serde(rename = "ref")]
    pub(crate) written: String,
    pub(crate) revision: Option<String>,
    pub(crate) files: Vec<MarkedFile>,
}

/// One file of a model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MarkedFile {
    pub(crate) path: String,
    pub(crate) size_bytes: u64,
    /// With its algorithm in front.
    pub(crate) digest: String,
}

/// What is in a model's place.
#[derive(Debug)]
pub(crate) enum Verdict {
    Absent,
    Whole(Marker),
    /// Its marker is there and a file is not, or not in its size.
    Damaged(Marker),
}

impl Marker {
    pub(crate) fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }

    pub(crate) fn digests(&self) -> impl Iterator<Item = Digest> {
        self.files.iter().filter_map(|file| file.digest.parse().ok())
    }
}

/// Looks at a directory. Contents are not read: they were checked before the marker was written.
pub(super) fn examine(home: &Path) -> Verdict {
    let marker = fs::read(home.join(MARKER)).ok();
    let Some(marker) = marker.and_then(|text| serde_json::from_slice::<Marker>(&text).ok()) else {
        return Verdict::Absent;
    };
    if marker.files.iter().all(|file| is_present(home, file)) {
        Verdict::Whole(marker)
    } else {
        Verdict::Damaged(marker)
    }
}

/// Whether a file is there, in its size.
pub(super) fn is_present(home: &Path, file: &MarkedFile) -> bool {
    let found = fs::metadata(home.join(&file.path));
    found.is_ok_and(|found| found.is_file() && found.len() == file.size_bytes)
}
