//! `tidy`: the rules of the repository that no compiler knows.

mod edges;
mod guarantees;
mod manifests;
mod modules;
mod pages;
mod toolchain;

use crate::run::Done;
use crate::workspace::Workspace;

pub(crate) fn run() -> Done {
    let workspace = Workspace::read()?;
    let mut breaches = edges::breaches(&workspace);
    breaches.extend(edges::tree_breaches()?);
    breaches.extend(manifests::breaches(&workspace)?);
    breaches.extend(modules::breaches()?);
    breaches.extend(pages::breaches(&workspace)?);
    breaches.extend(guarantees::breaches()?);
    breaches.extend(toolchain::breaches()?);
    if breaches.is_empty() { Ok(()) } else { Err(breaches.join("\n")) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_repository_is_tidy() {
        super::run().unwrap_or_else(|breaches| panic!("{breaches}"));
    }
}
