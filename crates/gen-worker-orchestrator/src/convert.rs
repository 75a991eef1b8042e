//! JSON, which callers speak, to MessagePack, which workers speak.

use serde_json::Value;

/// A JSON value as MessagePack. Whole numbers up to 2^64 stay whole, `1` and `1.0` stay two things.
pub(crate) fn to_msgpack(value: &Value) -> Vec<u8> {
    rmp_serde::to_vec(value).expect("every JSON value has a MessagePack form")
}

#[cfg(test)]
mod tests {
    use gen_worker_core::json_of;

    use super::*;

    #[test]
    fn json_survives_both_ways() {
        let text = r#"{"big":18446744073709551615,"float":1.0,"list":[null,true,-3,"é"],"one":1}"#;
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(json_of(&to_msgpack(&value)).unwrap().to_string(), text);
    }
}
