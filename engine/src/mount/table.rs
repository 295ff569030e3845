//! The kernel's list of mounts.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountEntry {
    /// Where it is.
    pub(crate) directory: PathBuf,
    /// Its type, such as `fuse.strata`.
    pub(crate) kind: String,
}

/// Reads `/proc/self/mountinfo`.
pub(crate) fn read() -> std::io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Returns the mount that is seen at `directory`, which is the last one made there.
pub(crate) fn at<'a>(entries: &'a [MountEntry], directory: &Path) -> Option<&'a MountEntry> {
    entries.iter().rev().find(|entry| entry.directory == directory)
}

fn parse(text: &[u8]) -> Vec<MountEntry> {
    let line = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let directory = unescape(fields.nth(4)?);
        // A varying number of optional fields ends with a dash.
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        let kind = String::from_utf8_lossy(rest.next()?).into_owned();
        Some(MountEntry { directory: OsString::from_vec(directory).into(), kind })
    };
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// Blanks and backslashes are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = (byte == b'\\').then(|| after.get(..3)).flatten().and_then(|digits| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        });
        match octal {
            Some(value) => {
                out.push(value);
                rest = &after[3..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let text = b"29 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
            40 29 0:35 / /mnt/with\\040blank rw,nosuid - fuse.strata strata rw,user_id=0\n\
            41 40 0:36 / /mnt/with\\040blank ro shared:2 master:1 - tmpfs none rw\n\
            broken line\n";
        let entries = parse(text);
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[1].kind, "fuse.strata");
        assert_eq!(at(&entries, Path::new("/mnt/with blank")).unwrap().kind, "tmpfs");
        assert_eq!(at(&entries, Path::new("/")).unwrap().kind, "ext4");
        assert_eq!(at(&entries, Path::new("/mnt")), None);
    }
}
