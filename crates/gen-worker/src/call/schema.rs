//! What a JSON Schema says of a payload, as far as a command line needs it.

use serde_json::{Map, Value, json};

/// How deep references and alternatives are followed: a schema may refer to itself.
const MAX_DEPTH: u32 = 16;

/// The schema of what takes anything.
static ANYTHING: Value = Value::Bool(true);

/// Part of a schema, with the document that its references point into.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schema<'a> {
    root: &'a Value,
    node: &'a Value,
}

impl<'a> Schema<'a> {
    pub(super) fn new(root: &'a Value) -> Self {
        Self { root, node: root }
    }

    /// Of what takes anything.
    pub(super) fn anything() -> Self {
        Self { root: &ANYTHING, node: &ANYTHING }
    }

    /// The field of this name; of an object that takes any name, one that takes anything. `None`: there is none.
    pub(super) fn field(self, name: &str) -> Option<Self> {
        let known = self.forms().into_iter().find_map(|form| form.get("properties")?.get(name));
        let node = known.or_else(|| self.other_fields())?;
        Some(Self { node, ..self })
    }

    /// The names of its fields.
    pub(super) fn names(self) -> Vec<&'a str> {
        let properties = self.forms().into_iter().filter_map(|form| form.get("properties")?.as_object());
        properties.flat_map(Map::keys).map(String::as_str).collect()
    }

    /// The fields that must be there, in the order of the type. None where there are several forms.
    pub(super) fn required(self) -> Vec<&'a str> {
        match self.forms().as_slice() {
            [form] => {
                let names = form.get("required").and_then(Value::as_array).into_iter().flatten();
                names.filter_map(Value::as_str).collect()
            }
            _ => Vec::new(),
        }
    }

    /// What the items of an array are; `None`: it is none.
    pub(super) fn items(self) -> Option<Self> {
        let node = self.forms().into_iter().find_map(|form| form.get("items"))?;
        Some(Self { node, ..self })
    }

    /// Whether it takes a file of its own.
    pub(super) fn is_asset(self) -> bool {
        self.forms().into_iter().any(is_asset)
    }

    /// Whether it takes a text, whatever the text says.
    pub(super) fn is_text(self) -> bool {
        self.forms().into_iter().any(|form| has_type(form, "string") && choices(form).is_none())
    }

    /// Whether it takes anything.
    pub(super) fn is_anything(self) -> bool {
        self.forms().into_iter().any(is_anything)
    }

    /// The value that a text means here; `None`: none that fits.
    pub(super) fn value(self, text: &str) -> Option<Value> {
        if self.is_anything() {
            return Some(text.into());
        }
        let forms = self.forms();
        let chosen = forms.iter().find_map(|form| {
            let mut choices = choices(form)?.into_iter();
            choices.find(|choice| plain(choice) == text).cloned()
        });
        let read = |name: &str, read: fn(&str) -> Option<Value>| {
            let takes = forms.iter().any(|form| has_type(form, name) && choices(form).is_none());
            takes.then(|| read(text)).flatten()
        };
        chosen
            .or_else(|| read("boolean", |text| text.parse::<bool>().ok().map(Value::from)))
            .or_else(|| read("integer", whole))
            .or_else(|| read("number", |text| whole(text).or_else(|| fraction(text))))
            .or_else(|| read("string", |text| Some(text.into())))
            .or_else(|| read("null", |text| (text == "null").then_some(Value::Null)))
            .or_else(|| self.is_asset().then(|| json!({ "ref": text })))
    }

    /// What it takes, in words.
    pub(super) fn said(self) -> String {
        let forms: Vec<String> = self.forms().into_iter().flat_map(said).collect();
        if forms.is_empty() { "anything".to_owned() } else { forms.join(" or ") }
    }

    /// What fields without a name of their own take; `None`: there are none such.
    fn other_fields(self) -> Option<&'a Value> {
        let others = self.forms().into_iter().find_map(|form| match form.get("additionalProperties") {
            Some(Value::Bool(false)) => None,
            Some(schema) => Some(schema),
            None => is_anything(form).then_some(&ANYTHING),
        });
        others.filter(|schema| **schema != Value::Bool(false))
    }

    /// The forms that a value may have, references followed.
    fn forms(self) -> Vec<&'a Value> {
        let mut forms = Vec::new();
        self.collect(self.node, MAX_DEPTH, &mut forms);
        forms
    }

    fn collect(self, node: &'a Value, depth: u32, forms: &mut Vec<&'a Value>) {
        let Some(depth) = depth.checked_sub(1) else { return };
        let pointed = node
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|reference| self.root.pointer(reference.strip_prefix('#')?));
        if let Some(node) = pointed {
            return self.collect(node, depth, forms);
        }
        let several = ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|key| node.get(key)?.as_array());
        let several: Vec<&Value> = several.flatten().collect();
        if several.is_empty() || node.get("properties").is_some() {
            forms.push(node);
        }
        several.into_iter().for_each(|node| self.collect(node, depth, forms));
    }
}

fn is_asset(form: &Value) -> bool {
    form.get("x-asset") == Some(&Value::Bool(true))
}

fn is_anything(form: &Value) -> bool {
    let says = |key| form.get(key).is_some();
    form == &Value::Bool(true)
        || form.is_object() && !["type", "enum", "const", "properties"].into_iter().any(says)
}

