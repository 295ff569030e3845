//! Container names: given by the user, or two words drawn at random.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::id::random_bytes;

/// A valid container name: a letter or digit, then letters, digits, `_`, `.` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerName(String);

/// A text that cannot name a container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid container name ({0}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")]
pub struct InvalidName(String);

impl ContainerName {
    /// Draws an adjective and a noun; `attempt` above zero adds a number, for when the pair is taken.
    pub fn random(attempt: u32) -> Result<ContainerName, rustix::io::Errno> {
        let [one, two, three, four] = random_bytes::<4>()?;
        let adjective = ADJECTIVES[usize::from(u16::from_le_bytes([one, two])) % ADJECTIVES.len()];
        let noun = NOUNS[usize::from(u16::from_le_bytes([three, four])) % NOUNS.len()];
        Ok(ContainerName(match attempt {
            0 => format!("{adjective}_{noun}"),
            number => format!("{adjective}_{noun}{number}"),
        }))
    }

    /// Stands in a record until the name is known.
    pub(crate) fn placeholder() -> ContainerName {
        ContainerName("unnamed".to_owned())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for ContainerName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<ContainerName, InvalidName> {
        // Docker's API knows names with a leading slash; they mean the same.
        let name = text.strip_prefix('/').unwrap_or(text);
        let mut bytes = name.bytes();
        let valid = bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
            && bytes.next().is_some()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
            && name.len() <= 255;
        if valid { Ok(ContainerName(name.to_owned())) } else { Err(InvalidName(text.to_owned())) }
    }
}

impl TryFrom<String> for ContainerName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<ContainerName, InvalidName> {
        text.parse()
    }
}

impl From<ContainerName> for String {
    fn from(name: ContainerName) -> String {
        name.0
    }
}

const ADJECTIVES: [&str; 64] = [
    "amber", "ancient", "arctic", "autumn", "basalt", "bold", "brisk", "broad", "calm", "chalky", "clear", "coastal",
    "cobalt", "copper", "coral", "crisp", "dawning", "deep", "distant", "drifting", "dry", "early", "eastern", "fine",
    "flint", "folded", "frosty", "gentle", "glacial", "golden", "granite", "hidden", "high", "humble", "inland",
    "ivory", "lasting", "level", "light", "lively", "lunar", "marble", "mellow", "mild", "misty", "northern",
    "patient", "plain", "polished", "quiet", "rapid", "russet", "sandy", "silent", "silver", "slate", "solid",
    "southern", "steady", "sunny", "tidal", "upland", "western", "winding",
];

const NOUNS: [&str; 64] = [
    "agate", "alder", "badger", "basin", "beacon", "birch", "bluff", "boulder", "brook", "canyon", "cavern", "cedar",
    "cliff", "cove", "crater", "crest", "delta", "dune", "falcon", "fern", "field", "fjord", "garnet", "geyser",
    "glacier", "glade", "gorge", "grove", "harbor", "hazel", "heron", "hill", "island", "jasper", "juniper", "lagoon",
    "lake", "ledge", "lichen", "lynx", "maple", "marsh", "meadow", "mesa", "moraine", "opal", "osprey", "otter",
    "pebble", "pine", "plateau", "pond", "quarry", "raven", "reef", "ridge", "river", "shale", "shore", "spring",
    "summit", "tern", "valley", "willow",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_s_rule_decides_what_is_a_name() {
        for good in ["ab", "a.b", "A_1-x", "0x", "/web"] {
            assert!(good.parse::<ContainerName>().is_ok(), "{good}");
        }
        for bad in ["", "a", "-a", ".a", "_a", "a b", "a/b", "..", "ä1", "/", "//a", &"a".repeat(256)] {
            assert!(bad.parse::<ContainerName>().is_err(), "{bad}");
        }
        assert_eq!("/web".parse::<ContainerName>().unwrap().as_str(), "web");
    }

    #[test]
    fn generated_names_are_valid_and_every_word_is_used_once() {
        for attempt in 0..3 {
            let name = ContainerName::random(attempt).unwrap();
            assert_eq!(name.as_str().parse::<ContainerName>().unwrap(), name);
        }
        for words in [ADJECTIVES, NOUNS] {
            let unique: std::collections::BTreeSet<_> = words.iter().collect();
            assert_eq!(unique.len(), words.len());
        }
    }
}
