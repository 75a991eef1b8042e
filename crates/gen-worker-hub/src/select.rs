//! Which files of a repository are wanted.

use std::collections::BTreeSet;

/// Files that can run code when they are loaded.
const PICKLES: [&str; 7] = ["bin", "ckpt", "joblib", "pickle", "pkl", "pt", "pth"];
/// What ONNX models are run from, beside `.onnx` and `.onnx_data`: configurations, vocabularies, tokenizers.
const BESIDE: [&str; 4] = ["json", "model", "tiktoken", "txt"];

/// Why nothing is selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nothing {
    /// No file is wanted.
    Wanted,
    /// All that are wanted can run code.
    Safe,
}

/// The files of `all` that are wanted, in order: those that `glob` matches; else those of the components that
/// `model_index` names; else all that ONNX models are run from.
pub(crate) fn select<'a>(
    all: &[&'a str],
    glob: Option<&str>,
    components: Option<&BTreeSet<String>>,
    allow_pickle: bool,
) -> Result<Vec<&'a str>, Nothing> {
    let wanted = |path: &&str| match (glob, components) {
        (Some(glob), _) => matches(glob, path),
        (None, Some(components)) => *path == "model_index.json" || of_component(path, components),
        (None, None) => is_run(path),
    };
    let wanted: Vec<_> = all.iter().copied().filter(wanted).collect();
    let safe: Vec<_> = wanted.iter().copied().filter(|path| allow_pickle || !is_pickle(path)).collect();
    let any = |paths: &[&str]| match glob {
        Some(_) => !paths.is_empty(),
        None => paths.iter().any(|path| path.ends_with(".onnx")),
    };
    match (any(&safe), any(&wanted)) {
        (true, _) => Ok(safe),
        (false, true) => Err(Nothing::Safe),
        (false, false) => Err(Nothing::Wanted),
    }
}

/// The components that a `model_index.json` names: its keys but those that begin with `_`, unless their value says that
/// there is none.
pub(crate) fn components(model_index: &serde_json::Map<String, serde_json::Value>) -> BTreeSet<String> {
    let there = |value: &serde_json::Value| {
        value.as_array().is_some_and(|parts| parts.iter().any(|part| !part.is_null()))
    };
    let named = model_index.iter().filter(|(key, value)| !key.starts_with('_') && there(value));
    named.map(|(key, _)| key.clone()).collect()
}

fn of_component(path: &str, components: &BTreeSet<String>) -> bool {
    path.split_once('/').is_some_and(|(component, _)| components.contains(component)) && is_run(path)
}

/// Whether ONNX models are run from files of this name.
fn is_run(path: &str) -> bool {
    let extension = extension(path);
    extension.starts_with("onnx") || BESIDE.contains(&extension.as_str())
}

fn is_pickle(path: &str) -> bool {
    PICKLES.contains(&extension(path).as_str())
}

fn extension(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.rsplit_once('.').map_or("", |(_, extension)| extension).to_ascii_lowercase()
}

/// Whether a glob matches a path: `?` is a character, `*` any number of them, both within a directory; `**` is anything.
fn matches(glob: &str, path: &str) -> bool {
    // Where to go on if what follows the last star does not match: the glob behind it, the path it may take next.
    let (glob, path) = (glob.as_bytes(), path.as_bytes());
    let (mut g, mut p) = (0, 0);
    let mut stars: [Option<(usize, usize)>; 2] = [None, None];
    while p < path.len() {
        if glob[g..].starts_with(b"**") {
            g += 2;
            stars = [Some((g, p)), None];
        } else if glob.get(g) == Some(&b'*') {
            g += 1;
            stars[1] = Some((g, p));
        } else if glob.get(g).is_some_and(|c| *c == path[p] || (*c == b'?' && path[p] != b'/')) {
            (g, p) = (g + 1, p + 1);
        } else if let Some((behind, taken)) = stars[1].filter(|(_, taken)| path[*taken] != b'/') {
            (g, p) = (behind, taken + 1);
            stars[1] = Some((g, p));
        } else if let Some((behind, taken)) = stars[0] {
            (g, p) = (behind, taken + 1);
            stars = [Some((g, p)), None];
        } else {
            return false;
        }
    }
    glob[g..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPO: [&str; 11] = [
        ".gitattributes",
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/model.onnx",
        "text_encoder/pytorch_model.bin",
        "tokenizer/merges.txt",
        "unet/model.onnx",
        "unet/model.onnx_data",
        "unet/weights.safetensors",
        "vae_decoder/model.onnx",
    ];

    fn index() -> BTreeSet<String> {
        let index = serde_json::json!({
            "_class_name": "OnnxPipeline",
            "scheduler": ["diffusers", "PNDM"],
            "text_encoder": ["transformers", "CLIP"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["onnx", "Model"],
            "safety_checker": [null, null],
            "requires_safety_checker": true,
        });
        components(index.as_object().unwrap())
    }

    #[test]
    fn a_pipeline_is_the_onnx_files_of_its_components() {
        let selected = select(&REPO, None, Some(&index()), false).unwrap();
        assert_eq!(
            selected,
            [
                "model_index.json",
                "scheduler/scheduler_config.json",
                "text_encoder/model.onnx",
                "tokenizer/merges.txt",
                "unet/model.onnx",
                "unet/model.onnx_data",
            ]
        );
    }

    #[test]
    fn without_an_index_all_that_onnx_runs_from_is_taken() {
        let all = ["config.json", "onnx/model.onnx", "pytorch_model.bin", "tokenizer.json", "x.safetensors"];
        let selected = select(&all, None, None, true).unwrap();
        assert_eq!(selected, ["config.json", "onnx/model.onnx", "tokenizer.json"]);
        assert_eq!(select(&["config.json", "x.safetensors"], None, None, false), Err(Nothing::Wanted));
    }

    #[test]
    fn a_pickle_is_taken_only_if_it_is_allowed() {
        let named = |glob, allow| select(&REPO, Some(glob), None, allow);
        assert_eq!(named("text_encoder/*", false).unwrap(), ["text_encoder/model.onnx"]);
        assert_eq!(named("**.bin", false), Err(Nothing::Safe));
        assert_eq!(named("**.bin", true).unwrap(), ["text_encoder/pytorch_model.bin"]);
        assert_eq!(named("*.gguf", true), Err(Nothing::Wanted));
    }

    #[test]
    fn a_star_stays_within_a_directory_and_two_do_not() {
        for (glob, path, fits) in [
            ("*.onnx", "m.onnx", true),
            ("*.onnx", "a/m.onnx", false),
            ("**.onnx", "a/b/m.onnx", true),
            ("a/**/m*", "a/b/c/m.onnx", true),
            ("a/*/m", "a/b/m", true),
            ("a/*/m", "a/b/c/m", false),
            ("m?.onnx", "m1.onnx", true),
            ("a?b", "a/b", false),
            ("**/x*y/z", "a/xby/c/xy/z", true),
            ("*", "", true),
            ("", "a", false),
            ("a*", "a", true),
        ] {
            assert_eq!(matches(glob, path), fits, "{glob} {path}");
        }
    }
}
