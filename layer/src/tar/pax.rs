//! PAX extended headers.

use super::error::{Escaped, Problem};
use super::number;
use crate::index::Timestamp;

/// Names and values of extended attributes.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What one extended header says about an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) device_major: Option<u64>,
    pub(super) device_minor: Option<u64>,
    pub(super) xattrs: Xattrs,
    pub(super) sparse: PaxSparse,
}

/// The records of a sparse file, of whichever version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    pub(super) block_count: Option<u64>,
    /// Offsets and lengths in turn.
    pub(super) map: Option<Vec<u64>>,
}

impl PaxSparse {
    /// Returns whether any record says that the file is a sparse one.
    pub(super) fn is_present(&self) -> bool {
        *self != PaxSparse::default()
    }
}

impl Pax {
    /// Reads the header of one entry.
    pub(super) fn local(bytes: &[u8]) -> Result<Pax, Problem> {
        let mut pax = Pax::default();
        for record in Records(bytes) {
            let (key, value) = record?;
            pax.set(key, value)?;
        }
        // Writers may give an attribute in both spellings; the last one counts. Sorting keeps equal names in order.
        pax.xattrs.sort_by(|(a, _), (b, _)| a.cmp(b));
        pax.xattrs.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                std::mem::swap(later, earlier);
            }
            same
        });
        Ok(pax)
    }

    /// Adds a global header. It can only say what makes sense for several entries: times and owners.
    pub(super) fn add_global(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        for record in Records(bytes) {
            let (key, value) = record?;
            let single = [
                &b"path"[..],
                b"linkpath",
                b"size",
                b"GNU.sparse.",
                b"SCHILY.xattr.",
                b"LIBARCHIVE.xattr.",
                b"SCHILY.devm",
            ];
            if single.iter().any(|prefix| key.starts_with(prefix)) {
                return Err(Problem::Global(Escaped(key).to_string()));
            }
            self.set(key, value)?;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Problem> {
        let invalid = || Problem::Value(String::from_utf8_lossy(key).into_owned());
        // An empty value takes back what was said before it.
        let number = || match value {
            b"" => Ok(None),
            _ => number::decimal(value).map(Some).ok_or_else(invalid),
        };
        let text = |what| match value {
            b"" => Ok(None),
            _ if value.contains(&0) => Err(Problem::Nul(what)),
            _ => Ok(Some(value.to_vec())),
        };
        match key {
            b"path" => self.path = text("path")?,
            b"linkpath" => self.link_path = text("link target")?,
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => {
                self.mtime = match value {
                    b"" => None,
                    _ => Some(number::time(value).ok_or_else(invalid)?),
                }
            }
            b"SCHILY.devmajor" => self.device_major = number()?,
            b"SCHILY.devminor" => self.device_minor = number()?,
            b"GNU.sparse.major" => self.sparse.major = number()?,
            b"GNU.sparse.minor" => self.sparse.minor = number()?,
            b"GNU.sparse.name" => self.sparse.name = text("path")?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = number()?,
            b"GNU.sparse.numblocks" => self.sparse.block_count = number()?,
            b"GNU.sparse.map" => {
                let numbers = value.split(|&byte| byte == b',').filter(|_| !value.is_empty());
                let map = numbers.map(number::decimal).collect::<Option<Vec<u64>>>();
                self.sparse.map = Some(map.ok_or_else(invalid)?);
            }
            // Version 0.0 repeats these two in turn.
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let map = self.sparse.map.get_or_insert_default();
                if map.len().is_multiple_of(2) != (key == b"GNU.sparse.offset") {
                    return Err(invalid());
                }
                map.push(number::decimal(value).ok_or_else(invalid)?);
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((percent_decoded(name, false), value.to_vec()));
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let value = base64(value).ok_or_else(invalid)?;
                    self.xattrs.push((percent_decoded(name, true), value));
                }
                // Everything else is of no meaning in a layer: comments, access times, names of owners, lists of access
                // rights in text form, bookkeeping of single programs.
            }
        }
        Ok(())
    }
}

/// Takes a header apart into keywords and values.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = self.split_record().ok_or(Problem::Record);
        if record.is_err() {
            self.0 = &[];
        }
        Some(record)
    }
}

impl<'a> Records<'a> {
    /// Splits off one record: its length in decimal, a space, the keyword, `=`, the value and a newline.
    fn split_record(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let space = self.0.iter().take(MAX_LENGTH_DIGITS + 1).position(|&byte| byte == b' ')?;
        let length = usize::try_from(number::decimal(&self.0[..space])?).ok()?;
        let (record, rest) = self.0.split_at_checked(length)?;
        let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
        let equals = body.iter().position(|&byte| byte == b'=')?;
        let (key, value) = (&body[..equals], &body[equals + 1..]);
        if key.is_empty() || key.contains(&0) {
            return None;
        }
        self.0 = rest;
        Some((key, value))
    }
}

