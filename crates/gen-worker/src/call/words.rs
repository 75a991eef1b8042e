//! The grammar of a call: words and a schema become a payload.
//!
//! | word | meaning |
//! |---|---|
//! | `field=value` | a value, read as the field's schema says |
//! | `field:=json` | a value, as JSON |
//! | `field@path` | a file: for an asset itself, for a text its content, for all else the JSON in it |
//! | `outer.inner=value` | a field of a field |
//! | anything else | the first field that must be there and takes a text |

use std::{collections::BTreeSet, path::PathBuf};

use serde_json::{Map, Value};

use super::schema::Schema;
use crate::nearest::{did_you_mean, quoted};

/// What the worker takes out of every payload, whatever the function's type.
const OUTPUT_UPLOAD: &str = "output_upload";

/// A payload as it was said. Its files are still to be read, or to be stored where the worker finds them.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Spoken {
    pub(crate) payload: Map<String, Value>,
    pub(crate) files: Vec<FileWord>,
}

/// A file for a place in the payload.
#[derive(Debug, PartialEq)]
pub(crate) struct FileWord {
    /// The place, as a JSON pointer; there is a `null` now.
    pub(crate) place: String,
    pub(crate) path: PathBuf,
    pub(crate) content: Content,
}

/// What becomes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// It is stored, and an asset names it.
    Asset,
    /// Its text is the value.
    Text,
    /// The JSON in it is the value.
    Json,
}

/// What is wrong with the words.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum WordError {
    #[error("unknown field `{field}`{guess}{}", known(names))]
    Unknown { field: String, guess: String, names: Vec<String> },
    #[error("`{field}` takes {expected}, not `{text}`")]
    Value { field: String, expected: String, text: String },
    #[error(
        "`{field}` takes {expected}: write it as JSON, `{field}:=…`, or name a file that holds it, `{field}@PATH`"
    )]
    NeedsJson { field: String, expected: String },
    #[error("`{field}` is no JSON: {problem}")]
    Json { field: String, problem: String },
    #[error("`{field}` is given twice")]
    Twice { field: String },
    #[error("`{field}` lies within `{outer}`, which is no object")]
    NoObject { field: String, outer: String },
    #[error("`{word}` has no field: write `FIELD={word}`{}", known(names))]
    NoField { word: String, names: Vec<String> },
    #[error("`{field}` is missing: it takes {expected}")]
    Missing { field: String, expected: String },
}

fn known(names: &[String]) -> String {
    match names {
        [] => "; there are no fields".to_owned(),
        names => format!("; there are {}", quoted(names.iter().map(String::as_str))),
    }
}

/// The payload that `words` make of `base`.
///
/// # Errors
/// Everything that is wrong with them.
pub(crate) fn speak(
    schema: &Value,
    base: Map<String, Value>,
    words: &[String],
) -> Result<Spoken, Vec<WordError>> {
    let schema = Schema::new(schema);
    let mut errors = Vec::new();
    unknown(schema, &base, "", &mut errors);
    let mut speaker =
        Speaker { schema, said: BTreeSet::new(), spoken: Spoken { payload: base, files: Vec::new() } };
    errors.extend(words.iter().filter_map(|word| speaker.word(word).err()));
    let spoken = speaker.spoken;
    if errors.is_empty() {
        let missing = schema.required().into_iter().filter(|name| !spoken.payload.contains_key(*name));
        errors.extend(missing.map(|name| WordError::Missing {
            field: name.to_owned(),
            expected: schema.field(name).map_or_else(String::new, Schema::said),
        }));
    }
    if errors.is_empty() { Ok(spoken) } else { Err(errors) }
}

/// The fields of an object that its schema does not know, at any depth.
fn unknown(schema: Schema<'_>, object: &Map<String, Value>, outer: &str, errors: &mut Vec<WordError>) {
    for (name, value) in object {
        let path = format!("{outer}{name}");
        match schema.field(name) {
            Some(field) => unknown_in(field, value, &path, errors),
            None if path == OUTPUT_UPLOAD => {}
            None => errors.push(no_such_field(schema, &path, name)),
        }
    }
}

