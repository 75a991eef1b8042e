//! What the pages tell people to type is there, and what they show as Rust is compiled.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;

use super::modules::{entries, shown};
use crate::Chore;
use crate::run::{Doing, Done, root};
use crate::workspace::Workspace;

/// Where pages are made doc tests, each by its path from there.
const DOCTESTS: &str = "crates/gen-worker/src/doctests.rs";

/// Commands that do not exist and snippets that nothing compiles, in all pages of the repository.
pub(super) fn breaches(workspace: &Workspace) -> Done<Vec<String>> {
    let doctests = fs::read_to_string(root().join(DOCTESTS)).doing(DOCTESTS)?;
    let mut pages = Vec::new();
    collect(&root(), &mut pages)?;
    pages.sort();
    let mut breaches = Vec::new();
    for page in pages {
        let text = fs::read_to_string(&page).doing(page.display())?;
        let (page, parts) = (shown(&page), parts(&text));
        let wrong = parts.commands.iter().filter_map(|command| fault(command, workspace));
        breaches.extend(wrong.map(|fault| format!("{page}: {fault}")));
        if parts.rust.iter().any(|fence| fence.contains("ignore")) {
            breaches.push(format!("{page}: a Rust snippet must not be ignored"));
        }
        if !parts.rust.is_empty() && !doctests.contains(&format!("../../../{page}\"")) {
            breaches.push(format!("{page}: it has Rust and must be a doc test in {DOCTESTS}"));
        }
    }
    Ok(breaches)
}

/// The pages below `dir`; hidden folders and what is built aside.
fn collect(dir: &Path, pages: &mut Vec<PathBuf>) -> Done {
    for path in entries(dir)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') || name == "target" {
            continue;
        } else if path.is_dir() {
            collect(&path, pages)?;
        } else if name.ends_with(".md") {
            pages.push(path);
        }
    }
    Ok(())
}

#[derive(Debug, Default, PartialEq)]
struct Parts<'a> {
    /// Lines of shell fences, and code within sentences and tables.
    commands: Vec<&'a str>,
    /// What stands behind the fence of each piece of Rust.
    rust: Vec<&'a str>,
}

fn parts(page: &str) -> Parts<'_> {
    let mut parts = Parts::default();
    let mut fence = None;
    for line in page.lines() {
        if let Some(info) = line.trim_start().strip_prefix("```") {
            fence = if fence.is_some() { None } else { Some(info) };
            parts.rust.extend(fence.filter(|info| info.starts_with("rust")));
            continue;
        }
        match fence {
            Some(info) if info == "sh" || info.starts_with("sh ") => parts.commands.extend(line.split("&&")),
            Some(_) => {}
            None => parts.commands.extend(line.split('`').skip(1).step_by(2)),
        }
    }
    parts
}

/// What is wrong with a command, if it is one of cargo's: a chore or a flag of it, or a package, that does not exist.
fn fault(command: &str, workspace: &Workspace) -> Option<String> {
    let command = command.split(" #").next().unwrap_or_default().trim();
    let is_setting = |word: &&str| word.contains('=');
    match command.split_whitespace().skip_while(is_setting).collect::<Vec<_>>().as_slice() {
        ["cargo", "xtask", ..] if !is_chore(command) => Some(format!("there is no `{command}`")),
        ["cargo", words @ ..] => {
            let cargos = words.split(|word| *word == "--").next().unwrap_or_default();
            let named = cargos.windows(2).filter(|pair| matches!(pair[0], "-p" | "--package"));
            let known = |name| workspace.packages.iter().any(|package| package.name == name);
            let unknown = named.map(|pair| pair[1]).find(|name| !known(*name))?;
            Some(format!("there is no package {unknown}, which `{command}` names"))
        }
        _ => None,
    }
}

fn is_chore(command: &str) -> bool {
    let words = command.split_whitespace().skip_while(|word| *word != "xtask");
    Chore::try_parse_from(words).map_or_else(|error| !error.use_stderr(), |_| true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Package;

    #[track_caller]
    fn check(command: &str, expected: Option<&str>) {
        let hello = Package {
            name: "hello".to_owned(),
            manifest_path: PathBuf::new(),
            dependencies: Vec::new(),
            targets: Vec::new(),
        };
        assert_eq!(fault(command, &Workspace { packages: vec![hello] }).as_deref(), expected);
    }

    #[test]
    fn commands_and_snippets_are_found_on_a_page() {
        let page =
            "say `a b`\n```sh\nc && d\n```\n| `e` | f |\n```rust,ignore\n`g`\n```\n```toml\n`h`\n```\n";
        let expected = Parts { commands: vec!["a b", "c ", " d", "e"], rust: vec!["rust,ignore"] };
        assert_eq!(parts(page), expected);
    }

    #[test]
    fn what_exists_may_be_typed() {
        check("A=1 cargo run -p hello -- -p nothing", None);
        check("cargo xtask proto --from DIR", None);
        check("cargo xtask demo   # a picture", None);
        check("worker -p nothing", None);
    }

    #[test]
    fn what_does_not_exist_is_named() {
        check("cargo xtask demos  # a picture", Some("there is no `cargo xtask demos`"));
        check("cargo xtask proto --to DIR", Some("there is no `cargo xtask proto --to DIR`"));
        let sentence = "there is no package goodbye, which `A=1 cargo test -p goodbye` names";
        check("A=1 cargo test -p goodbye", Some(sentence));
    }
}
