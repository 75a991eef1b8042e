//! A head in MessagePack with bytes behind it, in one message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

/// The message is not of this form.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("it ends too early")]
    Short,
    #[error("its head cannot be read")]
    Head(#[from] rmp_serde::decode::Error),
}

pub(super) fn pack(head: &impl Serialize, body: &[u8]) -> Bytes {
    let head = rmp_serde::to_vec_named(head).expect("a head has a MessagePack form");
    let length = u32::try_from(head.len()).expect("a head is small");
    let mut packed = BytesMut::with_capacity(4 + head.len() + body.len());
    packed.put_u32(length);
    packed.put_slice(&head);
    packed.put_slice(body);
    packed.freeze()
}

pub(super) fn unpack<T: DeserializeOwned>(mut packed: Bytes) -> Result<(T, Bytes), Unreadable> {
    let length = packed.try_get_u32().map_err(|_| Unreadable::Short)? as usize;
    if packed.len() < length {
        return Err(Unreadable::Short);
    }
    let head = packed.split_to(length);
    Ok((rmp_serde::from_slice(&head)?, packed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked() {
        let packed = pack(&("head", 7), b"body");
        let (head, body): ((String, u8), Bytes) = unpack(packed.clone()).unwrap();
        assert_eq!((head, &body[..]), (("head".to_owned(), 7), &b"body"[..]));
        for end in 0..packed.len() - 4 {
            assert!(unpack::<(String, u8)>(packed.slice(..end)).is_err(), "{end}");
        }
    }
}
