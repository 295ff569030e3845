//! Content digests and the two identities that are made of them.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// A SHA-256 content digest, such as `sha256:9f86d0...`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Computes the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// Makes a digest of its 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }

    /// Returns the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the 64 hexadecimal digits, without the algorithm.
    pub fn hex(&self) -> String {
        self.0.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| HEX[usize::from(digit)]).collect()
    }

    /// Parses 64 lower-case hexadecimal digits.
    pub fn from_hex(hex: &str) -> Result<Digest, InvalidDigest> {
        if hex.len() != 64 {
            return Err(InvalidDigest::Length);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = (hex_digit(pair[0])? << 4) | hex_digit(pair[1])?;
        }
        Ok(Digest(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        f.write_str(&self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Digest, InvalidDigest> {
        Digest::from_hex(text.strip_prefix(PREFIX).ok_or(InvalidDigest::Algorithm)?)
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Digest, InvalidDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

/// Why a text is not a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigest {
    /// It does not start with `sha256:`.
    #[error("unsupported digest algorithm")]
    Algorithm,
    /// It has not exactly 64 digits.
    #[error("invalid checksum digest length")]
    Length,
    /// It has something else than lower-case hexadecimal digits.
    #[error("invalid checksum digest format")]
    Hex,
}

/// The digest of a layer's uncompressed tar: the identity of the layer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiffId(pub Digest);

/// The identity of a stack of layers, as the OCI image specification defines it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainId(pub Digest);

impl ChainId {
    /// Returns the chain of `layers`, bottom first, or `None` for a stack of none.
    pub fn of(layers: &[DiffId]) -> Option<ChainId> {
        layers.iter().fold(None, |below, &layer| Some(ChainId::extend(below, layer)))
    }

    /// Returns the chain that has `layer` on top of the chain `below`.
    pub fn extend(below: Option<ChainId>, layer: DiffId) -> ChainId {
        match below {
            None => ChainId(layer.0),
            Some(below) => ChainId(Digest::of(format!("{} {}", below.0, layer.0).as_bytes())),
        }
    }
}

macro_rules! text_of_the_digest_inside {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidDigest;

            fn from_str(text: &str) -> Result<$name, InvalidDigest> {
                text.parse().map($name)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidDigest;

            fn try_from(text: String) -> Result<$name, InvalidDigest> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    )*};
}

text_of_the_digest_inside!(DiffId ChainId);

fn hex_digit(digit: u8) -> Result<u8, InvalidDigest> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(InvalidDigest::Hex),
    }
}

const PREFIX: &str = "sha256:";
const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_and_bytes_round_trip() {
        let digest = Digest::of(b"");
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(EMPTY.parse(), Ok(digest));
        assert_eq!(Digest::try_from(String::from(digest)), Ok(digest));
        assert_eq!(Digest::from_bytes(*digest.as_bytes()), digest);
        assert_eq!(format!("{:?} {:?}", digest, DiffId(digest)), format!("{EMPTY} DiffId({EMPTY})"));
    }

    #[test]
    fn only_lower_case_sha256_of_full_length_is_a_digest() {
        let cases = [
            ("", InvalidDigest::Algorithm),
            ("sha256", InvalidDigest::Algorithm),
            ("sha512:e3b0", InvalidDigest::Algorithm),
            ("SHA256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", InvalidDigest::Algorithm),
            ("sha256:", InvalidDigest::Length),
            ("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85", InvalidDigest::Length),
            ("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b8555", InvalidDigest::Length),
            ("sha256:E3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", InvalidDigest::Hex),
            ("sha256:+3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", InvalidDigest::Hex),
            ("sha256:\u{e9}b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", InvalidDigest::Hex),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Digest>(), Err(error), "{text}");
        }
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let [a, b] = [b"a", b"b"].map(|bytes| DiffId(Digest::of(bytes)));
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(&[a]), Some(ChainId(a.0)));
        let pair = ChainId::of(&[a, b]).unwrap();
        assert_eq!(pair, ChainId::extend(Some(ChainId(a.0)), b));
        // printf 'sha256:%s sha256:%s' of the digests of "a" and "b", through sha256sum.
        assert_eq!(pair.0.hex(), "51c0c8ace48498d6f5fee6b0592cc06f2da0f3cbe09c5a34a97dce85c3889676");
    }
}
