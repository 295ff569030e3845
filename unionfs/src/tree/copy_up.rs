//! Bringing nodes into the upper before their first change.
//!
//! A copy is prepared in the staging folder while the union goes on, and put in place by one rename under the namespace
//! lock. Parents come first. Where only attributes change, only they are copied; `metacopy.rs` is about the data that is
//! then left in the lower. What has been deleted meanwhile is copied all the same, to a file without a name.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::Tree;
use super::directory::is_plain_name;
use super::file::DataPlace;
use super::object::{Content, Object, State};
use crate::Result;
use crate::backing::{self, Identity};
use crate::capability;
use crate::lower::Place;
use crate::marks::{self, Recorded};
use crate::node::{Ino, Kind, Stat, is_null_device};
use crate::override_stat;
use crate::survive;
use crate::upper::{LOOK, Link, UpperLayer};

/// How much of a file a change will keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Nothing but its attributes: its data will not be changed.
    Attributes,
    /// All of it.
    Everything,
    /// Its first bytes.
    Data(u64),
}

/// Why copying a node takes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Long {
    /// There is much to copy.
    Works,
    /// There is something to fetch first.
    Waits,
}

impl Tree {
    /// Returns whether changing a node may take long, because its data has to be copied first, by this change or by one
    /// that is under way, and why.
    pub(crate) fn copies_long(&self, ino: Ino) -> Option<Long> {
        self.writable_upper().ok()?;
        let DataPlace::Lower(data) = self.data_place(ino) else { return None };
        let stat = self.lower.stat(data).ok().filter(|stat| stat.kind == Kind::Regular)?;
        if !self.lower.is_here(data, 0, stat.size) {
            return Some(Long::Waits);
        }
        (stat.blocks > MUCH / 512).then_some(Long::Works)
    }

    /// The same for moving what is called `name` in `dir`.
    pub(crate) fn moves_long(&self, dir: Ino, name: &[u8]) -> Option<Long> {
        if self.habits.metacopy && self.lower.is_whole() {
            // Its data stays where it is.
            return None;
        }
        let ino = {
            let _names = self.read_names();
            self.name(&self.directory(dir).ok()?, name).ok()?.found?.ino
        };
        self.copies_long(ino)
    }

    /// Makes sure that a node is in the upper and returns its object.
    pub(super) fn copy_up(&self, ino: Ino, wanted: Wanted) -> Result<Arc<Object>> {
        let upper = self.writable_upper()?;
        let object = {
            let _names = self.read_names();
            self.object_for_change(ino)?
        };
        if is_ready(&object, wanted) {
            return Ok(object);
        }
        if object.kind == Kind::Directory {
            let _names = self.write_names();
            if object.is_removed() {
                self.copy_up_removed_directory(upper, &object)?;
            } else {
                self.copy_up_directory(ino)?;
            }
            return Ok(object);
        }
        self.copy_up_once(upper, &object, wanted)?;
        Ok(object)
    }

    /// Copies anything but a directory, unless somebody else has done so meanwhile.
    fn copy_up_once(&self, upper: &UpperLayer, object: &Arc<Object>, wanted: Wanted) -> Result<()> {
        let _copying = object.copying.lock().unwrap_or_else(PoisonError::into_inner);
        if is_ready(object, wanted) {
            return Ok(());
        }
        // Before anything changes: this may end anywhere.
        survive::outdates();
        if object.is_in_upper() {
            self.outdated.add(object.ino);
            return self.complete(upper, object, wanted);
        }
        let link = object.state().link;
        // Other names may lead to it: the copy gets one.
        let nameless = object.is_removed() && link.is_some_and(|link| link.covered < link.all);
        let _way = nameless.then(|| self.search_names(object.ino));
        let wanted = if self.habits.metacopy || wanted != Wanted::Attributes { wanted } else { Wanted::Everything };
        let admission = self.admit_copy(object.ino, wanted)?;
        let staged = self.stage_copy(upper, object, wanted)?;
        let _names = self.write_names();
        self.put_copy_in_place(upper, object, &staged)?;
        if wanted != Wanted::Attributes {
            // A change of attributes returns them.
            self.outdated.add(object.ino);
        }
        self.account_new(object, staged.finished.file.as_fd(), admission);
        Ok(())
    }

