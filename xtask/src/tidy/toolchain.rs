//! One version of Rust: what manifests promise is what the tests run with.

use std::fs;

use toml::Table;

use crate::run::{Doing, Done, root};

pub(super) fn breaches() -> Done<Vec<String>> {
    let promised = text("Cargo.toml", &["workspace", "package", "rust-version"])?;
    let used = text("rust-toolchain.toml", &["toolchain", "channel"])?;
    Ok(breach(&promised, &used).into_iter().collect())
}

/// `1.95` promises what is tested with `1.95.0`.
fn breach(promised: &str, used: &str) -> Option<String> {
    let same = used == promised || used.strip_suffix(".0") == Some(promised);
    (!same).then(|| format!("Cargo.toml promises Rust {promised}, and rust-toolchain.toml tests {used}"))
}

/// A text in a file of the repository, by its path.
fn text(file: &str, path: &[&str]) -> Done<String> {
    let table: Table = fs::read_to_string(root().join(file)).doing(file)?.parse().doing(file)?;
    let (last, tables) = path.split_last().expect("a path has an end");
    let table = tables.iter().try_fold(&table, |table, name| table.get(*name)?.as_table());
    let text = table.and_then(|table| table.get(*last)?.as_str());
    text.map(str::to_owned).ok_or_else(|| format!("{file}: there is no {}", path.join(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_promise_is_what_is_tested() {
        assert_eq!(breach("1.95", "1.95.0"), None);
        assert_eq!(breach("1.95.1", "1.95.1"), None);
        for other in ["1.96.0", "1.95.1", "stable"] {
            assert!(breach("1.95", other).is_some(), "{other}");
        }
    }
}
