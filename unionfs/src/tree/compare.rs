//! Questions about the lowers beside the union, for finding out what changed.

use std::ops::ControlFlow;
use std::os::fd::AsFd as _;

use super::Tree;
use super::file::DataPlace;
use crate::Result;
use crate::lower::LayerBytes;
use crate::marks;
use crate::node::{Ino, Kind, Stat};

impl Tree {
    /// Returns the root of the lowers, if there is an upper to compare with it.
    pub(crate) fn lower_root(&self) -> Option<Ino> {
        self.upper.as_ref().map(|_| Ino::ROOT)
    }

    /// Returns the attributes that a node has in the lowers.
    pub(crate) fn lower_stat(&self, ino: Ino) -> Result<Stat> {
        self.lower.stat(ino)
    }

    /// Calls `visit` with all that a directory has in the lowers.
    pub(crate) fn lower_names(&self, dir: Ino, visit: &mut dyn FnMut(&[u8], Ino)) -> Result<()> {
        let mut names = Vec::new();
        self.lower.for_each_child(dir, 0, &mut |child| {
            names.push(child.name.to_vec());
            ControlFlow::Continue(())
        })?;
        for name in names {
            if let Some(ino) = self.lower.lookup(dir, &name)? {
                visit(&name, ino);
            }
        }
        Ok(())
    }

    /// Returns whether the lower directory of this number shows through the union's.
    pub(crate) fn shows_lower(&self, dir: Ino) -> bool {
        self.object(dir).is_none_or(|object| {
            let state = object.state();
            state.merged || state.upper.is_none()
        })
    }

    /// Returns whether anything in a directory may differ from the lowers.
    pub(crate) fn may_differ_below(&self, dir: Ino) -> bool {
        self.is_in_upper(dir) || self.upper.as_ref().is_some_and(|upper| upper.links().any_shared())
    }

    /// Returns whether a node has those extended attributes now that another has in the lowers.
    pub(crate) fn same_xattrs(&self, before: Ino, now: Ino, counts: &dyn Fn(&[u8]) -> bool) -> Result<bool> {
        let mut old = Vec::new();
        self.lower.for_each_xattr(before, &mut |name, value| {
            if !is_mark(name) && counts(name) {
                old.push((name.to_vec(), value.to_vec()));
            }
        })?;
        let _names = self.read_names();
        let Some(object) = self.upper_object(now) else { return Ok(before == now) };
        let file = self.upper_file(&object)?;
        let mut new = Vec::new();
        let list = self.upper_xattr_names(file.as_fd())?;
        for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty() && !is_mark(name) && counts(name)) {
            if let Some(value) = self.upper_xattr(file.as_fd(), name)? {
                new.push((name.to_vec(), value));
            }
        }
        old.sort_unstable();
        new.sort_unstable();
        // What the filesystem of a symbolic link cannot hold was left behind at copy-up.
        Ok(old == new || object.kind == Kind::Symlink)
    }

    /// Returns where in the layers of an image the data of a file lies; `None` if some of it is elsewhere.
    pub(crate) fn data_in_layers(&self, ino: Ino) -> Option<Vec<LayerBytes>> {
        let DataPlace::Lower(data) = self.data_place(ino) else { return None };
        self.lower.data_in_layers(data)
    }

    /// Returns whether a file, or the target of a link, is now what another was in the lowers. Sizes are equal.
    pub(crate) fn same_data(&self, before: &Stat, now: &Stat) -> Result<bool> {
        match now.kind {
            Kind::Symlink => Ok(self.lower.read_link(before.ino)? == self.read_link(now.ino)?),
            // Its data was never changed.
            Kind::Regular if matches!(self.data_place(now.ino), DataPlace::Lower(data) if data == before.ino) => {
                Ok(true)
            }
            Kind::Regular => {
                let (mut old, mut new) = (vec![0; COMPARED], vec![0; COMPARED]);
                let mut offset = 0;
                while offset < now.size {
                    let read = self.lower.read_at(before.ino, &mut old, offset)?;
                    if read == 0 || self.read(now.ino, &mut new[..read], offset)? != read || old[..read] != new[..read]
                    {
                        return Ok(false);
                    }
                    offset += read as u64;
                }
                Ok(true)
            }
            _ => Ok(true),
        }
    }
}

/// Bytes compared at a time.
const COMPARED: usize = 1 << 16;

fn is_mark(name: &[u8]) -> bool {
    marks::shown(name).is_none()
}
