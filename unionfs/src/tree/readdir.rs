//! Listing directories.
//!
//! A cookie is the place after an entry. Cookies are stable: whatever is created or deleted while somebody reads, each
//! name that stays is listed exactly once. In a directory that is only in the lowers an entry's cookie is its position
//! there, which never changes, so that no state is kept per reader.

use std::ops::ControlFlow;

use super::Tree;
use crate::Result;
use crate::node::{Ino, Kind, Stat};

/// One name of a directory.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Continues the listing behind this entry.
    pub cookie: u64,
    /// The name.
    pub name: &'a [u8],
    /// Inode number.
    pub ino: Ino,
    /// Type.
    pub kind: Kind,
    /// The attributes, if asked for.
    pub stat: Option<Stat>,
}

impl Tree {
    /// Calls `emit` with the entries of `dir` behind `cookie` (0 is the start), `.` and `..` included, until it breaks:
    /// then the entry it was called with has not been taken.
    ///
    /// With `attributes`, each entry comes with its attributes and each taken one but `.` and `..` counts as a lookup.
    pub fn read_dir(
        &self,
        dir: Ino,
        cookie: u64,
        attributes: bool,
        emit: &mut dyn FnMut(&DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        for (name, cookie) in [(b".".as_slice(), DOT), (b"..", DOT_DOT)].into_iter().skip(cookie.min(DOT_DOT) as usize)
        {
            let ino = if cookie == DOT { dir } else { self.parent(dir)? };
            let stat = if attributes { Some(self.stat(ino)?) } else { None };
            if emit(&DirEntry { cookie, name, ino, kind: Kind::Directory, stat }).is_break() {
                return Ok(());
            }
        }
        let position = cookie.saturating_sub(DOT_DOT);
        let mut result = Ok(());
        self.lower.for_each_child(dir, position, &mut |child| {
            let held = attributes.then(|| self.hold(child.ino, dir, child.name)).transpose();
            let stat = match held {
                Ok(stat) => stat,
                Err(error) => {
                    result = Err(error);
                    return ControlFlow::Break(());
                }
            };
            let cookie = child.position + DOT_DOT + 1;
            let flow = emit(&DirEntry { cookie, name: child.name, ino: child.ino, kind: child.kind, stat });
            if flow.is_break() && attributes {
                self.lower.forget(child.ino, 1);
            }
            flow
        })?;
        result
    }
}

/// Cookie of `.`.
const DOT: u64 = 1;
/// Cookie of `..`; the entries proper follow.
const DOT_DOT: u64 = 2;
