//! Image references: Docker's grammar and normalisation.
//!
//! A reference is `[host[:port]/]path[:tag][@digest]`. What people type is shorter than what it means: `debian` is
//! `docker.io/library/debian:latest`. [`ImageRef`] always holds the complete form and gives the short, *familiar* one
//! back for display. Parsing accepts and refuses exactly what Docker's command line does, in its words.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use strata_layer::Digest;

/// A complete image reference, such as `docker.io/library/debian:12`.
///
/// It has a tag, a digest, or both; a reference parsed without either gets the tag `latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageRef {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageRef {
    /// Returns the registry's host and port, such as `docker.io` or `localhost:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the path of the repository within its registry, such as `library/debian`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the tag, if the reference has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest, if the reference has one.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Returns the complete name of the repository, such as `docker.io/library/debian`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// Returns the name of the repository as people write it, such as `debian`.
    pub fn familiar_repository(&self) -> Cow<'_, str> {
        if self.host != DEFAULT_HOST {
            return Cow::Owned(self.repository());
        }
        match self.path.strip_prefix(OFFICIAL_PREFIX) {
            // `library/a/b` and a name that would read as a host must keep their prefix to parse back to themselves.
            Some(rest) if !rest.contains('/') => Cow::Borrowed(rest),
            _ if reads_as_host(self.path.split('/').next().unwrap_or("")) => Cow::Owned(self.repository()),
            _ => Cow::Borrowed(&self.path),
        }
    }

    /// Returns the whole reference as people write it, such as `debian:12`.
    pub fn familiar(&self) -> String {
        self.append_suffix(self.familiar_repository().into_owned())
    }

    /// Returns whether both references name the same repository.
    pub fn same_repository(&self, other: &ImageRef) -> bool {
        self.host == other.host && self.path == other.path
    }

    /// Returns this reference with its tag and digest replaced by `tag`.
    pub fn with_tag(&self, tag: &str) -> Result<ImageRef, InvalidReference> {
        if !is_tag(tag) {
            return Err(InvalidReference::Tag);
        }
        Ok(ImageRef { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// Returns this reference with its tag and digest replaced by `digest`.
    pub fn with_digest(&self, digest: Digest) -> ImageRef {
        ImageRef { tag: None, digest: Some(digest), ..self.clone() }
    }

    fn append_suffix(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
        text
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.append_suffix(self.repository()))
    }
}

impl FromStr for ImageRef {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        if text.is_empty() {
            return Err(InvalidReference::Format);
        }
        if text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(InvalidReference::LooksLikeId { text: text.to_owned() });
        }
        let (host, remainder) = split_host(text);
        let name_as_typed = remainder.split(':').next().unwrap_or("");
        if name_as_typed.chars().any(char::is_uppercase) {
            return Err(InvalidReference::Uppercase { name: name_as_typed.to_owned() });
        }

        let (rest, digest) = match remainder.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(digest)?)),
            None => (remainder.as_ref(), None),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if !is_host(host) || !is_path(path) || !tag.is_none_or(is_tag) {
            return Err(InvalidReference::Format);
        }
        if path.len() > MAX_PATH {
            return Err(InvalidReference::TooLong);
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(ImageRef { host: host.to_owned(), path: path.to_owned(), tag, digest })
    }
}

impl TryFrom<String> for ImageRef {
    type Error = InvalidReference;

    fn try_from(text: String) -> Result<Self, InvalidReference> {
        text.parse()
    }
}

impl From<ImageRef> for String {
    fn from(reference: ImageRef) -> String {
        reference.to_string()
    }
}

/// Why a text is not an image reference. The wording is Docker's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    /// The text does not follow the grammar.
    #[error("invalid reference format")]
    Format,
    /// The repository has upper-case letters.
    #[error("invalid reference format: repository name ({name}) must be lowercase")]
    Uppercase {
        /// The name as it was typed.
        name: String,
    },
    /// The text is a complete image ID, which no repository may be called.
    #[error("invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId {
        /// The text.
        text: String,
    },
    /// The path of the repository is too long.
    #[error("repository name must not be more than {MAX_PATH} characters")]
    TooLong,
    /// A tag given alone does not follow the grammar.
    #[error("invalid tag format")]
    Tag,
    /// The digest uses another algorithm than sha256.
    #[error("unsupported digest algorithm")]
    DigestAlgorithm,
    /// The digest is too short or too long for its algorithm.
    #[error("invalid checksum digest length")]
    DigestLength,
    /// The digest has upper-case digits.
    #[error("invalid checksum digest format")]
    DigestFormat,
}

