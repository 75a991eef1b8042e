//! The keys of the attribute.

use proc_macro2::Span;
use syn::{
    Error, Expr, ExprLit, Ident, Lit, LitStr, Result, Token,
    parse::{Parse, ParseStream},
    spanned::Spanned,
};

const KEYS: [&str; 7] = [
    "name",
    "model_family",
    "model_name",
    "requires_gpu",
    "max_concurrency",
    "min_vram_gb",
    "recommended_vram_gb",
];

/// Longest name that core's `FunctionName` accepts, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// What stands in the attribute's parentheses.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Options {
    pub(crate) name: Option<String>,
    pub(crate) model_family: Option<String>,
    pub(crate) model_name: Option<String>,
    pub(crate) requires_gpu: bool,
    pub(crate) max_concurrency: Option<u32>,
    pub(crate) min_vram_gb: Option<f64>,
    pub(crate) recommended_vram_gb: Option<f64>,
}

impl Parse for Options {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut options = Self::default();
        let mut seen: Vec<Ident> = Vec::new();
        while !input.is_empty() {
            let key: Ident = input.parse()?;
            if seen.contains(&key) {
                return Err(Error::new(key.span(), format!("`{key}` is given twice; remove one")));
            }
            options.take(&key, input)?;
            seen.push(key);
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(options)
    }
}

impl Options {
    fn take(&mut self, key: &Ident, input: ParseStream<'_>) -> Result<()> {
        let text = key.to_string();
        if !KEYS.contains(&text.as_str()) {
            return Err(unknown_key(key, &KEYS));
        }
        if !input.peek(Token![=]) {
            return Err(Error::new(key.span(), format!("`{key}` needs a value: `{key} = …`")));
        }
        input.parse::<Token![=]>()?;
        let value: Expr = input.parse()?;
        match text.as_str() {
            "name" => self.name = Some(wire_name(&value)?),
            "model_family" => self.model_family = Some(string(key, &value)?.value()),
            "model_name" => self.model_name = Some(string(key, &value)?.value()),
            "requires_gpu" => self.requires_gpu = boolean(key, &value)?,
            "max_concurrency" => self.max_concurrency = Some(count(key, &value)?),
            "min_vram_gb" => self.min_vram_gb = Some(gibibytes(key, &value)?),
            _ => self.recommended_vram_gb = Some(gibibytes(key, &value)?),
        }
        Ok(())
    }
}

/// An error at a key that is none of `known`, with the one that was probably meant.
pub(crate) fn unknown_key(key: &Ident, known: &[&str]) -> Error {
    let text = key.to_string();
    let nearest = known
        .iter()
        .map(|known| (distance(&text, known), known))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, known)| *distance <= known.len() / 2);
    let hint = match nearest {
        Some((_, known)) => format!("did you mean `{known}`?"),
        None => format!("the keys are `{}`", known.join("`, `")),
    };
    Error::new(key.span(), format!("unknown key `{key}`; {hint}"))
}

/// How many letters have to be put in, left out or changed to turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn literal(value: &Expr) -> Option<&Lit> {
    match value {
        Expr::Lit(ExprLit { lit, .. }) => Some(lit),
        Expr::Group(group) => literal(&group.expr),
        _ => None,
    }
}

fn string<'e>(key: &Ident, value: &'e Expr) -> Result<&'e LitStr> {
    match literal(value) {
        Some(Lit::Str(text)) => Ok(text),
        _ => Err(Error::new(value.span(), format!("`{key}` is text: `{key} = \"…\"`"))),
    }
}

fn boolean(key: &Ident, value: &Expr) -> Result<bool> {
    match literal(value) {
        Some(Lit::Bool(boolean)) => Ok(boolean.value),
        _ => Err(Error::new(value.span(), format!("`{key}` is `true` or `false`"))),
    }
}

