//! Names in a layer: what an entry may be called, and how the name is taken apart.
//!
//! Names are bytes. An entry is always below the root of its layer, whatever its name looks like: leading slashes, empty
//! components and `.` are skipped, `..` is refused, and nothing is ever resolved through a symbolic link.

/// Longest name of one file or directory.
pub const MAX_NAME: usize = 255;
/// Longest path, as `PATH_MAX` without its NUL. It also bounds the depth of a tree to 2048.
pub const MAX_PATH: usize = 4095;

/// Returns the components of `path` that name something.
pub fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> + Clone {
    path.split(|&byte| byte == b'/').filter(|component| !component.is_empty() && *component != b".")
}

/// Returns the plain form of `path`: relative, one slash between components, empty for the root.
pub fn normalise(path: &[u8]) -> Result<Vec<u8>, InvalidPath> {
    check(path)?;
    Ok(join(components(path)))
}

/// Puts a path together.
pub fn join<'a>(components: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut path = Vec::new();
    for component in components {
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component);
    }
    path
}

/// Checks that `path` names something inside a layer.
pub fn check(path: &[u8]) -> Result<(), InvalidPath> {
    if path.is_empty() {
        return Err(InvalidPath::Empty);
    }
    if path.contains(&0) {
        return Err(InvalidPath::Nul);
    }
    let mut length = 0;
    for component in components(path) {
        if component == b".." {
            return Err(InvalidPath::Parent);
        }
        if component.len() > MAX_NAME {
            return Err(InvalidPath::NameTooLong);
        }
        length += component.len() + 1;
    }
    // One slash too many was counted.
    if length > MAX_PATH + 1 { Err(InvalidPath::PathTooLong) } else { Ok(()) }
}

/// Why a name cannot stand in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPath {
    /// Nothing at all, not even the root.
    #[error("empty path")]
    Empty,
    /// A zero byte.
    #[error("path contains a NUL byte")]
    Nul,
    /// A component `..`.
    #[error("path contains \"..\"")]
    Parent,
    /// A component longer than 255 bytes.
    #[error("name is longer than {MAX_NAME} bytes")]
    NameTooLong,
    /// Longer than 4095 bytes in all.
    #[error("path is longer than {MAX_PATH} bytes")]
    PathTooLong,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_path_is_the_same_path() {
        for spelling in ["a/b", "/a/b", "./a/b", "a//b/", "//a/./b/.", "././//a/b"] {
            assert_eq!(normalise(spelling.as_bytes()), Ok(b"a/b".to_vec()), "{spelling}");
        }
        for root in [".", "/", "./", "/.", "//"] {
            assert_eq!(normalise(root.as_bytes()), Ok(vec![]), "{root}");
        }
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        let cases: [(&[u8], InvalidPath); 7] = [
            (b"", InvalidPath::Empty),
            (b"..", InvalidPath::Parent),
            (b"a/../b", InvalidPath::Parent),
            (b"/../etc/passwd", InvalidPath::Parent),
            (b"a\0b", InvalidPath::Nul),
            (&[b'x'; 256], InvalidPath::NameTooLong),
            (&b"0123456/".repeat(513), InvalidPath::PathTooLong),
        ];
        for (path, error) in cases {
            assert_eq!(normalise(path), Err(error), "{}", path.escape_ascii());
        }
    }

    #[test]
    fn the_longest_names_are_accepted() {
        assert!(normalise(&[b'x'; 255]).is_ok());
        assert_eq!(normalise(&b"0123456/".repeat(512)).unwrap().len(), 4095);
        assert!(normalise(b"...").is_ok());
        assert!(normalise(b"..a/\xff\n").is_ok());
    }
}