/// Splits what was typed into host and path, filling in Docker Hub's defaults.
fn split_host(text: &str) -> (&str, Cow<'_, str>) {
    let (host, path) = match text.split_once('/') {
        Some((LEGACY_HOST, path)) => (DEFAULT_HOST, path),
        Some((host, path)) if reads_as_host(host) => (host, path),
        _ => (DEFAULT_HOST, text),
    };
    // A digest has no slash either, so this is right for `debian@sha256:..` too.
    if host == DEFAULT_HOST && !path.contains('/') {
        (host, Cow::Owned(format!("{OFFICIAL_PREFIX}{path}")))
    } else {
        (host, Cow::Borrowed(path))
    }
}

/// Returns whether a first path component means a registry and not a folder on Docker Hub.
fn reads_as_host(component: &str) -> bool {
    component == "localhost" || component.contains(['.', ':']) || component.chars().any(char::is_uppercase)
}

fn parse_digest(text: &str) -> Result<Digest, InvalidReference> {
    let (algorithm, hex) = text.split_once(':').ok_or(InvalidReference::Format)?;
    let part_is_valid = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_alphabetic()) && part.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    let well_formed = algorithm.split(['-', '_', '+', '.']).all(part_is_valid)
        && hex.len() >= 32
        && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !well_formed {
        return Err(InvalidReference::Format);
    }
    if algorithm != "sha256" {
        return Err(InvalidReference::DigestAlgorithm);
    }
    if hex.len() != 64 {
        return Err(InvalidReference::DigestLength);
    }
    text.parse().map_err(|_| InvalidReference::DigestFormat)
}

fn is_host(host: &str) -> bool {
    let (name, port) = if host.starts_with('[') {
        match host.find(']') {
            Some(end) => host.split_at(end + 1),
            None => return false,
        }
    } else {
        host.find(':').map_or((host, ""), |colon| host.split_at(colon))
    };
    let port_is_valid = match port.strip_prefix(':') {
        Some(digits) => !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()),
        None => port.is_empty(),
    };
    let name_is_valid = match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => !address.is_empty() && address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':'),
        None => name.split('.').all(is_host_component),
    };
    port_is_valid && name_is_valid
}

fn is_host_component(component: &str) -> bool {
    !component.is_empty()
        && component.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !component.starts_with('-')
        && !component.ends_with('-')
}

fn is_path(path: &str) -> bool {
    path.split('/').all(is_path_component)
}

/// `[a-z0-9]+` joined by one dot, one or two underscores, or any number of dashes.
fn is_path_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let mut position = 0;
    loop {
        let word = bytes[position..].iter().take_while(|byte| is_word(**byte)).count();
        if word == 0 {
            return false;
        }
        position += word;
        if position == bytes.len() {
            return true;
        }
        let separator = bytes[position..].iter().take_while(|byte| !is_word(**byte)).count();
        match &bytes[position..position + separator] {
            b"." | b"_" | b"__" => {}
            dashes if dashes.iter().all(|byte| *byte == b'-') => {}
            _ => return false,
        }
        position += separator;
    }
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=MAX_TAG).contains(&tag.len())
        && is_word(tag.as_bytes()[0])
        && tag.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

