//! What the original's strict decoding accepts and refuses (contract §3.1).

use std::collections::BTreeMap;

use rmpv::Value;
use serde::Deserialize;

use super::*;

fn pack(fields: Vec<(&str, Value)>) -> Vec<u8> {
    let fields = fields.into_iter().map(|(key, value)| (key.into(), value)).collect();
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, &Value::Map(fields)).unwrap();
    bytes
}

fn decode<T: DeserializeOwned>(fields: Vec<(&str, Value)>) -> Result<T, String> {
    Payload::parse(&pack(fields))
        .and_then(Payload::decode)
        .map(|(value, _)| value)
        .map_err(|e| e.safe_message())
}

#[derive(Debug, Deserialize, PartialEq)]
struct Everything {
    #[serde(default)]
    int: u64,
    #[serde(default)]
    float: f64,
    #[serde(default)]
    text: String,
    #[serde(default)]
    bytes: Vec<u8>,
    #[serde(default)]
    flag: bool,
    #[serde(default)]
    list: Vec<Inner>,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    note: Option<String>,
}

#[derive(Debug, Deserialize, PartialEq)]
struct Inner {
    k: i64,
}

#[derive(Debug, Deserialize, PartialEq, Default)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Fast,
    Slow {
        steps: u8,
    },
}

#[test]
fn a_wrong_type_is_refused_and_the_field_named() {
    for (field, value) in [
        ("int", Value::F64(1.0)),
        ("int", Value::Boolean(true)),
        ("int", "1".into()),
        ("text", Value::Binary(b"abc".to_vec())),
        ("text", Value::Nil),
        ("bytes", "abc".into()),
        ("flag", 1.into()),
        ("list", Value::Map(vec![])),
        ("mode", "quick".into()),
        ("float", "1.5".into()),
    ] {
        let refusal = decode::<Everything>(vec![(field, value.clone())]).unwrap_err();
        assert!(refusal.ends_with(&format!(" - at `$.{field}`")), "{field} = {value}: {refusal}");
    }
}

#[test]
fn what_the_original_accepts_is_accepted() {
    let value: Everything = decode(vec![
        ("int", u64::MAX.into()),
        ("float", 3.into()),
        ("bytes", Value::Binary(vec![1, 2])),
        ("note", Value::Nil),
        ("unknown", "ignored".into()),
        ("mode", Value::Map(vec![("slow".into(), Value::Map(vec![("steps".into(), 4.into())]))])),
    ])
    .unwrap();
    assert_eq!((value.int, value.float, value.bytes), (u64::MAX, 3.0, vec![1, 2]));
    assert_eq!(value.mode, Mode::Slow { steps: 4 });
}

#[test]
fn the_last_of_two_equal_keys_wins() {
    let value: Everything = decode(vec![("int", 1.into()), ("int", 2.into())]).unwrap();
    assert_eq!(value.int, 2);
    let others: Vec<_> = (0..FEW_FIELDS).map(|n| format!("other-{n}")).collect();
    let mut many = vec![("int", 1.into())];
    many.extend(others.iter().map(|name| (name.as_str(), Value::Nil)));
    many.push(("int", 2.into()));
    assert_eq!(decode::<Everything>(many).unwrap().int, 2);
}

#[test]
fn a_missing_field_is_named_with_its_place() {
    let refusal = decode::<Inner>(vec![]).unwrap_err();
    assert_eq!(refusal, "missing field `k`");
    let nested = decode::<Everything>(vec![("list", Value::Array(vec![Value::Map(vec![])]))]).unwrap_err();
    assert_eq!(nested, "missing field `k` - at `$.list[0]`");
}

#[test]
fn an_array_is_no_struct() {
    let inner = Value::Array(vec![Value::Array(vec![1.into()])]);
    assert!(decode::<Everything>(vec![("list", inner)]).is_err());
    assert_eq!(Payload::parse(&[0x91, 1]).unwrap_err(), PayloadError::NotAMap);
}

