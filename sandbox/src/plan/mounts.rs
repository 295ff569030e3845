//! The part of the plan that builds the root filesystem.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDeviceType, LinuxIdMapping, LinuxNamespaceType, Mount, Spec};
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};
use strata_sys::mount_attributes::{self as attributes, MountAttributes, mount_setattr};

use super::options::{Bind, MountOptions};
use super::{
    CgroupMount, ConsolePlan, DevicesPlan, MountPlan, MountSource, Namespaces, NodePlan, Role, RootfsPlan, target,
};
use super::{copy_up, idmap, labels};
use crate::cgroup::{Hierarchies, Version};
use crate::{Root, SpawnError, Stdio, WindowSize, userns};

impl RootfsPlan {
    /// Plans the root, its mounts and its devices.
    pub(crate) fn new(
        spec: &Spec,
        root: OwnedFd,
        root_is_folder: bool,
        stdio: &Stdio,
        namespaces: &Namespaces,
    ) -> Result<Self, SpawnError> {
        let linux = spec.linux().as_ref();
        let new_user = namespaces.is_private(LinuxNamespaceType::User);
        let gid_mappings = linux.and_then(|linux| linux.gid_mappings().as_deref()).unwrap_or_default();
        let view = View {
            namespaces,
            restricted: new_user || !userns::is_initial(),
            gid_mappings,
            root: root.as_fd(),
            root_is_folder,
            label: labels::mount_label(spec)?,
        };
        let mut mounts = Vec::new();
        for mount in spec.mounts().iter().flatten() {
            refuse_cover_of_proc(mount)?;
            mounts.push(view.mount(mount)?);
        }
        let dev_is_bound = spec.mounts().iter().flatten().any(|mount| {
            target(mount.destination(), false).is_ok_and(|target| target.path.as_c_str() == c"dev")
                && mount.typ().as_deref() != Some("tmpfs")
        });
        let devices = if dev_is_bound { None } else { Some(view.devices(spec)?) };
        let paths = |list: Option<&Vec<String>>| -> Result<Vec<CString>, SpawnError> {
            list.into_iter().flatten().map(|path| Ok(target(Path::new(path), false)?.path)).collect()
        };
        let root_propagation = match linux.and_then(|linux| linux.rootfs_propagation().as_deref()) {
            None | Some("" | "private" | "rprivate") => None,
            Some(other) => {
                let parsed = MountOptions::parse(&[other])?;
                let (propagation, _) =
                    parsed.propagation.ok_or_else(|| SpawnError::Invalid(format!("rootfsPropagation {other:?}")))?;
                Some(MountAttributes { propagation, ..MountAttributes::default() })
            }
        };
        let console = match stdio {
            Stdio::Terminal { size } => Some(ConsolePlan { size: size.or_else(|| console_size(spec)) }),
            Stdio::Inherit | Stdio::Fds { .. } => None,
        };
        Ok(Self {
            root,
            root_read_only: spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true)),
            root_propagation,
            mounts,
            devices,
            masked: paths(linux.and_then(|linux| linux.masked_paths().as_ref()))?,
            read_only: paths(linux.and_then(|linux| linux.readonly_paths().as_ref()))?,
            sysctls: sysctls(spec, namespaces)?,
            place: c"/".to_owned(),
            console,
        })
    }
}

/// The size of the terminal in the spec (`process.consoleSize`).
pub(crate) fn console_size(spec: &Spec) -> Option<WindowSize> {
    let size = spec.process().as_ref()?.console_size()?;
    let number = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
    Some(WindowSize { rows: number(size.height()), columns: number(size.width()) })
}

/// Opens the root as a detached mount of its own, private to its future namespace.
pub(crate) fn open_root(root: Root) -> Result<(OwnedFd, bool), SpawnError> {
    match root {
        Root::Mount(mount) => Ok((mount, false)),
        Root::Path(path) => {
            let mount = detach(&path, true).map_err(|source| SpawnError::Root { path: path.clone(), source })?;
            Ok((mount, true))
        }
    }
}

/// Clones what is mounted at `path` into a detached, private mount.
fn detach(path: &Path, recursive: bool) -> std::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let mount = open_tree(CWD, path, flags)?;
    let private =
        MountAttributes { propagation: u64::from(MountPropagationFlags::PRIVATE.bits()), ..MountAttributes::default() };
    mount_setattr(mount.as_fd(), c"", true, &private)?;
    Ok(mount)
}

