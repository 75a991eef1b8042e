//! A run's payload: MessagePack, read once, never written again.

mod count;

use std::{collections::HashMap, fmt};

use rmpv::ValueRef;
use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeOwned, DeserializeSeed, EnumAccess, Error as _, IntoDeserializer, MapAccess, SeqAccess,
        Unexpected, VariantAccess, Visitor,
        value::{Error, SeqDeserializer},
    },
    forward_to_deserialize_any,
};

use crate::{
    asset::{AssetSlot, collect_assets},
    failure::{Classify, FailureKind},
    redact::redact,
};

/// How deep a payload may nest, counted as `rmpv` does, which takes two for each level: deserialising recurses, and what
/// overflows a stack ends the process.
const MAX_DEPTH: usize = 256;

/// How many values a payload may hold, those inside others counted. Each takes about 40 bytes while the payload is read, so
/// that 64 MiB of small numbers would take 2.5 GiB. Large data is sent as bytes, which is one value, or as a file.
const MAX_VALUES: usize = 4 << 20;

/// Why a payload is not what the function takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// The bytes are no MessagePack value.
    #[error("the payload is no valid MessagePack")]
    Malformed,
    /// Bytes follow the value.
    #[error("{extra} bytes follow the payload's MessagePack value")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// It holds too many values.
    #[error("the payload holds more than {max} values: send large data as bytes or as a file")]
    TooManyValues {
        /// How many it may hold, those inside others counted.
        max: usize,
    },
    /// The value is no map.
    #[error("the payload must be a MessagePack map of field names to values")]
    NotAMap,
    /// A field is missing or has another type.
    #[error("{problem}")]
    Field {
        /// What is wrong and where, as `` … - at `$.a.b[0]` ``. Redacted and cut: both may quote the payload.
        problem: String,
    },
}

impl PayloadError {
    fn field(message: impl fmt::Display, path: &str) -> Self {
        let place = if path == "." { String::new() } else { format!(" - at `$.{path}`") };
        Self::Field { problem: redact(&format!("{message}{place}")) }
    }
}

impl Classify for PayloadError {
    fn kind(&self) -> FailureKind {
        FailureKind::Validation
    }

    fn safe_message(&self) -> String {
        self.to_string()
    }
}

/// A payload's map, borrowed from its bytes.
#[derive(Debug)]
pub struct Payload<'a> {
    fields: Vec<(ValueRef<'a>, ValueRef<'a>)>,
}

impl<'a> Payload<'a> {
    /// Reads the bytes of a payload.
    ///
    /// # Errors
    /// The bytes are not exactly one MessagePack map, or it holds more than four million values.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PayloadError> {
        if !count::holds_at_most(bytes, MAX_VALUES) {
            return Err(PayloadError::TooManyValues { max: MAX_VALUES });
        }
        let mut rest = bytes;
        let value = rmpv::decode::read_value_ref_with_max_depth(&mut rest, MAX_DEPTH)
            .map_err(|_| PayloadError::Malformed)?;
        if !rest.is_empty() {
            return Err(PayloadError::Trailing { extra: rest.len() });
        }
        match value {
            ValueRef::Map(fields) => Ok(Self { fields }),
            _ => Err(PayloadError::NotAMap),
        }
    }

    /// Whether there is such a field.
    pub fn has(&self, field: &str) -> bool {
        self.fields.iter().any(|(key, _)| is_key(key, field))
    }

    /// The text in a field; `None` when there is no such field or it holds no text.
    pub fn text(&self, field: &str) -> Option<&str> {
        let (_, value) = self.fields.iter().rev().find(|(key, _)| is_key(key, field))?;
        match value {
            ValueRef::String(text) => text.as_str(),
            _ => None,
        }
    }

    /// Takes a field out, as JSON text; `None` when there is no such field.
    ///
    /// # Errors
    /// The field holds what JSON cannot express.
    pub fn take_json(&mut self, field: &str) -> Result<Option<String>, PayloadError> {
        let Some(at) = self.fields.iter().rposition(|(key, _)| is_key(key, field)) else {
            return Ok(None);
        };
        let (_, value) = self.fields.remove(at);
        self.fields.retain(|(key, _)| !is_key(key, field));
        let json = serde_json::Value::deserialize(Strict(&value))
            .map_err(|error| PayloadError::field(error, field))?;
        Ok(Some(json.to_string()))
    }

    /// The payload as the function's type, and a slot for each asset in it.
    ///
    /// # Errors
    /// A field is missing, or holds another type; the error names it.
    pub fn decode<T: DeserializeOwned>(self) -> Result<(T, Vec<AssetSlot>), PayloadError> {
        let value = ValueRef::Map(self.fields);
        let (decoded, assets) = collect_assets(|| serde_path_to_error::deserialize(Strict(&value)));
        let decoded = decoded.map_err(|error| {
            let path = error.path().to_string();
            PayloadError::field(error.into_inner(), &path)
        })?;
        Ok((decoded, assets))
    }
}

