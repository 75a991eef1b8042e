//! What was found, line by line.

use std::fmt;

#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Row>);

#[derive(Debug)]
struct Row {
    what: &'static str,
    found: String,
    wanted: String,
    is_well: bool,
}

impl Table {
    pub(crate) fn add(
        &mut self,
        what: &'static str,
        found: impl ToString,
        wanted: impl ToString,
        is_well: bool,
    ) {
        self.0.push(Row { what, found: found.to_string(), wanted: wanted.to_string(), is_well });
    }

    pub(crate) fn is_all_well(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|row| row.is_well)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<52} {:<32} {:<32} ", "what", "found", "wanted")?;
        for Row { what, found, wanted, is_well } in &self.0 {
            writeln!(f, "{what:<52} {found:<32} {wanted:<32} {}", if *is_well { "ok" } else { "FAILED" })?;
        }
        Ok(())
    }
}