/// The id maps of one mount.
struct Maps<'a> {
    uids: &'a [LinuxIdMapping],
    gids: &'a [LinuxIdMapping],
}

impl<'a> Maps<'a> {
    fn of(mount: &'a Mount) -> Result<Option<Self>, SpawnError> {
        let uids = mount.uid_mappings().as_deref().unwrap_or_default();
        let gids = mount.gid_mappings().as_deref().unwrap_or_default();
        match (uids.is_empty(), gids.is_empty()) {
            (true, true) => Ok(None),
            (false, false) => Ok(Some(Self { uids, gids })),
            _ => Err(SpawnError::Invalid(format!(
                "uidMappings and gidMappings of the mount on {} belong together",
                mount.destination().display()
            ))),
        }
    }
}

/// What decides how a mount can be made here.
struct View<'a> {
    namespaces: &'a Namespaces,
    /// The child will not have the privileges of the initial user namespace.
    restricted: bool,
    /// Of the user namespace that is made, if one is.
    gid_mappings: &'a [LinuxIdMapping],
    /// The root that is mounted into.
    root: BorrowedFd<'a>,
    /// Whether its owners are those of the host, to be mapped later.
    root_is_folder: bool,
    /// The label that a security module gives to new filesystems.
    label: Option<CString>,
}