#[test]
fn only_one_whole_value_is_a_payload() {
    assert_eq!(Payload::parse(&[]).unwrap_err(), PayloadError::Malformed);
    assert_eq!(Payload::parse(&[0x81, 0xa1]).unwrap_err(), PayloadError::Malformed);
    assert_eq!(Payload::parse(&[0x80, 0]).unwrap_err(), PayloadError::Trailing { extra: 1 });
}

#[test]
fn a_length_that_lies_is_refused_without_allocating_it() {
    assert_eq!(Payload::parse(&[0xdf, 0xff, 0xff, 0xff, 0xff]).unwrap_err(), PayloadError::Malformed);
    let deep = [vec![0x81, 0xa1, b'a'], vec![0x91; 100_000], vec![0xc0]].concat();
    assert_eq!(Payload::parse(&deep).unwrap_err(), PayloadError::Malformed);
}

#[test]
fn user_payload_bytes_are_not_reencoded() {
    let bytes = pack(vec![
        ("seed", u64::MAX.into()),
        ("one", Value::F64(1.0)),
        ("text", "x".into()),
        ("output_upload", Value::Map(vec![("put_url".into(), "https://h/x".into())])),
    ]);
    let mut payload = Payload::parse(&bytes).unwrap();
    assert_eq!(payload.take_json("output_upload").unwrap().unwrap(), r#"{"put_url":"https://h/x"}"#);
    let range = bytes.as_ptr_range();
    assert!(range.contains(&payload.text("text").unwrap().as_ptr()), "text is borrowed from the payload");
    let (value, _) = payload.decode::<BTreeMap<String, serde_json::Value>>().unwrap();
    assert_eq!(value["seed"].as_u64(), Some(u64::MAX));
    assert!(value["one"].is_f64());
    assert!(!value.contains_key("output_upload"));
}

#[test]
fn a_refusal_never_outgrows_a_message() {
    let key = "k".repeat(1 << 20);
    let refused = Payload::parse(&pack(vec![(&key, "x".into())]))
        .and_then(Payload::decode::<BTreeMap<String, i32>>)
        .map(drop)
        .unwrap_err();
    assert!(refused.safe_message().len() <= 500, "{}", refused.safe_message().len());
}

#[test]
fn a_payload_at_the_deepest_does_not_overflow_the_stack() {
    let deep = |levels: usize| [vec![0x81, 0xa1, b'a'], vec![0x91; levels], vec![0xc0]].concat();
    let read = |bytes: &[u8]| Payload::parse(bytes).and_then(Payload::decode::<serde_json::Value>).map(drop);
    assert_eq!(read(&deep(100)), Ok(()));
    assert_eq!(read(&deep(300)), Err(PayloadError::Malformed));
}

#[test]
fn a_payload_of_many_tiny_values_takes_no_memory() {
    // {"x": [0, 0, …]}
    let array = |length: usize| {
        [&[0x81, 0xa1, b'x', 0xdd][..], &(length as u32).to_be_bytes(), &vec![0; length]].concat()
    };
    assert!(Payload::parse(&array(100_000)).is_ok());
    let refused = Payload::parse(&array(MAX_VALUES)).unwrap_err();
    assert_eq!(refused, PayloadError::TooManyValues { max: MAX_VALUES });
    let bytes = [&[0x81, 0xa1, b'x', 0xc6][..], &(8u32 << 20).to_be_bytes(), &vec![0; 8 << 20]].concat();
    assert!(Payload::parse(&bytes).is_ok(), "bytes are one value");
}

/// What the fuzzer found or was given to begin with.
#[test]
fn the_corpus_of_the_fuzzer_holds() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/payload");
    let payloads =
        std::fs::read_dir(corpus).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    let read = payloads.filter(|bytes| check(bytes)).count();
    assert!(read > 3, "{read}");
}
