//! Digests that always say how they were made.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::Digest as _;

/// How a digest was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// BLAKE3, 32 bytes.
    Blake3,
}

impl Algorithm {
    /// The name in front of the colon: `sha256`, `blake3`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Blake3 => "blake3",
        }
    }
}

/// A digest and its algorithm, written `sha256:<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    bytes: [u8; 32],
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// No known algorithm stands in front of a colon.
    #[error("a digest starts with `sha256:` or `blake3:`")]
    UnknownAlgorithm,
    /// What follows is not 64 hexadecimal digits.
    #[error("a digest has 64 hexadecimal digits")]
    NotHex,
}

impl Digest {
    /// A digest of this algorithm from its hexadecimal digits, in either case.
    ///
    /// # Errors
    /// The text is not 64 hexadecimal digits.
    pub fn from_hex(algorithm: Algorithm, digits: &str) -> Result<Self, DigestError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| DigestError::NotHex)?;
        Ok(Self { algorithm, bytes })
    }

    /// The digest of these bytes.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// How it was made.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digest in base64, as HTTP headers carry it, without the algorithm.
    pub fn base64(&self) -> String {
        STANDARD.encode(self.bytes)
    }

    /// The 64 hexadecimal digits, lower case, without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.bytes)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (name, digits) = text.split_once(':').ok_or(DigestError::UnknownAlgorithm)?;
        let algorithm = [Algorithm::Sha256, Algorithm::Blake3]
            .into_iter()
            .find(|a| a.name().eq_ignore_ascii_case(name))
            .ok_or(DigestError::UnknownAlgorithm)?;
        Self::from_hex(algorithm, digits)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Computes a [`Digest`] as bytes arrive.
#[derive(Clone, Debug)]
pub struct Hasher(State);

#[derive(Clone, Debug)]
enum State {
    Sha256(sha2::Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// An empty hasher.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Blake3 => State::Blake3(Box::new(blake3::Hasher::new())),
        })
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Blake3(hasher) => drop(hasher.update(bytes)),
        }
    }

    /// The digest of all bytes taken.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(hasher) => Digest { algorithm: Algorithm::Sha256, bytes: hasher.finalize().into() },
            State::Blake3(hasher) => {
                Digest { algorithm: Algorithm::Blake3, bytes: *hasher.finalize().as_bytes() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_prints() {
        for algorithm in [Algorithm::Sha256, Algorithm::Blake3] {
            let digest = Digest::of(algorithm, b"abc");
            assert_eq!(digest.to_string().parse(), Ok(digest));
            assert_eq!(digest.to_string().to_uppercase().parse(), Ok(digest));
        }
    }

    #[test]
    fn knows_the_published_vectors() {
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(Algorithm::Sha256, b"abc").hex(), sha);
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(Digest::of(Algorithm::Blake3, b"").hex(), empty);
    }

    #[test]
    fn bare_hex_is_no_digest() {
        assert_eq!("ab".repeat(32).parse::<Digest>(), Err(DigestError::UnknownAlgorithm));
        assert_eq!("sha256:abcd".parse::<Digest>(), Err(DigestError::NotHex));
    }
}
