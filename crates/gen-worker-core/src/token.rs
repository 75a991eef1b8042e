//! What a file with a token holds.

use std::io::{self, Read};

use crate::secret::Secret;

/// Largest token, in bytes; header blocks hold no more either.
pub const MAX_TOKEN_BYTES: usize = 64 << 10;

/// Reads a token and nothing else, without the white space around it. Reads no more than a token can be.
///
/// # Errors
/// What is read holds none, or is larger than a token can be, or is no text; or cannot be read.
pub fn read_token(from: impl Read) -> io::Result<Secret<String>> {
    let mut text = String::new();
    from.take(MAX_TOKEN_BYTES as u64 + 1).read_to_string(&mut text)?;
    let text = Secret::new(text);
    let invalid = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    match text.expose().trim() {
        "" => invalid("it is empty"),
        _ if text.expose().len() > MAX_TOKEN_BYTES => invalid("it is larger than a token can be"),
        token => Ok(token.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_without_what_surrounds_it() {
        assert_eq!(read_token(" one\n".as_bytes()).unwrap(), Secret::from("one"));
    }

    #[test]
    fn what_holds_no_token_is_an_error() {
        let problem = |text: &str| read_token(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(problem(" \n"), "it is empty");
        assert_eq!(problem(&"x".repeat(MAX_TOKEN_BYTES + 1)), "it is larger than a token can be");
        assert!(read_token(&b"\xff"[..]).is_err());
    }
}
