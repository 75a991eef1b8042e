//! A JSON object of the payload, read field by field; what is wrong with it is named.

use gen_worker_core::redact;
use serde_json::{Map, Value};

use crate::error::UploadError;

/// What a caller wrote under a name.
pub(crate) struct Fields {
    place: &'static str,
    fields: Map<String, Value>,
}

impl Fields {
    /// Reads the object that `text` holds. `known` are the keys that it may have.
    pub(crate) fn parse(
        place: &'static str,
        text: &str,
        known: &'static [&'static str],
    ) -> Result<Self, UploadError> {
        match serde_json::from_str(text) {
            Ok(value) => Self::of(place, value, known),
            Err(_) => Err(wrong(place, "is no JSON object")),
        }
    }

    /// The same of a value that was read already.
    pub(crate) fn of(
        place: &'static str,
        value: Value,
        known: &'static [&'static str],
    ) -> Result<Self, UploadError> {
        let Value::Object(fields) = value else {
            return Err(wrong(place, "is no JSON object"));
        };
        match fields.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(wrong(&format!("{place}.{}", redact(key)), "is not known")),
            None => Ok(Self { place, fields }),
        }
    }

    /// Takes a field; `None`: it is absent or null.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.fields.remove(key).filter(|value| !value.is_null())
    }

    /// Takes a text; `None`: it is absent or null.
    pub(crate) fn text(&mut self, key: &str) -> Result<Option<String>, UploadError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "is no text")),
        }
    }

    /// Takes a text that must be there.
    pub(crate) fn required(&mut self, key: &str) -> Result<String, UploadError> {
        match self.text(key)? {
            None => Err(self.wrong(key, "is missing")),
            Some(text) if text.is_empty() => Err(self.wrong(key, "is empty")),
            Some(text) => Ok(text),
        }
    }

    /// Takes a flag; `None`: it is absent or null.
    #[cfg(feature = "s3")]
    pub(crate) fn flag(&mut self, key: &str) -> Result<Option<bool>, UploadError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.wrong(key, "is neither true nor false")),
        }
    }

    /// Says what is wrong with a field.
    pub(crate) fn wrong(&self, key: &str, problem: &'static str) -> UploadError {
        wrong(&format!("{}.{key}", self.place), problem)
    }
}

fn wrong(key: &str, problem: &'static str) -> UploadError {
    UploadError::Target { key: key.to_owned(), problem }
}
