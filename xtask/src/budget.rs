//! `budget`: how many crates a worker is linked from, held to `budget.toml`.

use std::collections::BTreeMap;
use std::fs;

use serde::Deserialize;

use crate::run::{Doing, Done, root};
use crate::tree::Tree;

/// A crate is heavy if so many are there for its sake alone, itself among them.
const HEAVY: usize = 5;

/// `budget.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    /// Most crates from outside in the tree of each package with its default features.
    most: BTreeMap<String, usize>,
    /// Why each heavy one is there.
    heavy: BTreeMap<String, String>,
    /// What is in no such tree; a star stands for the rest of a name.
    absent: Vec<String>,
}

pub(crate) fn run() -> Done {
    let path = root().join("budget.toml");
    let text = fs::read_to_string(&path).doing(path.display())?;
    let budget: Budget = toml::from_str(&text).doing(path.display())?;
    let trees = budget.most.keys().map(|package| Tree::of(package)).collect::<Done<Vec<_>>>()?;
    let (numbers, breaches) = (numbers(&budget, &trees), breaches(&budget, &trees));
    print!("{numbers}");
    if breaches.is_empty() { Ok(()) } else { Err(breaches.join("\n")) }
}

/// The counts, and each heavy crate with what it comes with and the reason.
fn numbers(budget: &Budget, trees: &[Tree]) -> String {
    let of_trees = trees.iter().map(|tree| {
        let (name, count) = (&tree.root.name, tree.foreign().count());
        format!("{name}: {count} crates from outside, {} at most\n", budget.most[name])
    });
    let of_crates = heavy(trees).into_iter().map(|(name, count)| {
        let why = budget.heavy.get(&name).map_or("-", String::as_str);
        format!("  {name} with {count} of its own: {why}\n")
    });
    of_trees.chain(of_crates).collect()
}

/// The heavy crates that ours name, and how many would go with each.
fn heavy(trees: &[Tree]) -> BTreeMap<String, usize> {
    let chosen = trees
        .iter()
        .flat_map(|tree| tree.chosen().into_iter().map(|id| (id.name.clone(), tree.alone(id).len())));
    chosen.filter(|(_, count)| *count >= HEAVY).collect()
}

fn breaches(budget: &Budget, trees: &[Tree]) -> Vec<String> {
    let mut breaches = Vec::new();
    for tree in trees {
        let (name, count) = (&tree.root.name, tree.foreign().count());
        let most = budget.most[name];
        if count > most {
            breaches.push(format!(
                "{name} has {count} crates below it, {most} at most: do without, or raise budget.toml"
            ));
        }
        let found = tree.foreign().filter(|id| budget.absent.iter().any(|absent| matches(absent, &id.name)));
        breaches.extend(found.map(|id| format!("{name} must not have {} below it", id.name)));
    }
    let heavy = heavy(trees);
    let unexplained = heavy.iter().filter(|(name, _)| !budget.heavy.contains_key(*name));
    breaches.extend(
        unexplained.map(|(name, count)| {
            format!("{name} comes with {count} crates of its own: say why in budget.toml")
        }),
    );
    let gone = budget.heavy.keys().filter(|name| !heavy.contains_key(*name));
    breaches.extend(gone.map(|name| format!("{name} is not heavy any more: take it out of budget.toml")));
    breaches
}

/// A star at the end stands for the rest of a name.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_kept() {
        run().unwrap_or_else(|breaches| panic!("{breaches}"));
    }

    fn check(budget: &str, expected: &[&str]) {
        let tree = Tree::parse("0a v1.0.0 (/src/a)\n1b v2.0.0\n").unwrap();
        assert_eq!(breaches(&toml::from_str(budget).unwrap(), &[tree]), expected);
    }

    #[test]
    fn more_crates_or_one_that_must_not_be_there_is_a_breach() {
        check("absent = ['b-*', 'z']\nmost.a = 1\nheavy = {}", &[]);
        let sentence = "a has 1 crates below it, 0 at most: do without, or raise budget.toml";
        check("absent = ['b*']\nmost.a = 0\nheavy = {}", &[sentence, "a must not have b below it"]);
        let sentence = "b is not heavy any more: take it out of budget.toml";
        check("absent = []\nmost.a = 1\nheavy.b = 'x'", &[sentence]);
    }
}