fn has_type(form: &Value, name: &str) -> bool {
    match form.get("type") {
        Some(Value::Array(names)) => names.iter().any(|each| each == name),
        Some(one) => one == name,
        None => false,
    }
}

/// The values that a form lists; `None`: it lists none.
fn choices(form: &Value) -> Option<Vec<&Value>> {
    let one = form.get("const").map(|value| vec![value]);
    one.or_else(|| Some(form.get("enum")?.as_array()?.iter().collect()))
}

fn whole(text: &str) -> Option<Value> {
    let signed = text.parse::<i64>().ok().map(Value::from);
    signed.or_else(|| text.parse::<u64>().ok().map(Value::from))
}

fn fraction(text: &str) -> Option<Value> {
    text.parse::<f64>().ok().filter(|number| number.is_finite()).map(Value::from)
}

/// What one form takes, in words; nothing is not worth saying.
fn said(form: &Value) -> Option<String> {
    if let Some(choices) = choices(form) {
        let choices: Vec<String> = choices.into_iter().map(|choice| format!("`{}`", plain(choice))).collect();
        return Some(choices.join(" or "));
    }
    let types: [(&str, &str); 6] = [
        ("integer", "a whole number"),
        ("number", "a number"),
        ("boolean", "`true` or `false`"),
        ("string", "a text"),
        ("array", "a list"),
        ("object", "an object"),
    ];
    let named = if is_asset(form) {
        Some("a file")
    } else {
        types.into_iter().find(|(name, _)| has_type(form, name)).map(|(_, words)| words)
    };
    Some(format!("{}{}", named?, bounds(form)))
}

fn bounds(form: &Value) -> String {
    let bound = |key, words| form.get(key).map(|bound| format!(" {words} {bound}")).unwrap_or_default();
    bound("minimum", "from") + &bound("maximum", "to")
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(schema: Value, texts: &[(&str, Option<Value>)], said: &str) {
        let schema = Schema::new(&schema);
        for (text, expected) in texts {
            assert_eq!(schema.value(text), *expected, "{text}");
        }
        assert_eq!(schema.said(), said);
    }

    #[test]
    fn a_text_is_what_the_schema_takes() {
        let small = json!({"type": "integer", "minimum": 16, "maximum": 1024});
        let largest = Some(json!(18_446_744_073_709_551_615_u64));
        check(
            small,
            &[("20", Some(json!(20))), ("18446744073709551615", largest), ("2.5", None), ("a", None)],
            "a whole number from 16 to 1024",
        );
        check(
            json!({"type": "number"}),
            &[("2", Some(json!(2))), ("2.5", Some(json!(2.5))), ("NaN", None)],
            "a number",
        );
        check(json!({"type": "boolean"}), &[("true", Some(json!(true))), ("yes", None)], "`true` or `false`");
        check(json!({"type": "string"}), &[("1", Some(json!("1"))), ("", Some(json!("")))], "a text");
        check(json!({"type": "array", "items": {}}), &[("[]", None)], "a list");
    }

    #[test]
    fn of_several_forms_the_narrowest_that_fits_is_taken() {
        check(
            json!({"type": ["string", "null"]}),
            &[("null", Some(json!("null"))), ("1", Some(json!("1")))],
            "a text",
        );
        let optional = json!({"anyOf": [{"type": "integer"}, {"type": "null"}]});
        check(optional, &[("null", Some(Value::Null)), ("1", Some(json!(1)))], "a whole number");
        let either = json!({"oneOf": [{"type": "integer"}, {"type": "string"}]});
        check(either, &[("1", Some(json!(1))), ("x", Some(json!("x")))], "a whole number or a text");
    }

    #[test]
    fn choices_are_named_and_nothing_else_is_taken() {
        let listed = json!({"type": "string", "enum": ["fast", "good"]});
        check(listed, &[("fast", Some(json!("fast"))), ("slow", None)], "`fast` or `good`");
        let described = json!({"oneOf": [{"const": "a", "type": "string"}, {"const": 2}]});
        check(described, &[("a", Some(json!("a"))), ("2", Some(json!(2))), ("b", None)], "`a` or `2`");
    }

    #[test]
    fn a_reference_is_followed_and_a_circle_ends() {
        let schema = json!({"$ref": "#/$defs/A", "$defs": {"A": {"type": "integer"}}});
        check(schema, &[("1", Some(json!(1)))], "a whole number");
        check(json!({"$ref": "#"}), &[("1", None)], "anything");
    }

    #[test]
    fn a_file_may_be_named_by_its_reference() {
        let asset = json!({"type": "object", "x-asset": true, "properties": {"ref": {"type": "string"}}});
        check(asset, &[("https://a.example/b", Some(json!({"ref": "https://a.example/b"})))], "a file");
    }

    #[test]
    fn what_is_untyped_takes_texts() {
        check(json!({}), &[("1", Some(json!("1")))], "anything");
        assert!(Schema::new(&json!({})).field("any").is_some());
        assert!(Schema::new(&json!({"type": "object"})).field("any").is_none());
        let map = json!({"type": "object", "additionalProperties": {"type": "integer"}});
        assert_eq!(Schema::new(&map).field("any").and_then(|field| field.value("3")), Some(json!(3)));
    }
}
