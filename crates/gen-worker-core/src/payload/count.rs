//! How many values a MessagePack text holds, before memory is taken for any of them.

/// Whether a text holds at most this many values, those inside others counted. Of a text that breaks off, or is none, what can
/// be read counts.
pub(super) fn holds_at_most(text: &[u8], max: usize) -> bool {
    let (mut rest, mut values) = (text, 0);
    // Every value takes a byte, so that a short text need not be looked at.
    while values + rest.len() > max
        && let Some((marker, after)) = rest.split_first()
    {
        values += 1;
        if values > max {
            return false;
        }
        rest = after.get(width(*marker, after)..).unwrap_or_default();
    }
    true
}

/// The bytes between a marker and the next value: a number, a text, or the length of an array or map whose values follow.
fn width(marker: u8, after: &[u8]) -> usize {
    match marker {
        0xa0..=0xbf => usize::from(marker & 0x1f),
        0xcc | 0xd0 => 1,
        0xcd | 0xd1 | 0xdc | 0xde => 2,
        0xca | 0xce | 0xd2 | 0xdd | 0xdf => 4,
        0xcb | 0xcf | 0xd3 => 8,
        // An extension has a byte for its type.
        0xd4..=0xd8 => (1 << (marker - 0xd4)) + 1,
        0xc4..=0xc6 => sized(1 << (marker - 0xc4), after),
        0xd9..=0xdb => sized(1 << (marker - 0xd9), after),
        0xc7..=0xc9 => sized(1 << (marker - 0xc7), after).saturating_add(1),
        _ => 0,
    }
}

/// A length of this many bytes, and what it is the length of.
fn sized(length: usize, after: &[u8]) -> usize {
    let bytes = after.iter().take(length).fold(0, |number: usize, byte| number << 8 | usize::from(*byte));
    bytes.saturating_add(length)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_of_value_counts_once() {
        let long = "x".repeat(300);
        let value = json!({
            "a": [1, -1, 200, -200, 70_000, -70_000, 5_000_000_000_u64, -5_000_000_000_i64, 1.5],
            "b": {"c": null, "d": true}, "e": "short", "f": long, "g": "x".repeat(70_000),
            "h": vec![0; 20], "i": vec![vec![0; 70_000]; 1],
        });
        // Seven keys and values, nine numbers, two pairs, 20 zeros, and an array with 70,000.
        let values = 1 + 14 + 9 + 4 + 20 + 1 + 70_000;
        let text = rmp_serde::to_vec(&value).unwrap();
        assert!(holds_at_most(&text, values));
        assert!(!holds_at_most(&text, values - 1));
    }

    #[test]
    fn bytes_and_extensions_count_once() {
        let bin = [&[0xc4, 3][..], &[1, 2, 3], &[0xc5, 0, 1, 9], &[0xc6, 0, 0, 0, 1, 9]].concat();
        let ext =
            [&[0xd4, 0, 1][..], &[0xd6, 0, 1, 1, 1, 1], &[0xc7, 2, 0, 1, 1], &[0xc8, 0, 1, 0, 1]].concat();
        for text in [bin, ext] {
            let values = if text[0] == 0xc4 { 3 } else { 4 };
            let text = [&[0x93][..], &text, &[1; 100]].concat();
            assert!(holds_at_most(&text, values + 101) && !holds_at_most(&text, values + 100));
        }
    }

    #[test]
    fn a_length_that_lies_is_no_trouble() {
        for text in [&[0xdb, 0xff, 0xff, 0xff, 0xff, 1][..], &[0xdd, 0xff, 0xff, 0xff, 0xff], &[0xc9, 0xff]] {
            assert!(holds_at_most(text, 1));
        }
    }
}
