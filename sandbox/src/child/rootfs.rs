//! Builds the root filesystem inside the new mount namespace and moves into it.
//!
//! The root is attached over `/`, everything else is attached below its descriptor, and `pivot_root` swaps the two.
//! Targets are opened in the root by the kernel (`openat2`), and a mount goes onto the opened descriptor, so that what
//! was checked is what is covered.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, mknodat, openat, openat2, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
    unmount,
};
use strata_sys::mount_attributes::{MountAttributes, NODEV, NOEXEC, NOSUID, RDONLY, mount_setattr};

use super::report::{At, Failure, Step};
use super::{Terminal, console, enter_cgroup, hooks};
use crate::plan::mounts::READ_ONLY;
use crate::plan::{CgroupMount, DevicesPlan, MountPlan, MountSource, NodePlan, Plan, Role, TargetPlan};
use crate::rooted;

/// What building the root leaves for later steps.
#[derive(Default)]
struct Built {
    proc: Option<OwnedFd>,
    dev: Option<OwnedFd>,
    devpts: Option<OwnedFd>,
    in_cgroup: bool,
}

/// Builds the root, makes it `/`, and lets go of the host's.
pub(super) fn build(plan: &Plan) -> Result<Terminal, Failure> {
    let rootfs = &plan.rootfs;
    let root = rootfs.root.as_fd();
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).at(Step::PrivateMounts, 0)?;
    move_mount(root, c"", CWD, rootfs.place.as_c_str(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .at(Step::AttachRoot, 0)?;

    let mut built = Built::default();
    for (index, mount) in rootfs.mounts.iter().enumerate() {
        attach(plan, root, mount, index, &mut built)?;
    }
    if let Some(devices) = &rootfs.devices {
        fill_dev(root, devices, &mut built)?;
    }
    let mut terminal = None;
    if let Some(wanted) = rootfs.console {
        let devpts = built.devpts.as_ref().ok_or(Failure::new(Step::NoDevpts, 0, libc::ENODEV))?;
        let dev = built.dev.as_ref().map(AsFd::as_fd);
        terminal = Some(console::create(plan.parent.as_fd(), plan.process.uid, wanted, devpts.as_fd(), dev)?);
    }
    if !built.in_cgroup {
        enter_cgroup(plan)?;
    }
    hooks::when_mounted(plan)?;
    write_sysctls(plan, &built)?;
    mask(&rootfs.masked, root, built.dev.as_ref().map(AsFd::as_fd))?;
    for (index, path) in rootfs.read_only.iter().enumerate() {
        make_read_only(root, path, index)?;
    }
    if rootfs.root_read_only {
        mount_setattr(root, c"", false, &READ_ONLY).at(Step::ReadOnlyRoot, 0)?;
    }
    enter(root)?;
    if let Some(propagation) = &rootfs.root_propagation {
        mount_setattr(root, c"", true, propagation).at(Step::Propagation, 0)?;
    }
    Ok(terminal)
}

/// Changes to the working directory, making it if it is missing.
pub(super) fn enter_working_directory(cwd: &TargetPlan) -> Result<(), Failure> {
    change_directory(|root| open_target(root, cwd))
}

/// Changes to the working directory, which must be there.
pub(super) fn enter_existing_directory(cwd: &TargetPlan) -> Result<(), Failure> {
    change_directory(|root| rooted::open(root, cwd.path.as_c_str(), OFlags::PATH).at(Step::WorkingDirectory, 0))
}

fn change_directory(open: impl FnOnce(BorrowedFd<'_>) -> Result<OwnedFd, Failure>) -> Result<(), Failure> {
    let root = openat(CWD, c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at(Step::WorkingDirectory, 0)?;
    let directory = open(root.as_fd()).map_err(|failure| match failure.errno {
        // A link through /proc/self/fd would lead out of the root; the kernel refused to follow it.
        libc::ELOOP | libc::EXDEV => Failure { step: Step::WorkingDirectoryOutside, ..failure },
        _ => Failure { step: Step::WorkingDirectory, ..failure },
    })?;
    rustix::process::fchdir(&directory).at(Step::WorkingDirectory, 1)?;
    if !strata_sys::process::is_cwd_reachable() {
        return Err(Failure::new(Step::WorkingDirectoryOutside, 0, libc::EXDEV));
    }
    Ok(())
}

/// Swaps the root of the namespace for ours and detaches the host's, which is then reachable by nothing.
fn enter(root: BorrowedFd<'_>) -> Result<(), Failure> {
    rustix::process::fchdir(root).at(Step::PivotRoot, 0)?;
    // Both names are the same directory: the old root ends up stacked on top of the new one.
    rustix::process::pivot_root(c".", c".").at(Step::PivotRoot, 1)?;
    unmount(c".", UnmountFlags::DETACH).at(Step::LeaveHost, 0)?;
    rustix::process::chdir(c"/").at(Step::LeaveHost, 1)
}

fn attach(
    plan: &Plan,
    root: BorrowedFd<'_>,
    mount: &MountPlan,
    index: usize,
    built: &mut Built,
) -> Result<(), Failure> {
    match &mount.source {
        MountSource::Detached { mount: source, .. } => {
            let target = open_target(root, &mount.target).map_err(|failure| failure.about(index))?;
            place(source.as_fd(), target.as_fd()).at(Step::Mount, index)?;
        }
        MountSource::Filesystem { kind, source, data, role } => {
            let fs = new_filesystem(kind, source.as_deref(), data, mount.attributes.set, index)?;
            let target = open_target(root, &mount.target).map_err(|failure| failure.about(index))?;
            place(fs.as_fd(), target.as_fd()).at(Step::Mount, index)?;
            set_propagation(fs.as_fd(), mount, index)?;
            match role {
                Role::Proc => built.proc = Some(fs),
                Role::Dev => built.dev = Some(fs),
                Role::Devpts => built.devpts = Some(fs),
                Role::Other => {}
            }
        }
        MountSource::Cgroups(hierarchies) => {
            if !built.in_cgroup {
                enter_cgroup(plan)?;
                built.in_cgroup = true;
            }
            attach_cgroups(root, mount, hierarchies, index)?;
        }
    }
    Ok(())
}

/// Mounts each hierarchy as the container's cgroup namespace shows it.
fn attach_cgroups(
    root: BorrowedFd<'_>,
    mount: &MountPlan,
    hierarchies: &[CgroupMount],
    index: usize,
) -> Result<(), Failure> {
    let attributes = mount.attributes.set;
    let target = open_target(root, &mount.target).map_err(|failure| failure.about(index))?;
    if let [CgroupMount { folder: None, kind, data, .. }] = hierarchies {
        let fs = new_filesystem(kind, None, data, attributes, index)?;
        return place(fs.as_fd(), target.as_fd()).at(Step::Mount, index);
    }
    let folder = new_filesystem(c"tmpfs", None, CGROUP_FOLDER_DATA, attributes & !RDONLY, index)?;
    place(folder.as_fd(), target.as_fd()).at(Step::Mount, index)?;
    for hierarchy in hierarchies {
        let name = hierarchy.folder.as_deref().unwrap_or(c"unified");
        // A hierarchy that this namespace may not see is left out: it is a view, not a wall.
        let Ok(fs) = new_filesystem(&hierarchy.kind, None, &hierarchy.data, attributes, index) else { continue };
        mkdirat(&folder, name, Mode::from_bits_truncate(0o755)).at(Step::MakeMountTarget, index)?;
        let target = openat(&folder, name, DIRECTORY, Mode::empty()).at(Step::MountTarget, index)?;
        place(fs.as_fd(), target.as_fd()).at(Step::Mount, index)?;
        for (name, target) in &hierarchy.links {
            symlinkat(target, &folder, name).at(Step::MakeMountTarget, index)?;
        }
    }
    let read_only = MountAttributes { set: attributes & RDONLY, ..MountAttributes::default() };
    if read_only.is_empty() {
        return Ok(());
    }
    mount_setattr(folder.as_fd(), c"", false, &read_only).at(Step::MountFlags, index)
}

/// Makes a filesystem and a detached mount of it.
fn new_filesystem<K: AsRef<CStr>, V: AsRef<CStr>>(
    kind: &CStr,
    source: Option<&CStr>,
    data: &[(K, Option<V>)],
    attributes: u64,
    index: usize,
) -> Result<OwnedFd, Failure> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).at(Step::NewFilesystem, index)?;
    // Filesystems without a device take a source only as a label in mountinfo; cgroup v1 takes none.
    if let Some(source) = source {
        fsconfig_set_string(context.as_fd(), c"source", source).at(Step::MountOption, index)?;
    }
    for (key, value) in data {
        let key = key.as_ref();
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), key, value.as_ref()),
            None => fsconfig_set_flag(context.as_fd(), key),
        }
        .at(Step::MountOption, index)?;
    }
    fsconfig_create(context.as_fd()).at(Step::NewFilesystem, index)?;
    let attributes = MountAttrFlags::from_bits_retain(u32::try_from(attributes).unwrap_or(0));
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).at(Step::NewFilesystem, index)
}

