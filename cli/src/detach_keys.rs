//! The keys with which a user leaves a container alone that goes on.

use std::str::FromStr;

/// A key sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DetachKeys(Vec<u8>);

impl Default for DetachKeys {
    /// `ctrl-p,ctrl-q`
    fn default() -> DetachKeys {
        DetachKeys(vec![0x10, 0x11])
    }
}

impl FromStr for DetachKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<DetachKeys, String> {
        if text.is_empty() {
            return Ok(DetachKeys::default());
        }
        let keys = text.split(',').map(|key| {
            let byte = match key.strip_prefix("ctrl-").map(str::as_bytes) {
                Some([letter @ b'a'..=b'z']) => Some(letter - b'a' + 1),
                Some(b"@") => Some(0),
                Some(b"[") => Some(27),
                Some(b"\\") => Some(28),
                Some(b"]") => Some(29),
                Some(b"^") => Some(30),
                Some(b"_") => Some(31),
                Some(_) => None,
                None => match key.as_bytes() {
                    [byte] => Some(*byte),
                    _ => None,
                },
            };
            byte.ok_or_else(|| format!("invalid detach keys ({text}) provided: unknown character: '{key}'"))
        });
        keys.collect::<Result<_, _>>().map(DetachKeys)
    }
}

/// Finds the sequence in what is typed.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    keys: &'a DetachKeys,
    matched: usize,
}

impl DetachKeys {
    pub(crate) fn scanner(&self) -> Scanner<'_> {
        Scanner { keys: self, matched: 0 }
    }
}

impl Scanner<'_> {
    /// Takes what was typed; returns what goes to the process, and whether the sequence was complete.
    ///
    /// The beginning of the sequence waits until it is clear that it is none.
    pub(crate) fn scan(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let keys = &self.keys.0;
        let mut passed = Vec::with_capacity(typed.len());
        for byte in typed {
            if *byte == keys[self.matched] {
                self.matched += 1;
                if self.matched == keys.len() {
                    return (passed, true);
                }
                continue;
            }
            passed.extend(&keys[..self.matched]);
            self.matched = 0;
            if *byte == keys[0] {
                self.matched = 1;
            } else {
                passed.push(*byte);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_docker_s() {
        assert_eq!("ctrl-p,ctrl-q".parse(), Ok(DetachKeys::default()));
        assert_eq!("".parse(), Ok(DetachKeys::default()));
        assert_eq!("a,ctrl-\\,ctrl-@".parse(), Ok(DetachKeys(vec![b'a', 28, 0])));
        for text in ["ctrl-", "ctrl-A", "ab", "ctrl-p,", "ctrl-pp"] {
            assert!(text.parse::<DetachKeys>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_sequence_is_found_in_pieces_and_lost_when_broken() {
        let keys: DetachKeys = "x,y".parse().unwrap();
        let mut scanner = keys.scanner();
        assert_eq!(scanner.scan(b"abx"), (b"ab".to_vec(), false));
        assert_eq!(scanner.scan(b"c"), (b"xc".to_vec(), false));
        assert_eq!(scanner.scan(b"xx"), (b"x".to_vec(), false));
        assert_eq!(scanner.scan(b"yz"), (Vec::new(), true));
    }
}
