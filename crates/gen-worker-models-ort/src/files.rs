//! Which of a model's files are graphs, and what the session of each is called.

use std::path::{Path, PathBuf};

use gen_worker_core::LocalModel;

use crate::{error::ModelError, graph::list};

/// The graphs of a model.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Graphs {
    /// By the name of their session, in alphabetical order.
    pub(crate) named: Vec<(String, PathBuf)>,
    /// The one that is meant when none is named.
    pub(crate) main: Option<usize>,
}

/// The only file that ends with `.onnx`; else `model.onnx` and those of this name in folders, which name their sessions.
pub(crate) fn graphs(local: &LocalModel) -> Result<Graphs, ModelError> {
    let is_onnx = |name: &str| name.to_ascii_lowercase().ends_with(".onnx");
    let all: Vec<_> = local.files.iter().filter(|(name, _)| is_onnx(name)).collect();
    let is_only = all.len() == 1;
    let chosen = all.into_iter().filter(|(name, _)| is_only || file_name(name) == "model.onnx");
    let named: Vec<_> = chosen.map(|(name, file)| (session_name(name), file.clone())).collect();
    if named.is_empty() {
        return Err(ModelError::Files {
            model: local.model.to_string(),
            files: list(local.files.keys().cloned()),
        });
    }
    let main = if is_only { Some(0) } else { named.iter().position(|(name, _)| name == "model") };
    Ok(Graphs { named, main })
}

/// `unet` for `unet/model.onnx`, `net` for `net.onnx`.
fn session_name(name: &str) -> String {
    let stem = Path::new(name).with_extension("");
    let folder = stem.parent().filter(|folder| stem.ends_with("model") && !folder.as_os_str().is_empty());
    folder.unwrap_or(&stem).to_string_lossy().into_owned()
}

fn file_name(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use gen_worker_core::ModelRef;

    use super::*;

    /// The names of the sessions, the main one with a star.
    fn sessions(files: &[&str]) -> Result<String, String> {
        let local = LocalModel {
            model: ModelRef::parse("org/repo").unwrap(),
            root: "/m".into(),
            files: files.iter().map(|name| (name.to_string(), Path::new("/m").join(name))).collect(),
            size_bytes: 0,
            pin: None,
        };
        let graphs = graphs(&local).map_err(|error| error.to_string())?;
        let star = |at| if graphs.main == Some(at) { "*" } else { "" };
        let shown = graphs.named.iter().enumerate().map(|(at, (name, _))| format!("{name}{}", star(at)));
        Ok(shown.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn one_graph_is_the_main_one_and_folders_name_sessions() {
        for (files, expected) in [
            (&["LICENSE", "deep/Net.ONNX"][..], "deep/Net*"),
            (&["unet/model.onnx"], "unet*"),
            (&["a.onnx", "model.onnx", "model.onnx.data"], "model*"),
            (&["model.onnx", "vae/model.onnx"], "model* vae"),
            (&["unet/model.onnx", "vae/model.onnx", "vae/other.onnx"], "unet vae"),
        ] {
            assert_eq!(sessions(files).unwrap(), expected);
        }
        assert_eq!(
            sessions(&["a.onnx", "b.onnx"]).unwrap_err(),
            "model cozy:org/repo:latest needs one .onnx file, or one named model.onnx, or one such in a folder for each \
             session; it has a.onnx, b.onnx"
        );
        assert!(sessions(&[]).unwrap_err().ends_with("it has nothing"));
    }
}
