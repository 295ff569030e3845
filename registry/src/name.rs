//! The words of a request that become paths: repositories, tags, digests.

use sha2::{Digest as _, Sha256, Sha512};

/// A repository, such as `library/debian`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repository(String);

impl Repository {
    /// Parses a name by the specification's grammar.
    pub(crate) fn parse(text: &str) -> Option<Repository> {
        let valid = text.len() <= MAX_NAME && text.split('/').all(is_component);
        valid.then(|| Repository(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// `[a-z0-9]+` joined by one dot, one or two underscores, or dashes.
fn is_component(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut separator = String::new();
    let bytes = text.as_bytes();
    if !bytes.first().copied().is_some_and(is_word) || !bytes.last().copied().is_some_and(is_word) {
        return false;
    }
    for byte in bytes {
        if is_word(*byte) {
            let valid = matches!(separator.as_str(), "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-');
            if !valid {
                return false;
            }
            separator.clear();
        } else {
            separator.push(char::from(*byte));
        }
    }
    true
}

/// Returns whether this is a tag.
pub(crate) fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&text.len())
        && is_word(text.as_bytes()[0])
        && text.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

/// A digest of one of the two algorithms that registries must know.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BlobDigest {
    algorithm: Algorithm,
    hex: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn digits(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

impl BlobDigest {
    pub(crate) fn parse(text: &str) -> Option<BlobDigest> {
        let (algorithm, hex) = text.split_once(':')?;
        let algorithm = [Algorithm::Sha256, Algorithm::Sha512].into_iter().find(|known| known.name() == algorithm)?;
        let valid =
            hex.len() == algorithm.digits() && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        valid.then(|| BlobDigest { algorithm, hex: hex.to_owned() })
    }

    pub(crate) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(crate) fn hex(&self) -> &str {
        &self.hex
    }

    /// Computes the digest of bytes.
    pub(crate) fn of(algorithm: Algorithm, bytes: &[u8]) -> BlobDigest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }
}

impl std::fmt::Display for BlobDigest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{}", self.algorithm.name(), self.hex)
    }
}

/// Computes a digest piece by piece.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Hasher {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Box::new(Sha512::new())),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hash) => hash.update(bytes),
            Hasher::Sha512(hash) => hash.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> BlobDigest {
        match self {
            Hasher::Sha256(hash) => BlobDigest { algorithm: Algorithm::Sha256, hex: hex(&hash.finalize()) },
            Hasher::Sha512(hash) => BlobDigest { algorithm: Algorithm::Sha512, hex: hex(&hash.finalize()) },
        }
    }
}

/// Writes bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const MAX_NAME: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_grammar() {
        for name in ["a", "a/b", "library/debian", "a.b_c__d---e/f0"] {
            assert!(Repository::parse(name).is_some(), "{name}");
        }
        for name in ["", "A", "a/", "/a", "a//b", "a..b", "a___b", "-a", "a.", "../a", "a/../b", "_tags", "a b", "a._b"]
        {
            assert!(Repository::parse(name).is_none(), "{name}");
        }
    }

    #[test]
    fn digests_are_computed_and_parsed() {
        let empty = BlobDigest::of(Algorithm::Sha256, b"");
        assert_eq!(empty.to_string(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(BlobDigest::parse(&empty.to_string()), Some(empty));
        let long = BlobDigest::of(Algorithm::Sha512, b"x").to_string();
        assert!(BlobDigest::parse(&long).is_some());
        for text in ["", "sha256:", "sha256:AB", &long.replace("sha512", "sha256"), "md5:00", "sha256:../../x"] {
            assert!(BlobDigest::parse(text).is_none(), "{text}");
        }
    }
}