/// Whether these bytes are a payload; whatever they are, reading them ends in a value or an error.
///
/// # Panics
/// It does neither.
#[cfg(any(test, feature = "testing"))]
pub fn check(bytes: &[u8]) -> bool {
    /// What a function may take: of each kind something, and files wherever they nest.
    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    #[expect(dead_code, reason = "only whether it can be made is looked at")]
    enum Any {
        Number(i8, u64, f32),
        Texts { texts: Vec<String>, letter: Option<char> },
        File(crate::asset::Asset),
        Nested(Box<Any>),
        Nothing,
    }
    let Ok(mut payload) = Payload::parse(bytes) else { return false };
    let _ = payload.text("model");
    if let Ok(Some(json)) = payload.take_json("output_upload") {
        assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{json}");
    }
    let decoded: [Result<usize, PayloadError>; 3] = [
        Payload::parse(bytes).and_then(Payload::decode::<HashMap<String, Any>>).map(|(_, files)| files.len()),
        Payload::parse(bytes).and_then(Payload::decode::<serde_json::Value>).map(|(_, files)| files.len()),
        payload.decode::<HashMap<String, crate::asset::Asset>>().map(|(_, files)| files.len()),
    ];
    for error in decoded.into_iter().filter_map(Result::err) {
        assert!(error.to_string().chars().count() <= 500, "{error}");
    }
    crate::json::json_of(bytes).is_some()
}

fn is_key(key: &ValueRef<'_>, field: &str) -> bool {
    matches!(key, ValueRef::String(text) if text.as_str() == Some(field))
}

/// Deserialises as strictly as the original: text is no bytes and bytes are no text, a struct is a map, the last of two
/// equal keys wins. `rmp_serde` accepts an array for a struct and bytes for text.
#[derive(Clone, Copy)]
struct Strict<'v, 'a>(&'v ValueRef<'a>);

impl<'a> Strict<'_, 'a> {
    fn unexpected(&self) -> Unexpected<'_> {
        match self.0 {
            ValueRef::Nil => Unexpected::Unit,
            ValueRef::Boolean(value) => Unexpected::Bool(*value),
            ValueRef::Integer(value) => match (value.as_u64(), value.as_i64()) {
                (Some(value), _) => Unexpected::Unsigned(value),
                (None, value) => Unexpected::Signed(value.unwrap_or_default()),
            },
            ValueRef::F32(value) => Unexpected::Float((*value).into()),
            ValueRef::F64(value) => Unexpected::Float(*value),
            ValueRef::String(value) => {
                value.as_str().map_or(Unexpected::Other("broken text"), Unexpected::Str)
            }
            ValueRef::Binary(_) => Unexpected::Other("bytes"),
            ValueRef::Array(_) => Unexpected::Seq,
            ValueRef::Map(_) => Unexpected::Map,
            ValueRef::Ext(..) => Unexpected::Other("a MessagePack extension"),
        }
    }

    fn refuse<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        Err(Error::invalid_type(self.unexpected(), &visitor))
    }
}