    /// Makes sure that a directory and those above it are in the upper. The caller holds `namespace` for writing.
    pub(super) fn copy_up_directory(&self, ino: Ino) -> Result<(Arc<Object>, Arc<OwnedFd>)> {
        let upper = self.writable_upper()?;
        let mut missing = Vec::new();
        let mut current = ino;
        loop {
            let object = self.object_for_change(current)?;
            if object.kind != Kind::Directory {
                return Err(Errno::NOTDIR);
            }
            if object.is_in_upper() {
                break;
            }
            let place = object.state().places.first().cloned().ok_or(Errno::NOENT)?;
            if !is_plain_name(&place.name) {
                return Err(Errno::IO);
            }
            current = place.parent;
            missing.push((object, place));
        }
        while let Some((object, place)) = missing.pop() {
            survive::outdates();
            let parent = self.objects.get(place.parent).ok_or(Errno::STALE)?;
            let parent_fd = self.upper_file(&parent)?;
            let admission = self.admit_copy(object.ino, Wanted::Everything)?;
            self.account_before(&parent, parent_fd.as_fd())?;
            let staged = upper.staging_name();
            rustix::fs::mkdirat(upper.staging(), &staged, Mode::RWXU)?;
            let finished = self.finish_staged(upper, &object, &staged, None).inspect_err(|_| upper.discard(&staged))?;
            self.move_copy(upper, &staged, (&parent, parent_fd.as_fd()), &place.name)?;
            self.account_new(&object, finished.file.as_fd(), admission);
            self.now_in_upper(&object, &finished, true);
            self.outdated.add(object.ino);
        }
        let object = self.objects.get(ino).ok_or(Errno::STALE)?;
        let fd = self.upper_file(&object)?;
        Ok((object, fd))
    }

    /// Gives a directory of the lower that was removed while somebody holds it a place for its attributes: a directory
    /// of the upper that is removed as well. The caller holds `namespace` for writing.
    fn copy_up_removed_directory(&self, upper: &UpperLayer, object: &Object) -> Result<()> {
        if object.is_in_upper() {
            return Ok(());
        }
        survive::outdates();
        let admission = self.admit_copy(object.ino, Wanted::Everything)?;
        let staged = upper.staging_name();
        rustix::fs::mkdirat(upper.staging(), &staged, Mode::RWXU)?;
        let finished = self.finish_staged(upper, object, &staged, None).inspect_err(|_| upper.discard(&staged))?;
        rustix::fs::unlinkat(upper.staging(), &staged, AtFlags::REMOVEDIR)?;
        self.account_new(object, finished.file.as_fd(), admission);
        self.now_in_upper(object, &finished, false);
        Ok(())
    }

    /// Returns the object of a node, made if need be. The caller holds `namespace`.
    pub(super) fn object_for_change(&self, ino: Ino) -> Result<Arc<Object>> {
        if let Some(object) = self.objects.get(ino) {
            return Ok(object);
        }
        let stat = self.lower.stat(ino)?;
        let place = self.lower.place(ino).ok_or(Errno::STALE)?;
        let link = (stat.kind != Kind::Directory && stat.nlink > 1).then_some(Link {
            all: stat.nlink,
            covered: 0,
            copied: false,
        });
        Ok(self.objects.get_or_insert(ino, || {
            let merged = stat.kind == Kind::Directory;
            Object::new(ino, stat.kind, true, State { merged, places: vec![place], link, ..State::default() })
        }))
    }

