//! What is below a package, as cargo resolves it for that package alone.

use std::collections::{BTreeMap, BTreeSet};

use crate::run::{Doing, Done, command, output};

/// One platform for all, so that a tree is the same on every machine.
pub(crate) const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// A crate and its version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    pub(crate) name: String,
    pub(crate) version: String,
    /// Whether it lies in this repository.
    pub(crate) ours: bool,
}

/// What a package is linked from, and what each of it needs directly.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) root: Id,
    pub(crate) needs: BTreeMap<Id, BTreeSet<Id>>,
}

impl Tree {
    /// The tree of a package with its default features.
    pub(crate) fn of(package: &str) -> Done<Self> {
        let args = ["tree", "--locked", "--edges", "normal", "--prefix", "depth"];
        let printed = output(command("cargo", &args).args(["--target", PLATFORM, "--package", package]))?;
        Self::parse(&printed).doing(format!("reading the tree of {package}"))
    }

    /// Lines are `<depth><name> v<version> …`; what was said before has no crates below it.
    pub(crate) fn parse(printed: &str) -> Result<Self, &'static str> {
        let (mut needs, mut path) = (BTreeMap::<Id, BTreeSet<Id>>::new(), Vec::<Id>::new());
        for line in printed.lines() {
            let name = line.find(|c: char| !c.is_ascii_digit()).ok_or("a line without a name")?;
            let depth: usize = line[..name].parse().map_err(|_| "a line without a depth")?;
            let id = Id::parse(&line[name..]).ok_or("a line without a version")?;
            path.truncate(depth);
            needs.entry(id.clone()).or_default();
            if let Some(above) = path.last() {
                needs.entry(above.clone()).or_default().insert(id.clone());
            }
            path.push(id);
        }
        Ok(Self { root: path.into_iter().next().ok_or("an empty tree")?, needs })
    }

    /// The crates that are not of this repository.
    pub(crate) fn foreign(&self) -> impl Iterator<Item = &Id> {
        self.needs.keys().filter(|id| !id.ours)
    }

    /// The foreign crates that crates of this repository name themselves.
    pub(crate) fn chosen(&self) -> BTreeSet<&Id> {
        let ours = self.needs.iter().filter(|(id, _)| id.ours);
        ours.flat_map(|(_, needs)| needs).filter(|id| !id.ours).collect()
    }

    /// What would go if crates of this repository did not name this one: itself, and what nobody else needs.
    pub(crate) fn alone<'a>(&'a self, id: &'a Id) -> BTreeSet<&'a Id> {
        let others = self.below(self.chosen().into_iter().filter(|other| *other != id));
        self.below([id]).difference(&others).copied().collect()
    }

    /// These crates and all that is below them.
    fn below<'a>(&'a self, of: impl IntoIterator<Item = &'a Id>) -> BTreeSet<&'a Id> {
        let (mut found, mut next) = (BTreeSet::new(), of.into_iter().collect::<Vec<_>>());
        while let Some(id) = next.pop() {
            if found.insert(id) {
                next.extend(self.needs.get(id).into_iter().flatten());
            }
        }
        found
    }
}

impl Id {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (name, version) = (words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned());
        let ours = words.any(|word| word.starts_with("(/"));
        Some(Self { name, version, ours })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "0a v1.0.0 (/src/a)\n1b v2.0.0 (proc-macro)\n2c v3.0.0\n1c v3.0.0 (*)\n1d v1.0.0 (/src/d)\n2e v4.0.0\n";

    #[test]
    fn a_tree_is_read_with_its_edges() {
        let tree = Tree::parse(PRINTED).unwrap();
        let names = |ids: BTreeSet<&Id>| ids.into_iter().map(|id| id.name.clone()).collect::<Vec<_>>();
        assert_eq!(tree.root.name, "a");
        assert_eq!(names(tree.foreign().collect()), ["b", "c", "e"]);
        assert_eq!(names(tree.chosen()), ["b", "c", "e"]);
        let b = tree.foreign().next().unwrap();
        assert_eq!(names(tree.below([b])), ["b", "c"]);
        assert_eq!(names(tree.alone(b)), ["b"], "c is named by a, too");
        assert_eq!(names(tree.needs[&tree.root].iter().collect()), ["b", "c", "d"]);
    }

    #[test]
    fn what_is_no_tree_is_told() {
        for wrong in ["", "a v1", "0a", "0"] {
            assert!(Tree::parse(wrong).is_err(), "{wrong}");
        }
    }
}