/// Moves a detached mount onto an opened target.
fn place(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", target, c"", flags)
}

fn set_propagation(mount: BorrowedFd<'_>, plan: &MountPlan, index: usize) -> Result<(), Failure> {
    let Some((propagation, recursive)) = plan.propagation else { return Ok(()) };
    mount_setattr(mount, c"", recursive, &MountAttributes { propagation, ..MountAttributes::default() })
        .at(Step::Propagation, index)
}

/// Opens a target in the root, making it and its parents where they are missing.
fn open_target(root: BorrowedFd<'_>, target: &TargetPlan) -> Result<OwnedFd, Failure> {
    let mut flags = OFlags::PATH;
    if target.no_symlink {
        flags |= OFlags::NOFOLLOW;
    }
    match rooted::open(root, target.path.as_c_str(), flags) {
        Ok(found) => {
            if target.no_symlink {
                let kind = FileType::from_raw_mode(fstat(&found).at(Step::MountTarget, 0)?.st_mode);
                if kind != FileType::Directory {
                    return Err(Failure::new(Step::MountTargetIsNoDirectory, 0, libc::ENOTDIR));
                }
            }
            Ok(found)
        }
        Err(Errno::NOENT) => make_target(root, target),
        Err(errno) => Err(errno).at(Step::MountTarget, 0),
    }
}

