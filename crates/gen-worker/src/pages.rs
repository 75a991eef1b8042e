//! The TOML and JSON of the repository's pages, read by what reads it in earnest.

use std::{fs, path::PathBuf};

use crate::cozy_toml::CozyToml;

/// Each page with its fences: what stands behind the fence, and the text.
fn fences() -> Vec<(PathBuf, String, String)> {
    let docs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let pages = fs::read_dir(docs).unwrap().map(|page| page.unwrap().path());
    let mut fences = Vec::new();
    for page in pages.filter(|page| page.extension().is_some_and(|extension| extension == "md")) {
        let text = fs::read_to_string(&page).unwrap();
        let mut open: Option<(String, String)> = None;
        for line in text.lines() {
            match (line.strip_prefix("```"), open.take()) {
                (Some(info), None) => open = Some((info.to_owned(), String::new())),
                (Some(_), Some((info, text))) => fences.push((page.clone(), info, text)),
                (None, Some((info, text))) => open = Some((info, text + line + "\n")),
                (None, None) => {}
            }
        }
    }
    fences
}

#[test]
fn every_toml_is_a_cozy_toml_or_says_what_it_is() {
    let mut read = 0;
    for (page, info, text) in fences() {
        if info != "toml" {
            assert!(!info.starts_with("toml"), "{page:?}: `{info}`");
        } else if text.starts_with("# Cargo.toml") {
            text.parse::<toml::Table>().unwrap_or_else(|error| panic!("{page:?}: {error}\n{text}"));
        } else {
            let (_, mistakes) = CozyToml::parse(&text);
            let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
            assert!(mistakes.is_empty(), "{page:?}: {mistakes:?}\n{text}");
            read += 1;
        }
    }
    assert!(read >= 2, "the pages show cozy.toml");
}

#[test]
fn every_json_is_json() {
    let mut read = 0;
    for (page, _, text) in fences().into_iter().filter(|(_, info, _)| info == "json") {
        for document in serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>() {
            document.unwrap_or_else(|error| panic!("{page:?}: {error}\n{text}"));
            read += 1;
        }
    }
    assert!(read >= 2, "the pages show JSON");
}