fn unknown_in(schema: Schema<'_>, value: &Value, path: &str, errors: &mut Vec<WordError>) {
    match value {
        Value::Object(object) => unknown(schema, object, &format!("{path}."), errors),
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                schema
                    .items()
                    .into_iter()
                    .for_each(|of| unknown_in(of, item, &format!("{path}.{at}"), errors));
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn no_such_field(within: Schema<'_>, path: &str, name: &str) -> WordError {
    let names = within.names();
    WordError::Unknown {
        field: path.to_owned(),
        guess: did_you_mean(name, names.iter().copied()),
        names: names.into_iter().map(str::to_owned).collect(),
    }
}

/// A word, taken apart.
#[derive(Debug, PartialEq, Eq)]
enum Word<'a> {
    Value(&'a str, &'a str),
    Json(&'a str, &'a str),
    File(&'a str, &'a str),
    Bare(&'a str),
}

impl<'a> Word<'a> {
    /// The first `=`, `:=` or `@` counts, if what stands before it can be a field.
    fn parse(word: &'a str) -> Self {
        let Some(at) = word.find(['=', '@']) else { return Self::Bare(word) };
        let (before, after) = (&word[..at], &word[at + 1..]);
        let (is_file, json) = (word[at..].starts_with('@'), before.strip_suffix(':'));
        match (is_file, json) {
            (true, _) if is_field(before) => Self::File(before, after),
            (false, Some(field)) if is_field(field) => Self::Json(field, after),
            (false, None) if is_field(before) => Self::Value(before, after),
            _ => Self::Bare(word),
        }
    }
}

fn is_field(text: &str) -> bool {
    let fits = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    text.split('.').all(|name| !name.is_empty() && name.chars().all(fits))
}

struct Speaker<'a> {
    schema: Schema<'a>,
    /// The fields that words named.
    said: BTreeSet<String>,
    spoken: Spoken,
}

impl<'a> Speaker<'a> {
    fn word(&mut self, word: &str) -> Result<(), WordError> {
        match Word::parse(word) {
            Word::Value(field, text) => self.value(field, text),
            Word::Json(field, text) => {
                let value = serde_json::from_str(text).map_err(|error| WordError::Json {
                    field: field.to_owned(),
                    problem: error.to_string(),
                })?;
                let schema = self.field(field)?;
                let mut errors = Vec::new();
                unknown_in(schema, &value, field, &mut errors);
                errors.into_iter().next().map_or(Ok(()), Err)?;
                self.put(field, value)
            }
            Word::File(field, path) => self.file(field, path),
            Word::Bare(text) => {
                let schema = self.schema;
                let takes_text = |name: &&str| schema.field(name).is_some_and(Schema::is_text);
                let names = || schema.names().into_iter().map(str::to_owned).collect();
                let field = schema.required().into_iter().find(takes_text);
                let field =
                    field.ok_or_else(|| WordError::NoField { word: text.to_owned(), names: names() })?;
                self.put(field, text.into())
            }
        }
    }

    fn value(&mut self, field: &str, text: &str) -> Result<(), WordError> {
        let schema = self.field(field)?;
        let value = schema.value(text).ok_or_else(|| {
            let (field, expected) = (field.to_owned(), schema.said());
            match schema.items().is_some() || !schema.names().is_empty() {
                true => WordError::NeedsJson { field, expected },
                false => WordError::Value { field, expected, text: text.to_owned() },
            }
        })?;
        self.put(field, value)
    }

    /// A list of assets takes a file with each word.
    fn file(&mut self, field: &str, path: &str) -> Result<(), WordError> {
        let schema = self.field(field)?;
        let place = format!("/{}", field.replace('.', "/"));
        if schema.items().is_some_and(Schema::is_asset) {
            if self.said.contains(field) {
                let list = self.spoken.payload_mut(&place).and_then(Value::as_array_mut);
                let list = list.ok_or_else(|| WordError::Twice { field: field.to_owned() })?;
                list.push(Value::Null);
                let place = format!("{place}/{}", list.len() - 1);
                self.spoken.file(place, path, Content::Asset);
                return Ok(());
            }
            self.put(field, Value::Array(vec![Value::Null]))?;
            self.spoken.file(format!("{place}/0"), path, Content::Asset);
            return Ok(());
        }
        let content = match schema {
            schema if schema.is_asset() => Content::Asset,
            schema if schema.is_text() || schema.is_anything() => Content::Text,
            _ => Content::Json,
        };
        self.put(field, Value::Null)?;
        self.spoken.file(place, path, content);
        Ok(())
    }

    /// The schema of a field, which may lie within another.
    fn field(&self, path: &str) -> Result<Schema<'a>, WordError> {
        let mut schema = self.schema;
        let mut outer = String::new();
        for name in path.split('.') {
            schema = match schema.field(name) {
                Some(inner) => inner,
                None if outer.is_empty() && name == OUTPUT_UPLOAD => Schema::anything(),
                None => return Err(no_such_field(schema, &format!("{outer}{name}"), name)),
            };
            outer = format!("{outer}{name}.");
        }
        Ok(schema)
    }

    /// Over what `--payload` said; not over what another word said.
    fn put(&mut self, path: &str, value: Value) -> Result<(), WordError> {
        if !self.said.insert(path.to_owned()) {
            return Err(WordError::Twice { field: path.to_owned() });
        }
        let (outer, name) = path.rsplit_once('.').unwrap_or(("", path));
        let mut object = &mut self.spoken.payload;
        for step in outer.split('.').filter(|step| !step.is_empty()) {
            let inner = object.entry(step).or_insert_with(|| Map::new().into());
            object = inner
                .as_object_mut()
                .ok_or_else(|| WordError::NoObject { field: path.to_owned(), outer: step.to_owned() })?;
        }
        object.insert(name.to_owned(), value);
        Ok(())
    }
}

impl Spoken {
    fn file(&mut self, place: String, path: &str, content: Content) {
        self.files.push(FileWord { place, path: path.into(), content });
    }

    /// The value at a JSON pointer.
    pub(crate) fn payload_mut(&mut self, place: &str) -> Option<&mut Value> {
        let (name, inner) = place.strip_prefix('/')?.split_once('/').map_or_else(
            || (place.trim_start_matches('/'), String::new()),
            |(name, rest)| (name, format!("/{rest}")),
        );
        self.payload.get_mut(name)?.pointer_mut(&inner)
    }
}

#[cfg(test)]
mod tests;
