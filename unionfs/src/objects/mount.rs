//! Mounting a table where nobody sees it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};
use strata_layer::index::{Extent, Index};

use super::ObjectsUnavailable;
use super::handle::HandleForm;
use super::readahead::ReadAhead;
use super::table::Source;

/// Mounts `table` over the tar of `source` and compares a file with the tar. Returns the root of the mount and how to
/// name its files.
pub(super) fn mount_checked(table: &File, source: &Source) -> Result<(OwnedFd, HandleForm), ObjectsUnavailable> {
    let probe = Probe::choose(&source.index);
    let root = mount(table, &source.tar)?;
    let form = HandleForm::learn(&root)?;
    if let Some(probe) = probe {
        probe.compare(&root, &form, &source.tar)?;
    }
    Ok((root, form))
}

/// Mounts `table` with `tar` as its one device and returns the root directory.
///
/// The root directory is all that keeps the mount: the descriptor of the mount itself is closed, which takes the mount
/// out of its anonymous namespace.
fn mount(table: &File, tar: &File) -> Result<OwnedFd, ObjectsUnavailable> {
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| match error {
        Errno::NODEV => ObjectsUnavailable::NoErofs,
        error => ObjectsUnavailable::mount("fsopen")(error),
    })?;
    let context = context.as_fd();
    let set = |key: &'static str, file: &File| {
        // By descriptor: a path could have been replaced since, and one of more than 255 bytes is refused.
        fsconfig_set_string(context, key, format!("/proc/self/fd/{}", file.as_raw_fd()))
            .map_err(ObjectsUnavailable::mount(key))
    };
    set("source", table)?;
    // Exactly one device: the kernel mounts a table that names a device without any being given, and then every read
    // returns something else. Reaching the next step means that this one was accepted.
    set("device", tar)?;
    fsconfig_set_flag(context, "ro").map_err(ObjectsUnavailable::mount("ro"))?;
    // Not `directio`: what the tar's own pages hold outlives this mount, which ends with its last container.
    let read_ahead = ReadAhead::before_mount();
    fsconfig_create(context).map_err(|error| match error {
        Errno::NOTBLK => ObjectsUnavailable::NotBackedByFile,
        error => ObjectsUnavailable::mount("create the superblock")(error),
    })?;
    read_ahead.raise();
    let attributes =
        MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount =
        fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(ObjectsUnavailable::mount("fsmount"))?;
    rustix::fs::openat(&mount, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(ObjectsUnavailable::mount("open the root"))
}

/// A piece of the tar that a correct mount shows as the beginning of a file.
#[derive(Debug)]
struct Probe {
    nid: u64,
    extent: Extent,
}

impl Probe {
    /// Chooses a file whose data does not begin at a multiple of the page size, where a wrong block size would show, or
    /// any file if there is none. `None` for a layer without objects.
    fn choose(index: &Index) -> Option<Probe> {
        let mut fallback = None;
        for node in index.nodes() {
            let Some(object) = index.object(node) else { continue };
            let Some(extent) = index.extents(node).next().filter(|extent| extent.offset == 0) else { continue };
            let probe = Probe { nid: object.nid, extent };
            if !extent.source.is_multiple_of(PROBE_LENGTH) {
                return Some(probe);
            }
            fallback.get_or_insert(probe);
        }
        fallback
    }

    /// Compares the file with the tar.
    fn compare(&self, root: &OwnedFd, form: &HandleForm, tar: &File) -> Result<(), ObjectsUnavailable> {
        let read = || -> io::Result<bool> {
            let length = usize::try_from(self.extent.length.min(PROBE_LENGTH)).map_err(io::Error::other)?;
            let (mut shown, mut expected) = (vec![0; length], vec![0; length]);
            File::from(form.open(root, self.nid)?).read_exact_at(&mut shown, 0)?;
            tar.read_exact_at(&mut expected, self.extent.source)?;
            Ok(shown == expected)
        };
        match read() {
            Ok(true) => Ok(()),
            Ok(false) => Err(ObjectsUnavailable::WrongContent { nid: self.nid }),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Err(ObjectsUnavailable::NotPermitted),
            Err(source) => Err(ObjectsUnavailable::Probe { nid: self.nid, source }),
        }
    }
}

/// Bytes compared, and the alignment looked for. Not the page size of every machine, but below it.
const PROBE_LENGTH: u64 = 4096;
