//! Each guarantee has a test of its name, where docs/guarantees.md says.

use std::fs;

use crate::run::{Doing, Done, root};

const PAGE: &str = "docs/guarantees.md";

/// Guarantees that name no place, or a place that has no test of that name.
pub(super) fn breaches() -> Done<Vec<String>> {
    let page = fs::read_to_string(root().join(PAGE)).doing(PAGE)?;
    let read = |place: &str| fs::read_to_string(root().join(place)).unwrap_or_default();
    let found: Vec<String> = page.lines().filter_map(row).flat_map(|row| row.breaches(read)).collect();
    Ok(found.iter().map(|breach| format!("{PAGE}: {breach}")).collect())
}

#[derive(Debug, PartialEq)]
struct Row<'a> {
    guarantee: &'a str,
    /// The promise, what it assumes, and what is not promised.
    said: Vec<&'a str>,
    places: Vec<&'a str>,
}

/// A row of the table: a guarantee, three cells about it, the files of its tests.
fn row(line: &str) -> Option<Row<'_>> {
    let (guarantee, rest) = line.strip_prefix("| `")?.split_once('`')?;
    let mut cells: Vec<&str> = rest.trim_end().trim_matches('|').split('|').map(str::trim).collect();
    let last = cells.pop().unwrap_or_default();
    let said = cells.into_iter().skip_while(|cell| cell.is_empty()).collect();
    let places = last.split('`').skip(1).step_by(2).collect();
    Some(Row { guarantee, said, places })
}

impl Row<'_> {
    fn breaches(&self, read: impl Fn(&str) -> String) -> Vec<String> {
        let test = format!("fn {}(", self.guarantee);
        let silent = self.places.iter().filter(|place| !read(place).contains(&test));
        let mut breaches: Vec<String> =
            silent.map(|place| format!("{place} has no test {}", self.guarantee)).collect();
        if self.said.len() != 3 || self.said.contains(&"") {
            breaches.push(format!("{} has not three cells that say something", self.guarantee));
        }
        if self.places.is_empty() {
            breaches.push(format!("{} has no test", self.guarantee));
        }
        breaches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(place: &str) -> String {
        if place == "a.rs" { "async fn all_is_well() {".to_owned() } else { String::new() }
    }

    #[test]
    fn a_test_is_found_where_the_page_says() {
        let row = row("| `all_is_well` | `well` is all | – | more | `a.rs` |").unwrap();
        assert_eq!(
            row,
            Row {
                guarantee: "all_is_well", said: vec!["`well` is all", "–", "more"], places: vec!["a.rs"]
            }
        );
        assert_eq!(row.breaches(read), [""; 0]);
    }

    #[test]
    fn a_promise_without_a_test_is_named() {
        let of = |line| row(line).unwrap().breaches(read);
        assert_eq!(of("| `all_is_well` | a | b | c | `a.rs`, `b.rs` |"), ["b.rs has no test all_is_well"]);
        assert_eq!(of("| `all_is` | a | b | c | `a.rs` |"), ["a.rs has no test all_is"]);
        assert_eq!(of("| `all_is_well` | a | b | c | |"), ["all_is_well has no test"]);
        let silent = ["all_is_well has not three cells that say something"];
        assert_eq!(of("| `all_is_well` | a | | c | `a.rs` |"), silent);
        assert_eq!(of("| `all_is_well` | a | `a.rs` |"), silent);
    }

    #[test]
    fn headings_are_no_guarantees() {
        assert_eq!(row("| guarantee | promise | assumes | not promised | test |"), None);
        assert_eq!(row("|---|---|---|---|---|"), None);
    }
}
