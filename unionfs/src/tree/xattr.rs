//! Extended attributes of nodes.

use rustix::io::Errno;

use super::Tree;
use crate::Result;
use crate::node::Ino;

impl Tree {
    /// Returns the value of an extended attribute.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let mut found = None;
        self.lower.for_each_xattr(ino, &mut |candidate, value| {
            if candidate == name && !is_private(candidate) {
                found = Some(value.to_vec());
            }
        })?;
        found.ok_or(Errno::NODATA)
    }

    /// Returns the names of the extended attributes, each ended by a zero byte.
    pub fn list_xattrs(&self, ino: Ino) -> Result<Vec<u8>> {
        let mut names = Vec::new();
        self.lower.for_each_xattr(ino, &mut |name, _| {
            if !is_private(name) && !name.contains(&0) {
                names.extend_from_slice(name);
                names.push(0);
            }
        })?;
        Ok(names)
    }
}

/// Returns whether an attribute is a mark of the union and not for users.
fn is_private(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}