impl View<'_> {
    fn mount(&self, mount: &Mount) -> Result<MountPlan, SpawnError> {
        let options = MountOptions::parse(mount.options().as_deref().unwrap_or_default())?;
        let kind = mount.typ().as_deref().unwrap_or_default();
        let bind = options.bind.or((kind == "bind").then_some(Bind::One)).or(kind.is_empty().then_some(Bind::One));
        if let Some(bind) = bind {
            let source = mount.source().as_ref().ok_or_else(|| {
                SpawnError::Invalid(format!("bind mount on {} without a source", mount.destination().display()))
            })?;
            return Self::bind(source, mount.destination(), bind, options, Maps::of(mount)?);
        }
        if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() || options.idmap.is_some() {
            let place = mount.destination().display();
            return Err(SpawnError::Unsupported(format!(
                "mappings of the {kind} mount on {place}: only of bind mounts"
            )));
        }
        match kind {
            "cgroup" | "cgroup2" => self.cgroups(mount, &options),
            "proc" if self.cannot_make(LinuxNamespaceType::Pid) => Self::host(mount, "/proc", options),
            "sysfs" if self.cannot_make(LinuxNamespaceType::Network) => Self::host(mount, "/sys", options),
            "mqueue" if self.cannot_make(LinuxNamespaceType::Ipc) => Self::host(mount, "/dev/mqueue", options),
            _ => self.filesystem(mount, kind, options),
        }
    }

    /// A filesystem that shows a namespace can only be mounted by who owns the namespace, and the caller's mount shows the
    /// caller's. Whether one that is joined can be mounted the kernel knows.
    fn cannot_make(&self, kind: LinuxNamespaceType) -> bool {
        self.restricted && !self.namespaces.is_private(kind)
    }

    fn host(mount: &Mount, source: &str, options: MountOptions) -> Result<MountPlan, SpawnError> {
        // What is below the host's /sys cannot be uncovered by a less privileged namespace: take it along, and make
        // the flags reach it.
        let recursive = options.attributes;
        let options = MountOptions { recursive, propagation: None, data: Vec::new(), ..options };
        Self::bind(&PathBuf::from(source), mount.destination(), Bind::Recursive, options, None)
    }

    fn bind(
        source: &Path,
        destination: &Path,
        bind: Bind,
        options: MountOptions,
        maps: Option<Maps<'_>>,
    ) -> Result<MountPlan, SpawnError> {
        let fail = |error: std::io::Error| SpawnError::BindSource { path: source.to_owned(), source: error };
        let recursive = bind == Bind::Recursive;
        let mount = match detach(source, recursive) {
            // Mounts that came from a more privileged namespace cannot be left out, only taken along.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !recursive => detach(source, true),
            result => result,
        }
        .map_err(fail)?;
        for (attributes, recursive) in [(options.attributes, false), (options.recursive, true)] {
            if !attributes.is_empty() {
                mount_setattr(mount.as_fd(), c"", recursive, &attributes).map_err(fail)?;
            }
        }
        if let Some((propagation, recursive)) = options.propagation {
            let attributes = MountAttributes { propagation, ..MountAttributes::default() };
            mount_setattr(mount.as_fd(), c"", recursive, &attributes).map_err(fail)?;
        }
        let mut idmap = options.idmap;
        if let Some(maps) = maps {
            let recursive = idmap.take().unwrap_or(false);
            idmap::map_mount(mount.as_fd(), recursive, maps.uids, maps.gids)
                .map_err(|error| SpawnError::MountMap { path: destination.to_owned(), source: error })?;
        }
        let kind = statx(&mount, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE).map_err(|error| fail(error.into()))?;
        let is_directory = FileType::from_raw_mode(kind.stx_mode.into()) == FileType::Directory;
        Ok(MountPlan {
            target: target(destination, !is_directory)?,
            source: MountSource::Detached { mount, idmap },
            attributes: MountAttributes::default(),
            propagation: None,
        })
    }

    fn filesystem(&self, mount: &Mount, kind: &str, options: MountOptions) -> Result<MountPlan, SpawnError> {
        let mut data = options.data;
        let role = match (kind, target(mount.destination(), false)?.path.to_bytes()) {
            ("proc", b"proc") => Role::Proc,
            ("tmpfs", b"dev") => Role::Dev,
            ("devpts", b"dev/pts") => Role::Devpts,
            _ => Role::Other,
        };
        // The group of terminals has to exist in the user namespace.
        if kind == "devpts" && !self.gid_exists(TTY_GROUP) {
            data.retain(|(key, _)| key.as_c_str() != c"gid");
        }
        let text = |text: &[u8]| {
            CString::new(text).map_err(|_| SpawnError::Invalid(format!("mount on {:?}", mount.destination())))
        };
        let source = mount.source().as_ref().map(|source| text(source.as_os_str().as_encoded_bytes())).transpose()?;
        if let Some(label) = self.label.as_ref().filter(|_| !matches!(kind, "proc" | "sysfs" | "mqueue")) {
            data.push((c"context".to_owned(), Some(label.clone())));
        }
        let mut all = options.attributes;
        all.set |= options.recursive.set;
        if options.copy_up && kind == "tmpfs" {
            return self.copied_up(mount.destination(), &data, all, options.propagation);
        }
        Ok(MountPlan {
            target: target(mount.destination(), false)?,
            source: MountSource::Filesystem { kind: text(kind.as_bytes())?, source, data, role },
            attributes: all,
            propagation: options.propagation,
        })
    }

    /// A memory filesystem that is filled before there is a child.
    fn copied_up(
        &self,
        destination: &Path,
        data: &[(CString, Option<CString>)],
        attributes: MountAttributes,
        propagation: Option<(u64, bool)>,
    ) -> Result<MountPlan, SpawnError> {
        let target = target(destination, false)?;
        let make = || -> std::io::Result<OwnedFd> {
            let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            for (key, value) in data {
                match value {
                    Some(value) => fsconfig_set_string(context.as_fd(), key, value)?,
                    None => fsconfig_set_flag(context.as_fd(), key)?,
                }
            }
            fsconfig_create(context.as_fd())?;
            let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
            copy_up::fill(mount.as_fd(), self.root, &target.path)?;
            mount_setattr(mount.as_fd(), c"", false, &attributes)?;
            Ok(mount)
        };
        let mount = make().map_err(|source| SpawnError::Setup {
            what: format!("copy {} into a memory filesystem (tmpcopyup)", destination.display()),
            source,
        })?;
        // Owners are copied as they are on the disk, and mapped as those of the root are.
        let idmap = (self.root_is_folder && self.namespaces.is_private(LinuxNamespaceType::User)).then_some(false);
        let source = MountSource::Detached { mount, idmap };
        Ok(MountPlan { target, source, attributes: MountAttributes::default(), propagation })
    }

    fn gid_exists(&self, gid: u32) -> bool {
        if self.namespaces.has_new(LinuxNamespaceType::User) {
            let covers = |map: &LinuxIdMapping| {
                gid >= map.container_id() && u64::from(gid) < u64::from(map.container_id()) + u64::from(map.size())
            };
            return self.gid_mappings.iter().any(covers);
        }
        // Of a namespace that is joined the maps are not ours to know.
        self.namespaces.joined_user().is_none() && (userns::is_initial() || userns::maps_gid(gid))
    }

    fn cgroups(&self, mount: &Mount, options: &MountOptions) -> Result<MountPlan, SpawnError> {
        let hierarchies = Hierarchies::detect()?;
        if !self.namespaces.is_private(LinuxNamespaceType::Cgroup) {
            let options = MountOptions { recursive: options.attributes, ..options.clone() };
            return Self::bind(Path::new("/sys/fs/cgroup"), mount.destination(), Bind::Recursive, options, None);
        }
        let text = |text: &str| CString::new(text).expect("names from mountinfo have no NUL");
        let mut mounts = Vec::new();
        let all: Vec<_> = hierarchies.iter().collect();
        for hierarchy in &all {
            let folder = hierarchy.folder().and_then(Path::to_str);
            mounts.push(match hierarchy.version {
                Version::V2 => CgroupMount {
                    // Alone it is the whole of /sys/fs/cgroup.
                    folder: (all.len() > 1).then(|| text(folder.unwrap_or("unified"))),
                    kind: c"cgroup2".to_owned(),
                    data: Vec::new(),
                    links: Vec::new(),
                },
                Version::V1 => {
                    let data = hierarchy.controllers.iter().map(|controller| match controller.split_once('=') {
                        Some((key, value)) => (text(key), Some(text(value))),
                        None => (text(controller), None),
                    });
                    let data = if hierarchy.controllers[0].starts_with("name=") {
                        [(c"none".to_owned(), None)].into_iter().chain(data).collect()
                    } else {
                        data.collect()
                    };
                    let folder = folder.unwrap_or(&hierarchy.controllers[0]);
                    let links =
                        hierarchy.controllers.iter().filter(|name| hierarchy.controllers.len() > 1 && *name != folder);
                    CgroupMount {
                        folder: Some(text(folder)),
                        kind: c"cgroup".to_owned(),
                        data,
                        links: links.map(|name| (text(name), text(folder))).collect(),
                    }
                }
            });
        }
        Ok(MountPlan {
            target: target(mount.destination(), false)?,
            source: MountSource::Cgroups(mounts),
            attributes: options.attributes,
            propagation: None,
        })
    }

    fn devices(&self, spec: &Spec) -> Result<DevicesPlan, SpawnError> {
        let mut nodes = Vec::new();
        for (name, major, minor) in DEFAULT_DEVICES {
            nodes.push(self.node(Path::new(name), FileType::CharacterDevice, (major, minor), 0o666, (0, 0))?);
        }
        let listed = spec.linux().as_ref().and_then(|linux| linux.devices().as_ref());
        for device in listed.into_iter().flatten() {
            if DEFAULT_DEVICES.iter().any(|(name, ..)| device.path() == Path::new(name)) {
                continue;
            }
            let kind = match device.typ() {
                LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
                LinuxDeviceType::B => FileType::BlockDevice,
                LinuxDeviceType::P => FileType::Fifo,
                LinuxDeviceType::A => return Err(SpawnError::Invalid("device of type \"a\"".into())),
            };
            let number =
                |number: i64| u32::try_from(number).map_err(|_| SpawnError::Invalid(format!("device number {number}")));
            let numbers = (number(device.major())?, number(device.minor())?);
            let owner = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
            nodes.push(self.node(device.path(), kind, numbers, device.file_mode().unwrap_or(0o666), owner)?);
        }
        let mut links: Vec<(CString, CString)> = [
            (c"fd", c"/proc/self/fd"),
            (c"stdin", c"/proc/self/fd/0"),
            (c"stdout", c"/proc/self/fd/1"),
            (c"stderr", c"/proc/self/fd/2"),
            (c"ptmx", c"pts/ptmx"),
        ]
        .map(|(name, target)| (name.to_owned(), target.to_owned()))
        .into();
        if Path::new("/proc/kcore").exists() {
            links.push((c"core".to_owned(), c"/proc/kcore".to_owned()));
        }
        Ok(DevicesPlan { nodes, links })
    }

    fn node(
        &self,
        path: &Path,
        kind: FileType,
        (major, minor): (u32, u32),
        mode: u32,
        (uid, gid): (u32, u32),
    ) -> Result<NodePlan, SpawnError> {
        // Only a FIFO can be made without the initial namespace's privileges.
        let bind = if self.restricted && kind != FileType::Fifo {
            let fail = |source| SpawnError::BindSource { path: path.to_owned(), source };
            let mount = detach(path, false).map_err(fail)?;
            let found =
                statx(&mount, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE).map_err(|error| fail(error.into()))?;
            let same = FileType::from_raw_mode(found.stx_mode.into()) == kind
                && (found.stx_rdev_major, found.stx_rdev_minor) == (major, minor);
            if !same {
                return Err(fail(std::io::Error::from_raw_os_error(libc::ENODEV)));
            }
            Some(mount)
        } else {
            None
        };
        let (relative, in_dev) = match path.strip_prefix("/dev") {
            Ok(relative) => (relative, true),
            Err(_) => (path, false),
        };
        let device = rustix::fs::makedev(major, minor);
        Ok(NodePlan { target: target(relative, true)?, in_dev, kind, device, mode, uid, gid, bind })
    }
}