/// Walks down component by component. What exists is entered as the kernel resolves it in the root, what is missing
/// is made in the directory reached so far, never by a path.
fn make_target(root: BorrowedFd<'_>, target: &TargetPlan) -> Result<OwnedFd, Failure> {
    let mut reached: Option<OwnedFd> = None;
    let last = target.components.len().saturating_sub(1);
    for (position, name) in target.components.iter().enumerate() {
        let parent = reached.as_ref().map_or(root, AsFd::as_fd);
        let is_file = target.is_file && position == last;
        let made = if is_file {
            mknodat(parent, name, FileType::RegularFile, Mode::from_bits_truncate(0o644), 0)
        } else {
            mkdirat(parent, name, Mode::from_bits_truncate(0o755))
        };
        let next = match made {
            Ok(()) => openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()),
            // A symlink on the way is resolved in the root only when it stands alone below it; deeper ones would
            // count from the wrong directory, so their whole path is opened again from the root.
            Err(Errno::EXIST) => open_prefix(root, target, position),
            Err(errno) => Err(errno),
        };
        reached = Some(next.at(Step::MakeMountTarget, 0)?);
    }
    match reached {
        Some(fd) => Ok(fd),
        None => rooted::open(root, c".", OFlags::PATH).at(Step::MountTarget, 0),
    }
}

