//! JSON Schemas as the registration carries them.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value};

/// The schema of `T`: a `$ref` into `$defs` for a named type, an empty object for "anything". Keys are sorted, so that
/// its compact text is the same for the same type.
pub fn schema_of<T: JsonSchema>() -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let root = generator.subschema_for::<T>();
    let mut schema = match root.to_value() {
        Value::Object(object) => object,
        _ => Map::new(),
    };
    let definitions = generator.take_definitions(true);
    if !definitions.is_empty() {
        schema.insert("$defs".to_owned(), Value::Object(definitions));
    }
    schema.sort_keys();
    Value::Object(schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(JsonSchema)]
    #[allow(dead_code)]
    struct In {
        prompt: String,
        #[serde(default)]
        n: i64,
    }

    #[test]
    fn a_named_type_is_a_reference_into_definitions() {
        let schema = schema_of::<In>();
        assert_eq!(schema["$ref"], "#/$defs/In");
        assert_eq!(schema["$defs"]["In"]["required"], serde_json::json!(["prompt"]));
    }

    #[test]
    fn an_untyped_payload_has_an_empty_schema() {
        assert_eq!(schema_of::<Value>(), serde_json::json!({}));
    }
}
