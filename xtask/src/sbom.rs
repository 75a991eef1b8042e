//! `sbom`: what a program is linked from, as CycloneDX 1.5 in JSON. The same commit gives the same bytes: no time and no number by
//! chance is in it.

use std::collections::BTreeMap;
use std::fs;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::run::{Doing, Done, command, output, root};
use crate::tree::{Id, PLATFORM, Tree};
use crate::workspace::Workspace;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The package of the program; unset, every package under crates/ and examples/ that is one
    #[arg(long)]
    package: Option<String>,
}

/// What cargo knows of a crate beside its name and version.
#[derive(Deserialize)]
struct Known {
    name: String,
    version: String,
    license: Option<String>,
    repository: Option<String>,
}

/// What `Cargo.lock` says of one.
#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// What is known of all crates.
struct Facts {
    known: BTreeMap<(String, String), Known>,
    checksums: BTreeMap<(String, String), String>,
}

pub(crate) fn run(args: &Args) -> Done {
    let facts = Facts::read()?;
    let folder = root().join("target/sbom");
    fs::create_dir_all(&folder).doing(folder.display())?;
    let packages = match &args.package {
        Some(package) => vec![package.clone()],
        None => programs()?,
    };
    for package in packages {
        let path = folder.join(format!("{package}.cdx.json"));
        let document = document(&Tree::of(&package)?, &facts);
        fs::write(&path, format!("{document:#}\n")).doing(path.display())?;
        println!("{}", path.display());
    }
    Ok(())
}

/// The packages with a program that others run.
fn programs() -> Done<Vec<String>> {
    let shipped = |dir: &std::path::Path| dir.starts_with("crates") || dir.starts_with("examples");
    let packages = Workspace::read()?.packages;
    let programs = packages.into_iter().filter(|package| package.has_program() && shipped(package.dir()));
    Ok(programs.map(|package| package.name).collect())
}

impl Facts {
    fn read() -> Done<Self> {
        #[derive(Deserialize)]
        struct Metadata {
            packages: Vec<Known>,
        }
        #[derive(Deserialize)]
        struct Lock {
            package: Vec<Locked>,
        }
        let args = ["metadata", "--locked", "--format-version", "1", "--filter-platform", PLATFORM];
        let metadata: Metadata =
            serde_json::from_str(&output(&mut command("cargo", &args))?).doing("reading cargo's metadata")?;
        let path = root().join("Cargo.lock");
        let lock: Lock =
            toml::from_str(&fs::read_to_string(&path).doing(path.display())?).doing(path.display())?;
        let known =
            metadata.packages.into_iter().map(|known| ((known.name.clone(), known.version.clone()), known));
        let checksums = lock
            .package
            .into_iter()
            .filter_map(|locked| Some(((locked.name, locked.version), locked.checksum?)));
        Ok(Self { known: known.collect(), checksums: checksums.collect() })
    }

    fn component(&self, id: &Id, kind: &str) -> Value {
        let key = (id.name.clone(), id.version.clone());
        let mut component = json!({
            "type": kind,
            "bom-ref": purl(id),
            "name": id.name,
            "version": id.version,
            "purl": purl(id),
            "scope": "required",
        });
        let known = self.known.get(&key);
        if let Some(license) = known.and_then(|known| known.license.as_ref()) {
            // Older manifests have a slash where SPDX has a word.
            component["licenses"] = json!([{"expression": license.replace('/', " OR ")}]);
        }
        if let Some(checksum) = self.checksums.get(&key) {
            component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
        }
        if let Some(repository) = known.and_then(|known| known.repository.as_ref()) {
            component["externalReferences"] = json!([{"type": "vcs", "url": repository}]);
        }
        component
    }
}

fn purl(id: &Id) -> String {
    format!("pkg:cargo/{}@{}", id.name, id.version)
}

fn document(tree: &Tree, facts: &Facts) -> Value {
    let below = tree.needs.keys().filter(|id| **id != tree.root);
    let components: Vec<_> = below.map(|id| facts.component(id, "library")).collect();
    let dependencies: Vec<_> = tree
        .needs
        .iter()
        .map(|(id, needs)| json!({"ref": purl(id), "dependsOn": needs.iter().map(purl).collect::<Vec<_>>()}))
        .collect();
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": facts.component(&tree.root, "application")},
        "components": components,
        "dependencies": dependencies,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn of_the_command() -> Value {
        document(&Tree::of("gen-worker-cli").unwrap(), &Facts::read().unwrap())
    }

    /// The fields that CycloneDX 1.5 demands, and those by which a reviewer finds an advisory.
    #[test]
    fn each_component_says_what_it_is() {
        let document = of_the_command();
        let head = ["bomFormat", "specVersion"].map(|name| document[name].as_str());
        assert_eq!((head, document["version"].as_u64()), ([Some("CycloneDX"), Some("1.5")], Some(1)));
        let components = document["components"].as_array().unwrap();
        assert!(components.len() > 100, "{}", components.len());
        for component in components.iter().chain([&document["metadata"]["component"]]) {
            for name in ["type", "bom-ref", "name", "version", "purl"] {
                assert!(component[name].is_string(), "{component}");
            }
            let expression = component["licenses"][0]["expression"].as_str();
            assert!(expression.is_some_and(|expression| !expression.contains('/')), "{component}");
            let ours = component["name"].as_str().unwrap().starts_with("gen-worker");
            let digest = component["hashes"][0]["content"].as_str();
            assert_eq!(digest.map(str::len), (!ours).then_some(64), "{component}");
        }
    }

    #[test]
    fn each_edge_leads_to_a_component() {
        let document = of_the_command();
        let components = document["components"].as_array().unwrap().iter();
        let refs: Vec<_> = components
            .chain([&document["metadata"]["component"]])
            .map(|component| &component["bom-ref"])
            .collect();
        let distinct: BTreeSet<_> = refs.iter().map(|name| name.as_str()).collect();
        assert_eq!(distinct.len(), refs.len());
        let edges = document["dependencies"].as_array().unwrap();
        assert_eq!(edges.len(), refs.len());
        let ends =
            edges.iter().flat_map(|edge| edge["dependsOn"].as_array().unwrap().iter().chain([&edge["ref"]]));
        assert!(ends.into_iter().all(|end| distinct.contains(&end.as_str())));
    }

    #[test]
    fn a_commit_has_one_document() {
        assert_eq!(of_the_command().to_string(), of_the_command().to_string());
    }
}