/// Opens the first `position + 1` components from the root, in a buffer of the stack.
fn open_prefix(root: BorrowedFd<'_>, target: &TargetPlan, position: usize) -> Result<OwnedFd, Errno> {
    let length = target.components[..=position].iter().map(|name| name.as_bytes().len() + 1).sum::<usize>() - 1;
    let mut buffer = [0_u8; 4096];
    let path = target.path.to_bytes().get(..length).ok_or(Errno::INVAL)?;
    buffer.get_mut(..length).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(path);
    let path = CStr::from_bytes_until_nul(&buffer).map_err(|_| Errno::NAMETOOLONG)?;
    rooted::open(root, path, OFlags::PATH)
}

/// Makes nodes and links below `/dev`.
fn fill_dev(root: BorrowedFd<'_>, devices: &DevicesPlan, built: &mut Built) -> Result<(), Failure> {
    if built.dev.is_none() {
        // The image's own folder; a link there could lead anywhere.
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match mkdirat(root, c"dev", Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).at(Step::DeviceDirectory, 0),
        }
        let dev = openat2(root, c"dev", DIRECTORY, Mode::empty(), resolve).at(Step::DeviceDirectory, 1)?;
        built.dev = Some(dev);
    }
    let Some(dev) = built.dev.as_ref().map(AsFd::as_fd) else { return Ok(()) };
    for (index, node) in devices.nodes.iter().enumerate() {
        make_node(root, dev, node, index)?;
    }
    for (index, (name, target)) in devices.links.iter().enumerate() {
        match symlinkat(target, dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).at(Step::DeviceLink, index),
        }
    }
    Ok(())
}

fn make_node(root: BorrowedFd<'_>, dev: BorrowedFd<'_>, node: &NodePlan, index: usize) -> Result<(), Failure> {
    let base = if node.in_dev { dev } else { root };
    if let Some(bind) = &node.bind {
        let target = open_target(base, &node.target).at_node(index)?;
        return place(bind.as_fd(), target.as_fd()).at(Step::Node, index);
    }
    let Some((name, parents)) = node.target.components.split_last() else {
        return Err(Failure::new(Step::Node, index, libc::EINVAL));
    };
    let mut folder: Option<OwnedFd> = None;
    for parent in parents {
        let at = folder.as_ref().map_or(base, AsFd::as_fd);
        match mkdirat(at, parent, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).at(Step::Node, index),
        }
        folder = Some(openat(at, parent, DIRECTORY, Mode::empty()).at(Step::Node, index)?);
    }
    let at = folder.as_ref().map_or(base, AsFd::as_fd);
    match mknodat(at, name, node.kind, Mode::from_bits_truncate(node.mode), node.device) {
        Ok(()) => {}
        // An image may bring its own; it has to be the same device.
        Err(Errno::EXIST) => return check_node(at, name, node, index),
        Err(errno) => return Err(errno).at(Step::Node, index),
    }
    if (node.uid, node.gid) != (0, 0) {
        let (uid, gid) = (rustix::fs::Uid::from_raw(node.uid), rustix::fs::Gid::from_raw(node.gid));
        rustix::fs::chownat(at, name, Some(uid), Some(gid), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .at(Step::Node, index)?;
    }
    Ok(())
}

fn check_node(at: BorrowedFd<'_>, name: &CStr, node: &NodePlan, index: usize) -> Result<(), Failure> {
    let found =
        openat(at, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).at(Step::Node, index)?;
    let stat = fstat(&found).at(Step::Node, index)?;
    if FileType::from_raw_mode(stat.st_mode) == node.kind
        && (node.kind == FileType::Fifo || stat.st_rdev == node.device)
    {
        Ok(())
    } else {
        Err(Failure::new(Step::Node, index, libc::EEXIST))
    }
}

/// Writes through the procfs that this very child mounted, so that the value cannot land elsewhere.
fn write_sysctls(plan: &Plan, built: &Built) -> Result<(), Failure> {
    if plan.rootfs.sysctls.is_empty() {
        return Ok(());
    }
    let shown = built.proc.as_ref().ok_or(Failure::new(Step::NoProc, 0, libc::ENODEV))?;
    // The container's may show processes alone; this one nobody ever sees. Who may not make one has the container's.
    let own = new_filesystem::<&CStr, &CStr>(c"proc", None, &[], NOSUID | NODEV | NOEXEC, 0);
    let proc = own.as_ref().unwrap_or(shown);
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    for (index, (path, value)) in plan.rootfs.sysctls.iter().enumerate() {
        let file = openat2(proc, path.as_c_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)
            .at(Step::Sysctl, index)?;
        rustix::io::write(&file, value).at(Step::Sysctl, index)?;
    }
    Ok(())
}