fn count(key: &Ident, value: &Expr) -> Result<u32> {
    let parsed = match literal(value) {
        Some(Lit::Int(number)) => number.base10_parse().ok().filter(|number| *number > 0),
        _ => None,
    };
    let hint = format!("`{key}` is a whole number from 1 to {}; leave it out for no limit", u32::MAX);
    parsed.ok_or_else(|| Error::new(value.span(), hint))
}

fn gibibytes(key: &Ident, value: &Expr) -> Result<f64> {
    let parsed: Option<f64> = match literal(value) {
        Some(Lit::Int(number)) => number.base10_parse().ok(),
        Some(Lit::Float(number)) => number.base10_parse().ok(),
        _ => None,
    };
    parsed
        .filter(|number| number.is_finite())
        .ok_or_else(|| Error::new(value.span(), format!("`{key}` is a number of GiB, such as `{key} = 8.5`")))
}

fn wire_name(value: &Expr) -> Result<String> {
    let name = string(&Ident::new("name", Span::call_site()), value)?;
    check_name(&name.value()).map_err(|problem| Error::new(name.span(), problem))?;
    Ok(name.value())
}

/// Core's rule for function names, so that making the function cannot fail.
pub(crate) fn check_name(name: &str) -> std::result::Result<(), String> {
    if name.is_empty() {
        Err("a function's name must not be empty".to_owned())
    } else if name.len() > MAX_NAME_BYTES {
        Err(format!("a function's name has at most {MAX_NAME_BYTES} bytes, this one has {}", name.len()))
    } else if name.chars().any(char::is_control) {
        Err("a function's name must not hold a control character".to_owned())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use syn::parse::Parser;

    use super::*;

    fn message(text: &str) -> String {
        Options::parse.parse_str(text).expect_err("it is refused").to_string()
    }

    #[test]
    fn takes_every_key_and_none() {
        let all = r#"name = "n", model_family = "f", model_name = "m", requires_gpu = true, max_concurrency = 2,
            min_vram_gb = 8, recommended_vram_gb = 12.5,"#;
        let expected = Options {
            name: Some("n".into()),
            model_family: Some("f".into()),
            model_name: Some("m".into()),
            requires_gpu: true,
            max_concurrency: Some(2),
            min_vram_gb: Some(8.0),
            recommended_vram_gb: Some(12.5),
        };
        assert_eq!(Options::parse.parse_str(all).unwrap(), expected);
        assert_eq!(Options::parse.parse_str("").unwrap(), Options::default());
    }

    #[test]
    fn an_unknown_key_is_answered_with_the_nearest() {
        assert_eq!(
            message("max_concurency = 1"),
            "unknown key `max_concurency`; did you mean `max_concurrency`?"
        );
        assert!(message("colour = 1").contains("the keys are `name`"), "no nearest");
    }

    #[test]
    fn a_key_stands_once_and_has_a_value() {
        assert!(message("requires_gpu = true, requires_gpu = true").contains("twice"));
        assert_eq!(message("requires_gpu"), "`requires_gpu` needs a value: `requires_gpu = …`");
    }

    #[test]
    fn a_concurrency_is_a_whole_number_from_one() {
        for bad in ["0", "-1", "1.5", "\"1\"", "4294967296"] {
            assert!(message(&format!("max_concurrency = {bad}")).contains("from 1 to"), "{bad}");
        }
    }

    #[test]
    fn memory_is_a_number_that_is_not_negative() {
        for bad in ["-8", "\"8\"", "true", "1e999"] {
            assert!(message(&format!("min_vram_gb = {bad}")).contains("GiB"), "{bad}");
        }
    }

    #[test]
    fn a_name_is_one_that_core_accepts() {
        assert!(message(r#"name = """#).contains("empty"));
        assert!(message(r#"name = "a\nb""#).contains("control"));
        assert!(message(&format!(r#"name = "{}""#, "x".repeat(257))).contains("256"));
        assert!(message("name = 7").contains("is text"));
    }
}
