//! What somebody who mistyped a name most likely meant.

/// Names less alike than this are not worth a guess; it is what clap takes.
const ALIKE: f64 = 0.7;

/// The name most like `word`, if any is like it.
pub(crate) fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = names.into_iter().map(|name| (strsim::jaro_winkler(word, name), name));
    let best = scored.filter(|(score, _)| *score > ALIKE).max_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, name)| name)
}

/// ``: did you mean `name`?``, or nothing.
pub fn did_you_mean<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, names).map(|name| format!(": did you mean `{name}`?")).unwrap_or_default()
}

/// Names as a sentence has them: `` `a`, `b` ``.
pub fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_understood_and_another_word_is_not() {
        let names = ["prompt", "steps", "seed"];
        assert_eq!(nearest("promt", names), Some("prompt"));
        assert_eq!(nearest("setps", names), Some("steps"));
        assert_eq!(nearest("width", names), None);
    }
}