/// Covers paths: files by the null device, folders by one empty, read-only tmpfs.
fn mask(paths: &[CString], root: BorrowedFd<'_>, dev: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    let mut empty: Option<OwnedFd> = None;
    for (index, path) in paths.iter().enumerate() {
        let target = match rooted::open(root, path.as_c_str(), OFlags::PATH) {
            Ok(target) => target,
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(errno) => return Err(errno).at(Step::Mask, index),
        };
        let is_directory =
            FileType::from_raw_mode(fstat(&target).at(Step::Mask, index)?.st_mode) == FileType::Directory;
        if !is_directory {
            let null = null_device(dev).map_err(|failure| failure.about(index))?;
            let cover = clone_mount(null.as_fd(), false).at(Step::MaskSource, index)?;
            place(cover.as_fd(), target.as_fd()).at(Step::Mask, index)?;
            continue;
        }
        let cover = match &empty {
            // Once attached, one and the same empty folder can be cloned for all.
            Some(first) => clone_mount(first.as_fd(), false).at(Step::MaskSource, index)?,
            None => {
                let attributes = RDONLY | NOSUID | NODEV | NOEXEC;
                new_filesystem(c"tmpfs", None, MASK_DATA, attributes, index)?
            }
        };
        place(cover.as_fd(), target.as_fd()).at(Step::Mask, index)?;
        empty.get_or_insert(cover);
    }
    Ok(())
}

/// Opens the null device, and looks at what was opened: an image could have put something else in its place.
fn null_device(dev: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = match dev {
        Some(dev) => openat(dev, c"null", flags, Mode::empty()),
        // Still the host's tree: the switch comes later.
        None => openat(CWD, c"/dev/null", flags, Mode::empty()),
    }
    .at(Step::MaskSource, 0)?;
    let stat = fstat(&null).at(Step::MaskSource, 0)?;
    let is_null =
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == rustix::fs::makedev(1, 3);
    if is_null { Ok(null) } else { Err(Failure::new(Step::MaskSource, 0, libc::ENODEV)) }
}

fn clone_mount(of: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(of, c"", flags)
}

/// Covers a path by itself, read-only with everything below.
fn make_read_only(root: BorrowedFd<'_>, path: &CStr, index: usize) -> Result<(), Failure> {
    let target = match rooted::open(root, path, OFlags::PATH) {
        Ok(target) => target,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(errno) => return Err(errno).at(Step::ReadOnly, index),
    };
    let cover = clone_mount(target.as_fd(), true).at(Step::ReadOnly, index)?;
    mount_setattr(cover.as_fd(), c"", true, &READ_ONLY).at(Step::ReadOnly, index)?;
    place(cover.as_fd(), target.as_fd()).at(Step::ReadOnly, index)
}

impl Failure {
    /// Says which item it was about, where the helper did not know.
    fn about(self, index: usize) -> Self {
        Self::new(self.step, index, self.errno)
    }
}

/// Names the device whose target could not be opened.
trait AtNode<T> {
    fn at_node(self, index: usize) -> Result<T, Failure>;
}

impl<T> AtNode<T> for Result<T, Failure> {
    fn at_node(self, index: usize) -> Result<T, Failure> {
        self.map_err(|failure| Failure::new(Step::Node, index, failure.errno))
    }
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// An empty folder needs one inode and no memory.
const MASK_DATA: &[(&CStr, Option<&CStr>)] = &[(c"nr_inodes", Some(c"1")), (c"mode", Some(c"0555"))];
const CGROUP_FOLDER_DATA: &[(&CStr, Option<&CStr>)] = &[(c"mode", Some(c"0755"))];