impl<'de> Deserializer<'de> for Strict<'_, 'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            ValueRef::Nil => visitor.visit_unit(),
            ValueRef::Boolean(value) => visitor.visit_bool(*value),
            ValueRef::Integer(value) => match (value.as_u64(), value.as_i64()) {
                (Some(value), _) => visitor.visit_u64(value),
                (None, Some(value)) => visitor.visit_i64(value),
                (None, None) => self.refuse(visitor),
            },
            ValueRef::F32(value) => visitor.visit_f32(*value),
            ValueRef::F64(value) => visitor.visit_f64(*value),
            ValueRef::String(text) => match text.as_str() {
                Some(_) => visitor.visit_borrowed_str(text.into_str().expect("it was just read as text")),
                None => self.refuse(visitor),
            },
            ValueRef::Binary(bytes) => visitor.visit_borrowed_bytes(bytes),
            ValueRef::Array(items) => visitor.visit_seq(Items(items.iter())),
            ValueRef::Map(fields) => visitor.visit_map(Fields::of(fields.iter().collect())),
            ValueRef::Ext(..) => self.refuse(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if matches!(self.0, ValueRef::Nil) { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if matches!(self.0, ValueRef::String(_)) {
            self.deserialize_any(visitor)
        } else {
            self.refuse(visitor)
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let fits = matches!(self.0, ValueRef::Binary(_) | ValueRef::Array(_));
        if fits { self.deserialize_any(visitor) } else { self.refuse(visitor) }
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            ValueRef::Binary(bytes) => visitor.visit_seq(SeqDeserializer::new(bytes.iter().copied())),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            ValueRef::Map(fields) => visitor.visit_map(Fields::of(last_of_each(fields))),
            _ => self.refuse(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            ValueRef::String(text) => {
                visitor.visit_enum(text.as_str().unwrap_or_default().into_deserializer())
            }
            ValueRef::Map(fields) if fields.len() == 1 => visitor.visit_enum(Variant(&fields[0])),
            _ => self.refuse(visitor),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char unit unit_struct tuple tuple_struct map identifier
    }
}

type Field<'v, 'a> = &'v (ValueRef<'a>, ValueRef<'a>);

/// So many fields are compared each with each; of more, a table says which come last.
const FEW_FIELDS: usize = 32;

fn last_of_each<'v, 'a>(fields: &'v [(ValueRef<'a>, ValueRef<'a>)]) -> Vec<Field<'v, 'a>> {
    if fields.len() <= FEW_FIELDS {
        let comes_again =
            |at: usize, key| fields[at + 1..].iter().any(|(later, _)| key_text(later) == key_text(key));
        return fields
            .iter()
            .enumerate()
            .filter(|(at, (key, _))| !comes_again(*at, key))
            .map(|(_, f)| f)
            .collect();
    }
    let last: HashMap<Option<&str>, usize> =
        fields.iter().enumerate().map(|(at, (key, _))| (key_text(key), at)).collect();
    let is_last = |(at, (key, _)): &(usize, Field<'v, 'a>)| last[&key_text(key)] == *at;
    fields.iter().enumerate().filter(is_last).map(|(_, field)| field).collect()
}

fn key_text<'k>(key: &'k ValueRef<'_>) -> Option<&'k str> {
    match key {
        ValueRef::String(text) => text.as_str(),
        _ => None,
    }
}

struct Items<'v, 'a>(std::slice::Iter<'v, ValueRef<'a>>);

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.next().map(|item| seed.deserialize(Strict(item))).transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

struct Fields<'v, 'a> {
    rest: std::vec::IntoIter<Field<'v, 'a>>,
    value: Option<&'v ValueRef<'a>>,
}

impl<'v, 'a> Fields<'v, 'a> {
    fn of(fields: Vec<Field<'v, 'a>>) -> Self {
        Self { rest: fields.into_iter(), value: None }
    }
}

impl<'de> MapAccess<'de> for Fields<'_, 'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((key, value)) = self.rest.next() else {
            return Ok(None);
        };
        self.value = Some(value);
        seed.deserialize(Strict(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let value = self.value.take().ok_or_else(|| Error::custom("a value was asked for before its key"))?;
        seed.deserialize(Strict(value))
    }
}

struct Variant<'v, 'a>(Field<'v, 'a>);

impl<'de> EnumAccess<'de> for Variant<'_, 'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        Ok((seed.deserialize(Strict(&self.0.0))?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, 'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Deserialize::deserialize(Strict(&self.0.1))
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(Strict(&self.0.1))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Error> {
        Strict(&self.0.1).deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        Strict(&self.0.1).deserialize_struct("", fields, visitor)
    }
}

#[cfg(test)]
mod tests;