/// Decodes `%25` and `%3D`, which GNU tar writes for `%` and `=` in names of attributes, or every `%XX`.
fn percent_decoded(name: &[u8], all: bool) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = match *rest {
            [b'%', high, low, ..] => hex(high).zip(hex(low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        match escaped.filter(|byte| all || matches!(byte, b'%' | b'=')) {
            Some(byte) => {
                decoded.push(byte);
                rest = &rest[3..];
            }
            None => {
                decoded.push(byte);
                rest = tail;
            }
        }
    }
    decoded
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Decodes base64, with or without padding.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.strip_suffix(b"==").or(text.strip_suffix(b"=")).unwrap_or(text);
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.chunks(4) {
        let mut bits = 0u32;
        for &digit in chunk {
            bits = bits << 6 | u32::from(base64_digit(digit)?);
        }
        // Four digits are three bytes, three are two, two are one.
        let bytes = chunk.len().checked_sub(1).filter(|&bytes| bytes > 0)?;
        bits <<= 6 * (4 - chunk.len());
        decoded.extend_from_slice(&bits.to_be_bytes()[1..=bytes]);
    }
    Some(decoded)
}

fn base64_digit(digit: u8) -> Option<u8> {
    match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

/// Digits of the longest record length.
const MAX_LENGTH_DIGITS: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &str) -> Vec<u8> {
        // The length counts its own digits.
        let length = (1..).find(|&length: &usize| length == text.len() + 2 + length.to_string().len()).unwrap();
        format!("{length} {text}\n").into_bytes()
    }

    fn local(records: &[&str]) -> Result<Pax, Problem> {
        Pax::local(&records.iter().flat_map(|text| record(text)).collect::<Vec<u8>>())
    }

    #[test]
    fn known_records_are_read_and_others_ignored() {
        let pax = local(&[
            "path=a=b\nc",
            "linkpath=x",
            "size=5",
            "uid=7",
            "gid=8",
            "mtime=-1.5",
            "comment=hello",
            "uname=root",
            "atime=nonsense",
            "SCHILY.acl.access=user::rwx",
            "SCHILY.devmajor=1",
            "SCHILY.devminor=2",
        ])
        .unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a=b\nc"[..]));
        assert_eq!(pax.link_path.as_deref(), Some(&b"x"[..]));
        assert_eq!((pax.size, pax.uid, pax.gid), (Some(5), Some(7), Some(8)));
        assert_eq!(pax.mtime, Some(Timestamp { seconds: -2, nanoseconds: 500_000_000 }));
        assert_eq!((pax.device_major, pax.device_minor), (Some(1), Some(2)));
        assert_eq!(pax.xattrs, []);
    }

    #[test]
    fn the_last_record_counts_and_an_empty_one_takes_back() {
        let pax = local(&["path=a", "path=b", "size=1", "size=", "mtime=1", "mtime="]).unwrap();
        assert_eq!(pax, Pax { path: Some(b"b".to_vec()), ..Pax::default() });
    }

    #[test]
    fn attributes_are_read_in_both_spellings() {
        let pax = local(&[
            "SCHILY.xattr.user.empty=",
            "SCHILY.xattr.user.a%3Db%25c%41=1=2\n3",
            "LIBARCHIVE.xattr.user.%41=AAECAw",
            "LIBARCHIVE.xattr.user.empty=AA==",
        ])
        .unwrap();
        let expected: [(&[u8], &[u8]); 3] =
            [(b"user.A", &[0, 1, 2, 3]), (b"user.a=b%c%41", b"1=2\n3"), (b"user.empty", b"\0")];
        assert_eq!(pax.xattrs, expected.map(|(name, value)| (name.to_vec(), value.to_vec())));
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"0 \n"[..],
            b"x",
            b"5 a=b",
            b"6 a=b\n5 a=",
            b"99 a=b\n",
            b"-6 a=b\n",
            b"+6 a=b\n",
            b" 6 a=b\n",
            b"5 ab\n",
            b"5 =b\n",
            b"3 \n",
            b"2 ",
            b"7 a\0=b\n",
            b"99999999999999999999999 a=b\n",
            b"18446744073709551615 a=b\n",
            b"6 a=b\n\0\0",
        ] {
            assert_eq!(Pax::local(bad), Err(Problem::Record), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn invalid_values_are_refused() {
        for bad in ["size=-1", "uid=1x", "mtime=now", "size=99999999999999999999", "LIBARCHIVE.xattr.user.a=?"] {
            let key = bad.split('=').next().unwrap().to_owned();
            assert_eq!(local(&[bad]), Err(Problem::Value(key)), "{bad}");
        }
        assert_eq!(local(&["path=a\0b"]), Err(Problem::Nul("path")));
        assert_eq!(local(&["linkpath=\0"]), Err(Problem::Nul("link target")));
    }

    #[test]
    fn global_headers_say_nothing_about_single_entries() {
        let mut global = Pax::default();
        global.add_global(&[record("comment=x"), record("mtime=5"), record("uid=6")].concat()).unwrap();
        assert_eq!(global.uid, Some(6));
        for bad in ["path=a", "size=1", "SCHILY.xattr.user.a=b", "GNU.sparse.major=1", "linkpath=a"] {
            assert!(matches!(global.add_global(&record(bad)), Err(Problem::Global(_))), "{bad}");
        }
    }

    #[test]
    fn sparse_records_are_collected() {
        let zero =
            local(&["GNU.sparse.offset=1", "GNU.sparse.numbytes=2", "GNU.sparse.offset=3", "GNU.sparse.numbytes=4"]);
        assert_eq!(zero.unwrap().sparse.map, Some(vec![1, 2, 3, 4]));
        assert_eq!(local(&["GNU.sparse.map=1,2,3,4"]).unwrap().sparse.map, Some(vec![1, 2, 3, 4]));
        assert_eq!(local(&["GNU.sparse.map="]).unwrap().sparse.map, Some(vec![]));
        assert!(local(&["GNU.sparse.map=1,,2"]).is_err());
        assert!(local(&["GNU.sparse.offset=1", "GNU.sparse.offset=2"]).is_err());
        assert!(local(&["GNU.sparse.numbytes=1"]).is_err());
    }

    #[test]
    fn base64_is_decoded() {
        for (text, expected) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg", "foob")] {
            assert_eq!(base64(text.as_bytes()).as_deref(), Some(expected.as_bytes()), "{text}");
        }
        assert_eq!(base64(b"A"), None);
        assert_eq!(base64(b"Zg=a"), None);
    }
}
