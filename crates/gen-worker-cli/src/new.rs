//! `gen-worker new`: an empty folder becomes a project that builds and runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, ValueEnum};

use crate::Failure;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The project's name, and that of its folder
    name: String,
    /// What it begins with
    #[arg(long, value_enum, default_value = "hello")]
    template: Template,
    /// A checkout of gen-worker to build against, in the place of the published crate
    #[arg(long, value_name = "FOLDER")]
    checkout: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Template {
    /// One function, typed in and out
    Hello,
    /// A picture in, a picture out
    Image,
    /// Items that arrive one by one
    Stream,
    /// A model on ONNX Runtime
    Model,
}

impl Template {
    /// `src/main.rs`.
    fn code(self) -> &'static str {
        match self {
            Self::Hello => include_str!("../templates/hello/src/main.rs"),
            Self::Image => include_str!("../templates/image/src/main.rs"),
            Self::Stream => include_str!("../templates/stream/src/main.rs"),
            Self::Model => include_str!("../templates/model/src/main.rs"),
        }
    }

    /// What it depends on beside what all do.
    fn dependencies(self) -> &'static str {
        match self {
            Self::Hello | Self::Model => "",
            Self::Image => {
                "image = { version = \"0.25\", default-features = false, features = [\"png\", \"jpeg\"] }\n"
            }
            Self::Stream => "futures-util = \"0.3\"\ntokio = { version = \"1\", features = [\"time\"] }\n",
        }
    }

    /// Commands that show what it does.
    fn example(self) -> &'static str {
        match self {
            Self::Hello => "cargo run -- run hello world",
            Self::Image => "cargo run -- run thumbnail image@PICTURE.png",
            Self::Stream => "cargo run -- run words 'one by one'",
            Self::Model => "gen-worker ort install\ncargo run -- run infer 'values:=[1, 2]'",
        }
    }

    /// Files that are no text.
    fn others(self) -> &'static [(&'static str, &'static [u8])] {
        match self {
            Self::Hello | Self::Image | Self::Stream => &[],
            Self::Model => &[(
                "models/demo/double_plus_one.onnx",
                include_bytes!("../templates/model/models/demo/double_plus_one.onnx"),
            )],
        }
    }
}

#[expect(clippy::print_stderr, reason = "what to do next is for whoever typed the command")]
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let Arguments { name, template, checkout } = arguments;
    check_name(name)?;
    let folder = Path::new(name);
    if folder.exists() {
        return Err(format!("{name} is there already: choose another name").into());
    }
    for (path, content) in files(name, *template, checkout.as_deref())? {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        fs::write(path, content)?;
    }
    eprintln!("made {name}; to try it:\n\n  cd {name}");
    template.example().lines().for_each(|line| eprintln!("  {line}"));
    Ok(ExitCode::SUCCESS)
}

/// What cargo takes as a package, and Rust as a crate.
fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let taken =
        ["alloc", "core", "futures-util", "gen-worker", "image", "schemars", "serde", "std", "test", "tokio"];
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(fits) {
        return Err(format!("`{name}` cannot be a project: letters, digits, `-` and `_`, a letter first"));
    }
    if taken.contains(&name.replace('_', "-").as_str()) {
        return Err(format!("`{name}` is the name of another crate that the project uses: choose another"));
    }
    Ok(())
}

fn files(
    name: &str,
    template: Template,
    checkout: Option<&Path>,
) -> Result<Vec<(&'static str, Vec<u8>)>, Failure> {
    let fill = |text: &str| {
        text.replace("{{name}}", name)
            .replace("{{module}}", &name.replace('-', "_"))
            .replace("{{version}}", env!("CARGO_PKG_VERSION"))
            .replace("{{dependencies}}", template.dependencies())
            .replace("{{try}}", template.example())
            .into_bytes()
    };
    let mut files = vec![
        ("Cargo.toml", fill(include_str!("../templates/common/Cargo.toml.in"))),
        ("cozy.toml", fill(include_str!("../templates/common/cozy.toml"))),
        ("README.md", fill(include_str!("../templates/common/README.md"))),
        (".gitignore", fill(include_str!("../templates/common/gitignore"))),
        ("src/main.rs", template.code().into()),
    ];
    files.extend(template.others().iter().map(|(path, content)| (*path, content.to_vec())));
    if let Some(checkout) = checkout {
        let facade = checkout.join("crates/gen-worker");
        let facade = fs::canonicalize(&facade)
            .map_err(|error| format!("{} is no checkout of gen-worker: {error}", facade.display()))?;
        // Cargo's own settings, which are this machine's: the project itself names the published crate.
        let patch =
            format!("[patch.crates-io]\ngen-worker = {{ path = {:?} }}\n", facade.display().to_string());
        files.push((".cargo/config.toml", patch.into_bytes()));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_cargo_takes() {
        for name in ["my-worker", "w2", "A_b"] {
            assert_eq!(check_name(name), Ok(()));
        }
        for name in ["", "2w", "-w", "a b", "../w", "é", "gen_worker", "image"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn nothing_is_left_to_fill_in() {
        for template in Template::value_variants() {
            let files = files("my-worker", *template, None).unwrap();
            for (path, content) in files.iter().filter(|(path, _)| !path.ends_with(".onnx")) {
                let text = str::from_utf8(content).unwrap();
                assert!(!text.contains("{{") && !text.contains("\n\n\n"), "{path}:\n{text}");
            }
            let manifest = str::from_utf8(&files[0].1).unwrap();
            assert!(manifest.contains("lto = \"fat\"") && manifest.contains("codegen-units = 1"));
        }
    }
}