    /// Prepares a copy of anything but a directory and returns its name in the staging folder.
    fn stage_copy(&self, upper: &UpperLayer, object: &Object, wanted: Wanted) -> Result<Staged> {
        let staged = upper.staging_name();
        let stat = self.lower.stat(object.ino)?;
        let finish = |open| self.finish_staged(upper, object, &staged, open);
        let made = match object.kind {
            Kind::Regular => self
                .stage_file(upper, object, &staged, &stat, wanted)
                .and_then(|(file, content)| Ok(Finished { content, ..finish(Some(file))? })),
            Kind::Symlink => {
                let target = self.lower.read_link(object.ino)?;
                rustix::fs::symlinkat(&*target, upper.staging(), &staged).and_then(|()| finish(None))
            }
            kind if is_null_device(kind, stat.device) => upper
                .make_null_device(upper.staging(), staged.as_bytes(), Mode::RUSR | Mode::WUSR)
                .and_then(|()| finish(None)),
            _ => {
                let node = (object.kind, stat.device);
                let made = upper.owners().make_node(upper.staging(), staged.as_bytes(), node, Mode::RUSR | Mode::WUSR);
                made.and_then(|()| finish(None))
            }
        };
        let finished = made.inspect_err(|_| upper.discard(&staged))?;
        Ok(Staged { name: staged, finished })
    }