const DEFAULT_HOST: &str = "docker.io";
const LEGACY_HOST: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";
const MAX_PATH: usize = 255;
const MAX_TAG: usize = 128;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> ImageRef {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn short_names_are_completed_and_shown_short_again() {
        let hex = "a".repeat(64);
        let by_digest = format!("debian@sha256:{hex}");
        let both = format!("host:5000/a/b:t@sha256:{hex}");
        for (typed, complete, familiar) in [
            ("debian", "docker.io/library/debian:latest", "debian:latest"),
            ("debian:12", "docker.io/library/debian:12", "debian:12"),
            ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
            ("index.docker.io/library/debian", "docker.io/library/debian:latest", "debian:latest"),
            ("library/debian", "docker.io/library/debian:latest", "debian:latest"),
            ("library/debian/x", "docker.io/library/debian/x:latest", "library/debian/x:latest"),
            ("user/image", "docker.io/user/image:latest", "user/image:latest"),
            ("localhost/image", "localhost/image:latest", "localhost/image:latest"),
            ("localhost:5000/image:1", "localhost:5000/image:1", "localhost:5000/image:1"),
            ("HOST/image", "HOST/image:latest", "HOST/image:latest"),
            ("quay.io/a/b/c:v1.2-3_4", "quay.io/a/b/c:v1.2-3_4", "quay.io/a/b/c:v1.2-3_4"),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
            ("a__b/c---d/e.f", "docker.io/a__b/c---d/e.f:latest", "a__b/c---d/e.f:latest"),
            ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest"),
            (&by_digest, &format!("docker.io/library/debian@sha256:{hex}"), &by_digest),
            (&both, &both, &both),
        ] {
            let reference = parse(typed);
            assert_eq!(reference.to_string(), complete, "{typed}");
            assert_eq!(reference.familiar(), familiar, "{typed}");
        }
    }

    #[test]
    fn what_docker_refuses_is_refused_in_its_words() {
        let hex = "a".repeat(64);
        let upper_digest = format!("a@sha256:{}", "A".repeat(64));
        let short_digest = format!("a@sha256:{}", "a".repeat(40));
        let other = format!("a@sha512:{}", "a".repeat(128));
        let long = format!("{}/{}", "a".repeat(200), "b".repeat(60));
        let long_tag = format!("a:{}", "t".repeat(129));
        let invalid = "invalid reference format";
        for (typed, message) in [
            ("", invalid),
            (":tag", invalid),
            ("a:", invalid),
            ("a::b", invalid),
            ("a/", invalid),
            ("/a", invalid),
            ("a//b", invalid),
            ("a b", invalid),
            ("-a", invalid),
            ("a-", invalid),
            ("a..b", invalid),
            ("a___b", invalid),
            ("a._b", invalid),
            ("a:.tag", invalid),
            ("a:-tag", invalid),
            ("a:b/c", invalid),
            ("a@b", invalid),
            ("a:t@", invalid),
            ("ä", invalid),
            ("https://a/b", invalid),
            ("-host.com/a", invalid),
            ("host:port/a", invalid),
            ("[::1/a:1", invalid),
            ("under_score.com/a", invalid),
            (&upper_digest, "invalid checksum digest format"),
            (&short_digest, "invalid checksum digest length"),
            (&long_tag, invalid),
            (&other, "unsupported digest algorithm"),
            (&long, "repository name must not be more than 255 characters"),
            ("Debian:12", "invalid reference format: repository name (library/Debian) must be lowercase"),
            ("quay.io/A/b", "invalid reference format: repository name (A/b) must be lowercase"),
            (&hex, &format!("invalid repository name ({hex}), cannot specify 64-byte hexadecimal strings")),
        ] {
            assert_eq!(typed.parse::<ImageRef>().unwrap_err().to_string(), message, "{typed:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_survives_both_forms(text in "[a-zA-Z0-9._:/@\\[\\] -]{0,60}|\\PC{0,20}") {
            if let Ok(reference) = text.parse::<ImageRef>() {
                prop_assert_eq!(&parse(&reference.to_string()), &reference);
                prop_assert_eq!(&parse(&reference.familiar()), &reference);
            }
        }

        #[test]
        fn grammatical_references_parse_to_their_parts(
            host in "([a-zA-Z0-9]([a-z0-9-]{0,6}[a-z0-9])?\\.){1,3}[a-z]{2,4}(:[0-9]{1,5})?",
            path in "[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}(/[a-z0-9]{1,5}){0,3}",
            tag in "[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}",
            digest in proptest::option::of(any::<[u8; 8]>()),
        ) {
            prop_assume!(host != LEGACY_HOST);
            let digest = digest.map(|bytes| Digest::of(&bytes));
            let suffix = digest.map(|digest| format!("@{digest}")).unwrap_or_default();
            let reference = parse(&format!("{host}/{path}:{tag}{suffix}"));
            prop_assert_eq!(reference.host(), host);
            prop_assert_eq!(reference.path(), path);
            prop_assert_eq!(reference.tag(), Some(tag.as_str()));
            prop_assert_eq!(reference.digest(), digest);
        }
    }
}
