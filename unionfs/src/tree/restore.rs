//! Going on where an earlier server of the same mount was killed.
//!
//! What it knew of each object is in its record. Three things may be missing: what the requests in work had changed on the
//! disk and not yet written down. A copy-up is seen by the copy being there. A move is seen by the names, which it noted
//! before. All else is found out when the kernel sends the request again (`Tree::create`, `remove`, `rename`, `link`), as
//! nobody can reach what it is about before it is answered.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::Tree;
use super::intent::{Intent, Join, Move, Removed};
use super::object::{Content, Object};
use super::record;
use crate::Result;
use crate::backing::{self, Identity};
use crate::lower::Place;
use crate::node::{Ino, Kind};
use crate::survive::Keep;
use crate::upper::{self, Link};

impl Tree {
    /// Takes over from an earlier server, before anything is served.
    pub(super) fn restore(&self, keep: &Arc<Keep>) {
        let mut pinned = Vec::new();
        keep.memory().for_each_record(&mut |number, bytes| match record::decode(bytes) {
            Some(restored) => {
                let object = Object::new(restored.ino, restored.kind, restored.over_lower, restored.state);
                object.keep(keep, Some(number));
                let object = self.objects.restore(object);
                if restored.pinned {
                    pinned.push(object);
                }
            }
            None => self.lower.restore(number, bytes),
        });
        self.restore_files(keep, &pinned);
        self.restore_references(keep);
        for object in self.objects.all() {
            // Unreachable, and nobody knows it: its server died just before it could be told of, or forgotten.
            if object.is_removed() {
                self.forget(object.ino, 0);
            }
        }
        self.find_copies();
    }

    /// Settles what requests in work had moved.
    pub(crate) fn settle(&self, intents: &[Vec<u8>]) {
        let _names = self.write_names();
        for intent in intents {
            let settled = match Intent::decode(intent) {
                Some(Intent::Rename(moved)) => match self.was_moved(&moved) {
                    Ok(true) => self.finish_past_move(&moved),
                    _ => Ok(()),
                },
                Some(Intent::Join(join)) => self.settle_join(&join),
                _ => Ok(()),
            };
            if let Err(error) = settled {
                tracing::warn!(%error, "a move of the last server is not settled");
            }
        }
    }

    /// Makes the count of links right for a name that has joined the others, or has not. May be done more than once.
    pub(super) fn settle_join(&self, join: &Join) -> Result<()> {
        let upper = self.writable_upper()?;
        let Some(object) = self.objects.get(join.ino) else { return Ok(()) };
        let joined = self.upper_identity(join.dir, &join.name)?.is_some_and(|file| object.state().upper == Some(file));
        let covered = if joined { (join.link.covered + 1).min(join.link.all) } else { join.link.covered };
        let link = Link { covered, ..join.link };
        object.state().link = Some(link);
        upper.set_link(object.ino, link)
    }

    /// Gives objects without a name their files back.
    fn restore_files(&self, keep: &Arc<Keep>, objects: &[Arc<Object>]) {
        let mut files = keep.pins().take_over();
        let mut live = HashMap::new();
        for object in objects {
            let Some(file) = files.remove(&object.ino.0) else { continue };
            let identity = object.state().upper;
            let same = |identity: Identity| backing::stat(file.as_fd()).is_ok_and(|raw| upper::same(identity, &raw));
            if identity.is_some_and(same) {
                live.insert(object.ino.0, Arc::clone(&file));
                object.restore_file(file);
            }
        }
        keep.pins().keep(live);
    }

    fn restore_references(&self, keep: &Keep) {
        let mut references: HashMap<Ino, (u64, u64)> = HashMap::new();
        keep.known(self.lower.gapless()).for_each(&mut |known| {
            let ino = Ino(if known.ino == 0 { known.node } else { known.ino });
            let (lookups, opens) = references.entry(ino).or_default();
            *lookups += known.lookups;
            *opens += known.opens;
        });
        for object in self.objects.all() {
            if let Some(data) = object.state().held {
                references.entry(data).or_default().0 += 1;
            }
        }
        for (ino, (lookups, opens)) in references {
            match self.object(ino) {
                Some(object) if !object.over_lower => object.references.store(lookups, Ordering::Relaxed),
                _ => self.lower.restore_references(ino, lookups),
            }
            if let Some(object) = self.object(ino) {
                object.restore_opens(opens);
            }
        }
    }

    /// Returns whether opens of a node are counted here: those that an earlier server left all are then.
    pub(crate) fn counts_opens(&self, ino: Ino) -> bool {
        self.object(ino).is_some()
    }

    /// Finds copies in the upper that their server had put in place but not noted.
    fn find_copies(&self) {
        let _names = self.write_names();
        let mut missing: Vec<_> = self.objects.all();
        missing.retain(|object| object.ino != Ino::ROOT && !object.is_in_upper());
        // Parents come before what is in them; a round finds at least the topmost that is there.
        loop {
            let before = missing.len();
            missing.retain(|object| !self.find_copy(object));
            if missing.is_empty() || missing.len() == before {
                break;
            }
        }
    }

    fn find_copy(&self, object: &Object) -> bool {
        let places = object.state().places.clone();
        places.into_iter().any(|place| self.find_copy_at(object, place).unwrap_or(false))
    }