    fn stage_file(
        &self,
        upper: &UpperLayer,
        object: &Object,
        staged: &str,
        stat: &Stat,
        wanted: Wanted,
    ) -> Result<(OwnedFd, Content)> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(upper.staging(), staged, flags, Mode::RUSR | Mode::WUSR)?;
        let length = match wanted {
            Wanted::Attributes if self.leaves_data(upper, &file, stat)? => {
                return Ok((file, Content::Lower(object.ino)));
            }
            Wanted::Attributes | Wanted::Everything => stat.size,
            Wanted::Data(length) => length.min(stat.size),
        };
        if length > 0 {
            self.lower.copy_data(object.ino, file.as_fd(), length)?;
            if upper.is_durable() {
                rustix::fs::fdatasync(&file)?;
            }
        }
        Ok((file, Content::Own))
    }

    /// Gives what was staged, and may be `open`, the attributes of the lower node.
    fn finish_staged(
        &self,
        upper: &UpperLayer,
        object: &Object,
        staged: &str,
        open: Option<OwnedFd>,
    ) -> Result<Finished> {
        let stat = self.lower.stat(object.ino)?;
        let file = rustix::fs::openat(upper.staging(), staged, LOOK, Mode::empty())?;
        let fd = open.as_ref().unwrap_or(&file).as_fd();
        let owners = upper.owners();
        let raw = owners.stat(fd)?;
        if raw.uid != stat.uid || raw.gid != stat.gid {
            match owners.set_owner(fd, Some(stat.uid), Some(stat.gid)) {
                // An owner that our user namespace has no number for; the file cannot be anybody's but ours.
                Err(Errno::INVAL | Errno::PERM) => {}
                result => drop(result?),
            }
        }
        let (mut result, mut capable) = (Ok(()), false);
        let origin = self.lower.for_each_xattr_with_origin(object.ino, &mut |name, value| {
            capable |= name == capability::NAME;
            if result.is_ok() && !is_mark(name) && !override_stat::is_override(name) {
                result = copy_xattr(fd, name, value);
            }
        })?;
        result?;
        if object.kind != Kind::Symlink {
            // After the ACL, whose mask these bits are.
            owners.set_permissions(fd, stat.permissions)?;
        }
        if object.kind != Kind::Directory {
            let layer = self.lower.layer_of(object.ino).ok_or(Errno::STALE)?;
            upper.record_number(fd, Recorded { ino: object.ino, layer, shared: stat.nlink > 1 })?;
            // As overlayfs: of several names only one would lead to the copy there.
            if let Some(origin) = origin {
                upper.record_origin(fd, &origin)?;
            }
        }
        backing::restore_times(fd, stat.atime, stat.mtime)?;
        let identity = backing::identity(&raw);
        Ok(Finished { file: Arc::new(file), identity, content: Content::Own, capable })
    }

    /// Makes a finished copy the node's file. The caller holds `namespace` for writing.
    fn put_copy_in_place(&self, upper: &UpperLayer, object: &Arc<Object>, staged: &Staged) -> Result<()> {
        let (places, link) = {
            let state = object.state();
            (state.places.clone(), state.link)
        };
        // The kernel may have forgotten the directory of another name.
        let is_known = |dir: Ino| self.lower.contains(dir) || self.objects.get(dir).is_some();
        let place = places.iter().find(|place| is_known(place.parent)).or(places.first()).cloned();
        let Some(Place { parent, name }) = place.filter(|place| is_plain_name(&place.name)) else {
            // Deleted, but held: it has no name here either. Others that nobody has looked at yet must lead to it.
            if let Some(link) = link.filter(|link| link.covered < link.all) {
                upper.links().add_copy(object.ino, staged.finished.file.as_fd())?;
                upper.set_link(object.ino, Link { copied: true, ..link })?;
                object.state().link = Some(Link { copied: true, ..link });
            }
            rustix::fs::unlinkat(upper.staging(), &staged.name, AtFlags::empty())?;
            self.now_in_upper(object, &staged.finished, false);
            return Ok(());
        };
        let (parent, parent_fd) = self.copy_up_directory(parent).inspect_err(|_| upper.discard(&staged.name))?;
        self.account_before(&parent, parent_fd.as_fd())?;
        if let Some(link) = link {
            let linked = upper
                .links()
                .add_copy(object.ino, staged.finished.file.as_fd())
                .and_then(|()| upper.set_link(object.ino, Link { copied: true, covered: link.covered + 1, ..link }));
            linked.inspect_err(|_| upper.discard(&staged.name))?;
        }
        self.move_copy(upper, &staged.name, (&parent, parent_fd.as_fd()), &name)?;
        if link.is_some()
            && let Some(link) = &mut object.state().link
        {
            link.copied = true;
            link.covered += 1;
        }
        self.now_in_upper(object, &staged.finished, true);
        Ok(())
    }

    /// Moves what was staged to its place in a directory, which shows afterwards what it showed before, if its times can be
    /// set: those of one that can only be appended to cannot.
    fn move_copy(
        &self,
        upper: &UpperLayer,
        staged: &str,
        (parent, parent_fd): (&Object, BorrowedFd<'_>),
        name: &[u8],
    ) -> Result<()> {
        let before = backing::stat(parent_fd)?;
        self.mark_impure(upper, parent, parent_fd).inspect_err(|_| upper.discard(staged))?;
        upper.put_in_free_place(staged, parent_fd, name)?;
        self.account_directory(parent);
        // It is there: whatever fails now, it is to be noted.
        let restored = backing::restore_times(parent_fd, before.atime, before.mtime);
        match restored.and_then(|()| backing::stat(parent_fd)) {
            Ok(after) => self.copy_has_come(parent, &before, &after),
            Err(error) => {
                tracing::debug!(%error, "a directory shows that a copy has come into it");
                parent.state().unmoved = None;
                self.outdated.add(parent.ino);
            }
        }
        Ok(())
    }

    /// Notes that a node has this file in the upper now.
    fn now_in_upper(&self, object: &Object, finished: &Finished, named: bool) {
        if named {
            self.handles.insert(object.ino, Arc::clone(&finished.file));
        }
        object.set_capable(finished.capable);
        let mut state = object.state();
        (state.upper, state.content) = (Some(finished.identity), finished.content);
        if !named {
            state.pinned = Some(Arc::clone(&finished.file));
        }
    }
}

/// From this many bytes on, copying is not done while others wait.
const MUCH: u64 = 4 << 20;

/// A finished copy in the staging folder.
struct Staged {
    name: String,
    finished: Finished,
}

/// A file with the attributes of a lower node.
struct Finished {
    /// Open as a path.
    file: Arc<OwnedFd>,
    identity: Identity,
    content: Content,
    /// It may have file capabilities.
    capable: bool,
}

/// Returns whether an object is in the upper with all that is wanted of it.
fn is_ready(object: &Object, wanted: Wanted) -> bool {
    let state = object.state();
    state.upper.is_some() && (wanted == Wanted::Attributes || state.content == Content::Own)
}

/// Copies an attribute; what the upper's filesystem cannot hold or we may not set is left behind.
fn copy_xattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> Result<()> {
    match backing::set_xattr(fd, name, value, XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        result => result,
    }
}

fn is_mark(name: &[u8]) -> bool {
    marks::shown(name).is_none()
}
