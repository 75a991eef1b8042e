//! MessagePack, which workers speak, for those who read JSON.

use base64::{Engine, engine::general_purpose::STANDARD};
use rmpv::ValueRef;
use serde_json::{Map, Number, Value, json};

/// MessagePack as a JSON value; `None` if it is malformed. Bytes become base64 text, an extension becomes
/// `{"ext": type, "data": base64}`, and a number that JSON has no word for becomes null. A key that is no text is written as JSON
/// text; one that is a list or a map, which JSON text would double with each level of such keys, as its MessagePack in base64.
pub fn json_of(bytes: &[u8]) -> Option<Value> {
    let mut rest = bytes;
    let value = rmpv::decode::read_value_ref(&mut rest).ok()?;
    rest.is_empty().then(|| value_of(&value))
}

fn value_of(value: &ValueRef<'_>) -> Value {
    match value {
        ValueRef::Nil => Value::Null,
        ValueRef::Boolean(flag) => Value::Bool(*flag),
        ValueRef::Integer(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => number.into(),
            (None, number) => number.into(),
        },
        ValueRef::F32(number) => float(f64::from(*number)),
        ValueRef::F64(number) => float(*number),
        ValueRef::String(text) => match text.as_str() {
            Some(text) => text.into(),
            None => STANDARD.encode(text.as_bytes()).into(),
        },
        ValueRef::Binary(bytes) => STANDARD.encode(bytes).into(),
        ValueRef::Array(items) => items.iter().map(value_of).collect(),
        ValueRef::Map(fields) => {
            fields.iter().map(|(key, value)| (key_of(key), value_of(value))).collect::<Map<_, _>>().into()
        }
        ValueRef::Ext(tag, bytes) => json!({"ext": tag, "data": STANDARD.encode(bytes)}),
    }
}

fn float(number: f64) -> Value {
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

fn key_of(key: &ValueRef<'_>) -> String {
    if matches!(key, ValueRef::Array(_) | ValueRef::Map(_)) {
        let mut bytes = Vec::new();
        rmpv::encode::write_value_ref(&mut bytes, key).expect("memory takes what came from there");
        return STANDARD.encode(bytes);
    }
    match value_of(key) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_json_lacks_is_written_as_text() {
        let value = rmpv::Value::Map(vec![
            (1.into(), rmpv::Value::Binary(vec![1, 2])),
            ("nan".into(), f64::NAN.into()),
            ("t".into(), rmpv::Value::Ext(-1, vec![0])),
        ]);
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &value).unwrap();
        assert_eq!(
            json_of(&bytes).unwrap(),
            json!({"1": "AQI=", "nan": null, "t": {"ext": -1, "data": "AA=="}})
        );
        bytes.push(0);
        assert_eq!(json_of(&bytes), None);
    }

    #[test]
    fn keys_within_keys_do_not_double_what_they_take() {
        // 60 maps, each the key of the one around it.
        let bytes = [vec![0x81; 60], vec![0xa1, b'a'], vec![0; 60]].concat();
        let Value::Object(map) = json_of(&bytes).unwrap() else { panic!("a map") };
        let (key, value) = map.iter().next().unwrap();
        assert_eq!((STANDARD.decode(key).unwrap().as_slice(), value), (&bytes[1..121], &json!(0)));
    }
}
