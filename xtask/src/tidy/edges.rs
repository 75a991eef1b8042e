//! Which crate may depend on which: the table of docs/architecture.md.

use crate::run::{Done, command, output};
use crate::workspace::{Dependency, Package, Workspace};

const CORE: &str = "gen-worker-core";
const NET: &str = "gen-worker-net";
const PROTO: &str = "gen-worker-proto";

/// Each crate under crates/ with the crates of the workspace that it may depend on, tests aside.
const EDGES: [(&str, &[&str]); 15] = [
    (CORE, &[]),
    (PROTO, &[]),
    ("gen-worker-macros", &[]),
    ("gen-worker-wheel", &[]),
    (NET, &[CORE]),
    ("gen-worker-auth", &[CORE, NET]),
    ("gen-worker-hub", &[CORE, NET]),
    ("gen-worker-upload", &[CORE, NET]),
    ("gen-worker-models-ort", &[CORE]),
    ("gen-worker-status", &[CORE]),
    ("gen-worker-runtime", &[CORE, PROTO]),
    (
        "gen-worker",
        &[
            CORE,
            PROTO,
            "gen-worker-macros",
            NET,
            "gen-worker-auth",
            "gen-worker-hub",
            "gen-worker-upload",
            "gen-worker-models-ort",
            "gen-worker-runtime",
            "gen-worker-status",
            "gen-worker-orchestrator",
            "gen-worker-testkit",
        ],
    ),
    ("gen-worker-orchestrator", &[CORE, PROTO, NET, "gen-worker-status"]),
    ("gen-worker-testkit", &[CORE, PROTO]),
    ("gen-worker-cli", &["gen-worker", "gen-worker-orchestrator", "gen-worker-wheel"]),
];

/// What the facade has only by feature.
const BY_FEATURE: [&str; 3] = ["gen-worker-models-ort", "gen-worker-orchestrator", "gen-worker-testkit"];

/// What only xtask depends on: code generators.
const GENERATORS: [&str; 4] = ["prost-build", "protox", "tonic-build", "tonic-prost-build"];

/// What must not be anywhere below a crate, whatever its features.
const ABSENT: [(&str, &[&str]); 2] =
    [(CORE, &["ort", "reqwest", "tonic"]), ("gen-worker-runtime", &["ort", "reqwest"])];

/// Edges that the table does not have.
pub(super) fn breaches(workspace: &Workspace) -> Vec<String> {
    let ours = |name: &str| workspace.packages.iter().any(|package| package.name == name);
    let mut breaches = Vec::new();
    for package in workspace.crates() {
        let name = &package.name;
        let Some((_, allowed)) = EDGES.iter().find(|(from, _)| from == name) else {
            breaches.push(format!("{name} has no row in the table of edges"));
            continue;
        };
        for to in shipped(package) {
            let below = &to.name.as_str();
            if ours(below) && !allowed.contains(below) {
                breaches.push(format!("{name} must not depend on {below}"));
            } else if GENERATORS.contains(below) {
                breaches.push(format!("{name} must not generate code with {below}: that is xtask's"));
            } else if name == "gen-worker" && BY_FEATURE.contains(below) && !to.optional {
                breaches.push(format!("{name} must have {below} by feature only"));
            }
        }
    }
    breaches
}

/// The dependencies of those who use the package.
fn shipped(package: &Package) -> impl Iterator<Item = &Dependency> {
    package.dependencies.iter().filter(|dependency| dependency.kind.as_deref() != Some("dev"))
}

/// Crates that lie below a crate that must not have them, at any depth.
pub(super) fn tree_breaches() -> Done<Vec<String>> {
    let mut breaches = Vec::new();
    for (name, absent) in ABSENT {
        let args = ["tree", "-p", name, "--edges", "normal", "--all-features", "--prefix", "none"];
        let tree = output(&mut command("cargo", &args))?;
        breaches
            .extend(found_in(&tree, absent).map(|below| format!("{name} must not have {below} below it")));
    }
    Ok(breaches)
}

/// Which of `absent` are packages of the tree; its lines are `name version …`.
fn found_in<'a>(tree: &'a str, absent: &'a [&str]) -> impl Iterator<Item = &'a str> {
    let is_there = move |name: &&&str| tree.lines().any(|line| line.split(' ').next() == Some(**name));
    absent.iter().filter(is_there).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dependency(name: &str, kind: Option<&str>) -> Dependency {
        Dependency { name: name.to_owned(), kind: kind.map(str::to_owned), optional: false }
    }

    fn package(name: &str, dependencies: Vec<Dependency>) -> Package {
        let manifest_path = format!("crates/{name}/Cargo.toml").into();
        Package { name: name.to_owned(), manifest_path, dependencies, targets: Vec::new() }
    }

    #[track_caller]
    fn check(of: &str, to: Dependency, expected: &[&str]) {
        let packages =
            vec![package(of, vec![to]), package(NET, vec![]), package("gen-worker-testkit", vec![])];
        assert_eq!(breaches(&Workspace { packages }), expected);
    }

    #[test]
    fn an_edge_of_the_table_is_fine() {
        check("gen-worker-hub", dependency(NET, None), &[]);
    }

    #[test]
    fn any_other_edge_is_not() {
        let sentence = "gen-worker-runtime must not depend on gen-worker-net";
        check("gen-worker-runtime", dependency(NET, None), &[sentence]);
        check("gen-worker-runtime", dependency(NET, Some("build")), &[sentence]);
    }

    #[test]
    fn tests_may_use_anything() {
        check("gen-worker-runtime", dependency(NET, Some("dev")), &[]);
    }

    #[test]
    fn a_crate_without_a_row_is_named() {
        check(
            "gen-worker-new",
            dependency("serde", None),
            &["gen-worker-new has no row in the table of edges"],
        );
    }

    #[test]
    fn only_xtask_generates_code() {
        let sentence = "gen-worker-proto must not generate code with protox: that is xtask's";
        check(PROTO, dependency("protox", Some("build")), &[sentence]);
    }

    #[test]
    fn the_facade_has_the_testkit_by_feature() {
        let sentence = "gen-worker must have gen-worker-testkit by feature only";
        check("gen-worker", dependency("gen-worker-testkit", None), &[sentence]);
        check("gen-worker", Dependency { optional: true, ..dependency("gen-worker-testkit", None) }, &[]);
    }

    #[test]
    fn a_tree_is_searched_by_whole_names() {
        let tree = "gen-worker-core v0.1.0 (/src)\nort-sys v2.0.0\nreqwest v0.13.5\n";
        assert_eq!(found_in(tree, &["ort", "reqwest"]).collect::<Vec<_>>(), ["reqwest"]);
    }
}
