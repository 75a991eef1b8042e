//! The files of a result: fetched into a folder, each under a name of its own.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use gen_worker_core::AssetRef;
use gen_worker_orchestrator::OrchestratorClient;
use serde_json::{Map, Value, json};

use super::CallError;

/// A file that is on this machine now.
#[derive(Debug, PartialEq)]
pub(super) struct Saved {
    /// What the result calls it; `None`: it was the whole result.
    pub(super) reference: Option<String>,
    pub(super) path: PathBuf,
    pub(super) mime_type: Option<String>,
    pub(super) size_bytes: Option<u64>,
}

impl Saved {
    pub(super) fn json(&self) -> Value {
        let Self { reference, path, mime_type, size_bytes } = self;
        json!({"ref": reference, "path": path, "mime_type": mime_type, "size_bytes": size_bytes})
    }
}

/// Where the files of one result go.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    taken: RefCell<BTreeSet<String>>,
}

impl Folder {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, taken: RefCell::default() }
    }

    /// Brings every stored file that `output` names.
    pub(super) async fn fetch(
        &self,
        client: &OrchestratorClient,
        output: &Value,
    ) -> Result<Vec<Saved>, CallError> {
        let mut saved = Vec::new();
        for asset in assets(output) {
            let path = self.place(asset.reference.rsplit('/').next().unwrap_or_default())?;
            client.download(&asset.reference, asset.tenant_id.as_deref(), &path).await?;
            saved.push(Saved {
                reference: Some(asset.reference),
                path,
                mime_type: asset.mime_type,
                size_bytes: asset.size_bytes,
            });
        }
        Ok(saved)
    }

    /// Writes what lies within a raw output, as base64, to a file and puts the file's path in its place.
    pub(super) fn keep_inline(&self, function: &str, output: &mut Value) -> Result<Option<Saved>, CallError> {
        let Some(output) = output.as_object_mut() else { return Ok(None) };
        let Some(data) = output.get("data").and_then(Value::as_str) else { return Ok(None) };
        let Ok(data) = STANDARD.decode(data) else { return Ok(None) };
        let text = |key: &str| output.get(key).and_then(Value::as_str).map(str::to_owned);
        let mime_type = text("content_type");
        let name = text("file_name").unwrap_or_else(|| named(function, mime_type.as_deref()));
        let path = self.place(&name)?;
        fs::write(&path, &data).map_err(CallError::io(format!("writing {}", path.display())))?;
        output.remove("data");
        output.insert("path".to_owned(), json!(path));
        Ok(Some(Saved { reference: None, path, mime_type, size_bytes: Some(data.len() as u64) }))
    }

    /// An absolute path that no other file of this result has. What the name says is not trusted.
    fn place(&self, name: &str) -> Result<PathBuf, CallError> {
        let io = || CallError::io(format!("making the folder {}", self.path.display()));
        fs::create_dir_all(&self.path).map_err(io())?;
        let folder = std::path::absolute(&self.path).map_err(io())?;
        let name = plain(name);
        let mut taken = self.taken.borrow_mut();
        let name = std::iter::once(name.to_owned())
            .chain((2..).map(|number| numbered(name, number)))
            .find(|name| taken.insert(name.clone()))
            .expect("numbers do not end");
        Ok(folder.join(name))
    }
}

/// A name that stays within its folder.
fn plain(name: &str) -> &str {
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default().trim_start_matches('.');
    let fits = !name.is_empty() && !name.contains(|c: char| c.is_control());
    if fits { name } else { "output" }
}

fn numbered(name: &str, number: u32) -> String {
    let path = Path::new(name);
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    match path.extension() {
        Some(extension) => format!("{stem}-{number}.{}", extension.to_string_lossy()),
        None => format!("{stem}-{number}"),
    }
}

/// A name for what has none: most subtypes are extensions as well.
fn named(function: &str, mime_type: Option<&str>) -> String {
    let subtype = mime_type.and_then(|text| text.split(';').next()?.trim().split_once('/'));
    let extension = match subtype {
        Some(("text", "plain")) => "txt",
        Some(("audio", "mpeg")) => "mp3",
        Some((_, "jpeg")) => "jpg",
        Some((_, other)) if other.chars().all(|c| c.is_ascii_alphanumeric()) => other,
        _ => "bin",
    };
    format!("{function}.{extension}")
}

/// The stored files that a result names, wherever they nest, each once.
fn assets(output: &Value) -> Vec<AssetRef> {
    let mut found: Vec<AssetRef> = Vec::new();
    collect(output, &mut found);
    found
}

fn collect(output: &Value, found: &mut Vec<AssetRef>) {
    let stored = |fields: &Map<String, Value>| {
        let asset: AssetRef = serde_json::from_value(Value::Object(fields.clone())).ok()?;
        asset.reference.starts_with("runs/").then_some(asset)
    };
    match output {
        Value::Object(fields) => match stored(fields) {
            Some(asset) if found.iter().any(|other| other.reference == asset.reference) => {}
            Some(asset) => found.push(asset),
            None => fields.values().for_each(|value| collect(value, found)),
        },
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_result_are_found_once_each() {
        let output = json!({
            "a": {"ref": "runs/1/outputs/a.png", "size_bytes": 3},
            "b": [{"c": {"ref": "runs/1/outputs/b.png"}}, {"ref": "inputs/x"}],
            "again": {"ref": "runs/1/outputs/a.png"},
        });
        let found: Vec<String> = assets(&output).into_iter().map(|asset| asset.reference).collect();
        assert_eq!(found, ["runs/1/outputs/a.png", "runs/1/outputs/b.png"]);
    }

    #[test]
    fn a_name_stays_in_the_folder_and_is_given_once() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::new(temporary.path().join("out"));
        let names = ["a.png", "a.png", "x/../a.png", "..", "../../.bashrc", "", "b\\c"];
        let places = names.map(|name| folder.place(name).unwrap().file_name().unwrap().to_owned());
        assert_eq!(places, ["a.png", "a-2.png", "a-3.png", "output", "bashrc", "output-2", "c"]);
    }

    #[test]
    fn raw_output_becomes_a_file() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::new(temporary.path().to_owned());
        let mut output = json!({"data": "AAEC", "content_type": "image/jpeg", "size_bytes": 3});
        let saved = folder.keep_inline("draw", &mut output).unwrap().unwrap();
        assert_eq!(fs::read(&saved.path).unwrap(), [0, 1, 2]);
        assert_eq!(saved.path.file_name().unwrap(), "draw.jpg");
        assert_eq!(output, json!({"path": saved.path, "content_type": "image/jpeg", "size_bytes": 3}));
        assert_eq!(folder.keep_inline("draw", &mut output).unwrap(), None);
    }
}