    fn find_copy_at(&self, object: &Object, Place { parent, name }: Place) -> Result<bool> {
        let upper = self.writable_upper()?;
        let Some(parent) = self.upper_object(parent) else { return Ok(false) };
        let Some((file, raw)) = upper.look(self.upper_file(&parent)?.as_fd(), &name)? else { return Ok(false) };
        if backing::is_whiteout(&raw) || backing::kind(&raw)? != object.kind {
            return Ok(false);
        }
        let marks = self.marks.read(file.as_fd())?;
        let number = marks.number.and_then(|number| self.lower.known_number(number));
        if object.kind != Kind::Directory && number.is_some_and(|ino| ino != object.ino) {
            return Ok(false);
        }
        let link = upper.links().get(object.ino);
        let attributes_only = marks.metacopy && object.kind == Kind::Regular;
        let content = if attributes_only { Content::Lower(object.ino) } else { Content::Own };
        object.state().copy_is_found(backing::identity(&raw), content, link);
        Ok(true)
    }

    /// Returns whether the names are as after a move. The caller holds `namespace` for writing.
    pub(super) fn was_moved(&self, moved: &Move) -> Result<bool> {
        let at = |place: &(Ino, Vec<u8>)| self.upper_identity(place.0, &place.1);
        Ok(match &moved.exchanged {
            Some((_, other)) => at(&moved.from)? == Some(*other) && at(&moved.to)? == Some(moved.moved.1),
            None => at(&moved.to)? == Some(moved.moved.1) && at(&moved.from)? != Some(moved.moved.1),
        })
    }

    /// Notes a move that was made. May be done more than once.
    pub(super) fn finish_past_move(&self, moved: &Move) -> Result<()> {
        let Move { from, to, moved: (ino, _), replaced, exchanged, whiteout } = moved;
        let upper = self.writable_upper()?;
        if *whiteout && self.upper_identity(from.0, &from.1)?.is_none() {
            // On filesystems that cannot do both at once.
            let (_, directory) = self.directory_for_change(from.0)?;
            let dir = directory.upper.as_ref().ok_or(Errno::STALE)?;
            upper.put_whiteout(dir.as_fd(), &from.1, upper::Replaced::Nothing)?;
        }
        if let Some(replaced) = replaced {
            self.finish_past_removal(to.0, &to.1, replaced)?;
        }
        let pairs = [Some((*ino, from, to)), exchanged.map(|(other, _)| (other, to, from))];
        for (ino, was, is) in pairs.into_iter().flatten() {
            let Some(object) = self.objects.get(ino) else { continue };
            object.remove_place(was.0, &was.1);
            object.add_place(is.0, &is.1);
        }
        if exchanged.is_none() {
            self.relist(from.0, |parent| parent.unlist(&from.1));
            self.relist(to.0, |parent| parent.list(&to.1));
        }
        Ok(())
    }

    /// Notes the removal of a name that was made. May be done more than once.
    pub(super) fn finish_past_removal(&self, dir: Ino, name: &[u8], removed: &Removed) -> Result<()> {
        let upper = self.writable_upper()?;
        if let Some(object) = self.objects.get(removed.ino) {
            object.state().link = removed.link;
            self.finish_removal(upper, dir, name, removed.only_in_lower, &object)?;
        }
        self.relist(dir, |parent| parent.unlist(name));
        Ok(())
    }

    /// Takes away what a server had made under a name and told nobody of, as it may not be finished.
    pub(super) fn unmake(&self, dir: Ino, name: &[u8], whiteout: bool) -> Result<()> {
        let upper = self.writable_upper()?;
        let (parent, directory) = self.directory_for_change(dir)?;
        let Some(found) = self.name(&directory, name)?.found else { return Ok(()) };
        if found.upper.is_none() {
            return Ok(());
        }
        let parent_fd = directory.upper.as_ref().ok_or(Errno::STALE)?.as_fd();
        let is_directory = found.kind == Kind::Directory;
        // A count has met it, as it has a name.
        let counted = upper.look(parent_fd, name)?.filter(|(_, raw)| is_directory || raw.nlink == 1);
        if whiteout {
            let replaced = if is_directory { upper::Replaced::Directory } else { upper::Replaced::File };
            upper.put_whiteout(parent_fd, name, replaced)?;
        } else {
            let flags = if is_directory { rustix::fs::AtFlags::REMOVEDIR } else { rustix::fs::AtFlags::empty() };
            rustix::fs::unlinkat(parent_fd, name, flags)?;
        }
        parent.unlist(name);
        let object = self.objects.get(found.ino);
        if let Some((_, raw)) = counted {
            self.account_unmade(object.as_deref(), &raw);
        }
        if let Some(object) = object {
            object.remove_place(dir, name);
            self.handles.remove(object.ino);
            self.forget(object.ino, 0);
        }
        Ok(())
    }

    /// Returns which file of the upper has a name, if any has; it may be a whiteout.
    fn upper_identity(&self, dir: Ino, name: &[u8]) -> Result<Option<Identity>> {
        let Some(upper) = &self.upper else { return Ok(None) };
        let Some(directory) = self.directory(dir)?.upper else { return Ok(None) };
        Ok(upper.look(directory.as_fd(), name)?.map(|(_, raw)| backing::identity(&raw)))
    }

    fn relist(&self, dir: Ino, change: impl FnOnce(&Object)) {
        if let Some(parent) = self.objects.get(dir) {
            change(&parent);
        }
    }
}
