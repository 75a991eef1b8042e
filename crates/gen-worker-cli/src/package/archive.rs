//! Files as a compressed archive that says nothing of when, where and by whom it was made.

use std::io;

use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

/// One file of an archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Below the project's folder, with `/` between segments.
    pub(super) path: String,
    pub(super) content: Content,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    File {
        data: Vec<u8>,
        executable: bool,
    },
    /// A link to another file of the project.
    Link {
        target: String,
    },
}

impl Entry {
    pub(super) fn text(path: &str, text: String) -> Self {
        Self { path: path.to_owned(), content: Content::File { data: text.into(), executable: false } }
    }

    /// What is in it; nothing, for a link.
    pub(super) fn data(&self) -> &[u8] {
        match &self.content {
            Content::File { data, .. } => data,
            Content::Link { .. } => &[],
        }
    }
}

/// The archive's bytes, which depend on nothing but the entries.
pub(super) fn pack(mut entries: Vec<Entry>) -> io::Result<Vec<u8>> {
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    let packed = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::best());
    let mut archive = Builder::new(packed);
    for Entry { path, content } in entries {
        let mut header = Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        match content {
            Content::File { data, executable } => {
                header.set_entry_type(EntryType::Regular);
                header.set_mode(if executable { 0o755 } else { 0o644 });
                header.set_size(data.len() as u64);
                archive.append_data(&mut header, path, data.as_slice())?;
            }
            Content::Link { target } => {
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                archive.append_link(&mut header, path, target)?;
            }
        }
    }
    archive.into_inner()?.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    fn entries() -> Vec<Entry> {
        let deep = format!("{}/file", "folder/".repeat(40).trim_end_matches('/'));
        let link = Content::Link { target: "b".to_owned() };
        vec![
            Entry::text("b", "bee".to_owned()),
            Entry { path: "a".to_owned(), content: link },
            Entry::text(&deep, "deep".to_owned()),
            Entry {
                path: "run".to_owned(),
                content: Content::File { data: b"#!".to_vec(), executable: true },
            },
        ]
    }

    #[test]
    fn the_same_files_make_the_same_bytes() {
        let mut shuffled = entries();
        shuffled.reverse();
        assert_eq!(pack(entries()).unwrap(), pack(shuffled).unwrap());
        let mut other = entries();
        other[0] = Entry::text("b", "bea".to_owned());
        assert_ne!(pack(entries()).unwrap(), pack(other).unwrap());
    }

    #[test]
    fn what_was_packed_comes_out() {
        let packed = pack(entries()).unwrap();
        let mut archive = tar::Archive::new(GzDecoder::new(packed.as_slice()));
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let (mode, mtime) = (entry.header().mode().unwrap(), entry.header().mtime().unwrap());
            let path = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            assert_eq!(mtime, 0);
            found.push((path.chars().take(8).collect::<String>(), mode, text));
        }
        let expected =
            [("a", 0o777, ""), ("b", 0o644, "bee"), ("folder/f", 0o644, "deep"), ("run", 0o755, "#!")];
        assert_eq!(found, expected.map(|(path, mode, text)| (path.to_owned(), mode, text.to_owned())));
    }
}
