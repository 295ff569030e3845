//! Listing directories into the room of an answer.

use std::ops::ControlFlow;

use super::Operations;
use crate::fuse::reply::{Reply, dirent_end, dirent_kind, put_dirent};
use crate::fuse::wire::Dirent;
use crate::node::Ino;

impl Operations {
    /// Serves READDIR and, with `attributes`, READDIRPLUS.
    pub(super) fn read_directory(&self, dir: Ino, cookie: u64, attributes: bool, room: &mut [u8]) -> Reply {
        let mut used = 0;
        let result = self.tree.read_dir(dir, cookie, attributes, &mut |entry| {
            let dots = entry.name == b"." || entry.name == b"..";
            let dirent = Dirent {
                ino: entry.ino.0,
                offset: entry.cookie,
                name_length: u32::try_from(entry.name.len()).unwrap_or(u32::MAX),
                kind: dirent_kind(entry.kind),
            };
            // The kernel is not told of what does not fit.
            if dirent_end(used, attributes, entry.name) > room.len() {
                return ControlFlow::Break(());
            }
            let known = match (&entry.stat, attributes) {
                (Some(stat), true) if dots => Some(self.entry(stat, stat.ino.0)),
                (Some(stat), true) => Some(self.entry(stat, self.nodes.tell(stat.ino))),
                (None, true) => return ControlFlow::Break(()),
                (_, false) => None,
            };
            match put_dirent(room, used, known.as_ref(), &dirent, entry.name) {
                Some(end) => {
                    used = end;
                    ControlFlow::Continue(())
                }
                None => ControlFlow::Break(()),
            }
        });
        match result {
            // What has been told counts; the error comes again with the next request.
            Err(error) if used == 0 => Reply::Error(error),
            _ => Reply::InRoom(used),
        }
    }
}