/// Whoever may put something over `/proc` or into it decides what programs, and masks, see there. An image may declare
/// volumes: they must not be that somebody.
fn refuse_cover_of_proc(mount: &Mount) -> Result<(), SpawnError> {
    let path = target(mount.destination(), false)?.path;
    let path = path.to_string_lossy();
    let covers = match path.strip_prefix("proc") {
        Some("") => mount.typ().as_deref() != Some("proc") && !is_procfs(mount.source().as_deref()),
        Some(below) => below.starts_with('/') && !MAY_COVER.contains(&below),
        None => false,
    };
    if covers {
        return Err(SpawnError::Invalid(format!("\"/{path}\" cannot be mounted because it is inside /proc")));
    }
    Ok(())
}

fn is_procfs(source: Option<&Path>) -> bool {
    const PROC_MAGIC: u64 = 0x9fa0;
    let found = source.and_then(|source| rustix::fs::statfs(source).ok());
    found.is_some_and(|found| u64::try_from(found.f_type).is_ok_and(|kind| kind == PROC_MAGIC))
}

/// Checks that each sysctl belongs to a namespace of the container's own: the others would change the host.
fn sysctls(spec: &Spec, namespaces: &Namespaces) -> Result<Vec<(CString, Vec<u8>)>, SpawnError> {
    let listed = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref());
    let mut checked = Vec::new();
    for (name, value) in listed.into_iter().flatten() {
        let ipc = ["kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shm_rmid_forced"];
        let needed = if name.starts_with("net.") {
            LinuxNamespaceType::Network
        } else if name.starts_with("fs.mqueue.") || name.starts_with("kernel.shm") || ipc.contains(&name.as_str()) {
            LinuxNamespaceType::Ipc
        } else if matches!(name.as_str(), "kernel.domainname" | "kernel.hostname") {
            LinuxNamespaceType::Uts
        } else {
            return Err(SpawnError::Invalid(format!("sysctl {name:?} is not in a separate kernel namespace")));
        };
        if !namespaces.is_private(needed) {
            return Err(SpawnError::Invalid(format!(
                "sysctl {name:?} needs a {needed} namespace of the container's own"
            )));
        }
        // A name with slashes keeps dots inside a part, such as an interface `eth0.100`.
        let path = if name.contains('/') { name.clone() } else { name.replace('.', "/") };
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(SpawnError::Invalid(format!("sysctl {name:?}")));
        }
        let path = CString::new(format!("sys/{path}")).map_err(|_| SpawnError::Invalid(format!("sysctl {name:?}")))?;
        checked.push((path, value.clone().into_bytes()));
    }
    Ok(checked)
}

/// Every container has these.
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Files below `/proc` that programs such as lxcfs replace by ones that know the container's limits.
const MAY_COVER: [&str; 10] = [
    "/cpuinfo",
    "/diskstats",
    "/loadavg",
    "/meminfo",
    "/net/dev",
    "/slabinfo",
    "/stat",
    "/swaps",
    "/sys/kernel/ns_last_pid",
    "/uptime",
];

/// `tty` on every distribution.
const TTY_GROUP: u32 = 5;

/// What masks and read-only paths need of a mount.
pub(crate) const READ_ONLY: MountAttributes = MountAttributes { set: attributes::RDONLY, clear: 0, propagation: 0 };
