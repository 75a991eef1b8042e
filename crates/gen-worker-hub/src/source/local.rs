//! A file or directory that is on this machine for good.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Component, Path},
};

use gen_worker_core::{LocalModel, ModelRef};

use crate::error::HubError;

/// Deepest nesting of a model's directory; what models have is 2 or 3.
const MAX_DEPTH: usize = 16;

/// The model at this path. Blocks.
pub(crate) fn open(model: &ModelRef, path: &Path) -> Result<LocalModel, HubError> {
    read(model, path).map_err(|source| HubError::Local { model: model.to_string(), source })
}

fn read(model: &ModelRef, path: &Path) -> io::Result<LocalModel> {
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path holds `..`"));
    }
    let mut local = LocalModel {
        model: model.clone(),
        root: path.to_owned(),
        files: BTreeMap::new(),
        size_bytes: 0,
        pin: None,
    };
    let found = fs::metadata(path)?;
    if found.is_dir() {
        collect(&mut local, path, "", MAX_DEPTH)?;
    } else {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        local.files.insert(name.into_owned(), path.to_owned());
        local.size_bytes = found.len();
        local.root = path.parent().unwrap_or(path).to_owned();
    }
    Ok(local)
}

/// Adds the files of `directory`, whose names get `prefix` in front. Links to files are followed, to directories not.
fn collect(local: &mut LocalModel, directory: &Path, prefix: &str, depth: usize) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::other("the directory nests too deep"));
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect(local, &entry.path(), &format!("{name}/"), depth - 1)?;
        } else if let Some(file) = fs::metadata(entry.path()).ok().filter(fs::Metadata::is_file) {
            local.size_bytes += file.len();
            local.files.insert(name, entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_at(path: &Path) -> Result<LocalModel, HubError> {
        let model = ModelRef::parse(&format!("file:{}", path.display())).unwrap();
        open(&model, path)
    }

    #[test]
    fn a_directory_is_its_files() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("unet")).unwrap();
        fs::write(directory.path().join("unet/model.onnx"), b"abc").unwrap();
        fs::write(directory.path().join("index.json"), b"{}").unwrap();
        let local = open_at(directory.path()).unwrap();
        assert_eq!(local.files.keys().collect::<Vec<_>>(), ["index.json", "unet/model.onnx"]);
        assert_eq!(local.size_bytes, 5);
    }

    #[test]
    fn a_file_is_a_model_of_one_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.onnx");
        fs::write(&path, b"abc").unwrap();
        let local = open_at(&path).unwrap();
        assert_eq!((local.root.as_path(), &local.files["m.onnx"]), (directory.path(), &path));
    }

    #[test]
    fn nothing_and_a_way_up_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("in")).unwrap();
        fs::write(directory.path().join("m.onnx"), b"abc").unwrap();
        for path in ["missing", "in/../m.onnx"] {
            assert!(matches!(open_at(&directory.path().join(path)), Err(HubError::Local { .. })));
        }
    }
}
