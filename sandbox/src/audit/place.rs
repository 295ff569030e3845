//! Where a path leads in the caller's root, and whether the policy allows what is done there.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{OFlags, fstat};

use super::report::{Access, Finding};
use crate::policy::{Files, Policy};
use crate::rooted;

/// What the policy refuses of an access.
pub(super) fn refused(policy: &Policy, root: BorrowedFd<'_>, path: PathBuf, access: Access) -> Option<Finding> {
    let files = policy.files.as_ref()?;
    let (place, access) = match access {
        Access::Read | Access::Execute | Access::Write => (resolve(root, &path)?, access),
        Access::WriteOrMake => match resolve(root, &path) {
            Some(place) => (place, Access::Write),
            None => (parent(root, &path)?, Access::Name),
        },
        // What is allowed or not is the change of the folder.
        Access::Name => (parent(root, &path)?, access),
    };
    (!allows(files, root, &place, access)).then_some(Finding::File { path: place, access })
}

/// The place that a path leads to, if there is something.
fn resolve(root: BorrowedFd<'_>, path: &Path) -> Option<PathBuf> {
    // Symbolic links of the kernel mean something to the caller alone; all of procfs is allowed.
    let climbs = path.components().any(|component| component == Component::ParentDir);
    if !climbs && (path.starts_with("/proc") || path.starts_with("/dev")) {
        return Some(path.to_owned());
    }
    place_of(rooted::open(root, path, OFlags::PATH).ok()?.as_fd())
}

fn place_of(found: BorrowedFd<'_>) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()
}

fn parent(root: BorrowedFd<'_>, path: &Path) -> Option<PathBuf> {
    resolve(root, path.parent()?)
}

/// As landlock decides with the rules that are made of a policy.
fn allows(files: &Files, root: BorrowedFd<'_>, place: &Path, access: Access) -> bool {
    let beneath = |list: &[PathBuf]| {
        list.iter()
            .any(|allowed| place.starts_with(allowed) || resolve(root, allowed).is_some_and(|it| place.starts_with(it)))
    };
    let (in_proc, in_dev) = (place.starts_with("/proc"), place.starts_with("/dev"));
    match access {
        Access::Read => in_proc || in_dev || beneath(&files.read) || beneath(&files.write) || beneath(&files.execute),
        Access::Write | Access::WriteOrMake => in_proc || in_dev || beneath(&files.write),
        Access::Name => in_dev || beneath(&files.write),
        Access::Execute => beneath(&files.execute),
    }
}

/// The programs that the kernel executes in the place of the one at `path`: of a script, of an ELF file.
pub(super) fn interpreters(root: BorrowedFd<'_>, path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut path = path.to_owned();
    for _ in 0..SCRIPTS_IN_SCRIPTS {
        let Some(interpreter) = interpreter(root, &path) else { break };
        found.push(interpreter.clone());
        path = interpreter;
    }
    found
}

fn interpreter(root: BorrowedFd<'_>, path: &Path) -> Option<PathBuf> {
    let found = rooted::find_regular_file(root, path).ok()?;
    // Files of the kernel can have effects when they are opened, and wait. None of them is a program.
    let of_kernel = ["/proc", "/sys", "/dev"];
    let place = place_of(found.as_fd())?;
    if fstat(&found).ok()?.st_mode & 0o111 == 0 || of_kernel.iter().any(|folder| place.starts_with(folder)) {
        return None;
    }
    let file = rooted::open_found(found.as_fd()).ok()?;
    let mut head = [0; 256];
    let count = file.read_at(&mut head, 0).ok()?;
    let head = &head[..count];
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next()?;
        let mut words = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
        return Some(PathBuf::from(OsStr::from_bytes(words.next()?)));
    }
    elf_interpreter(&file, head)
}

/// `PT_INTERP` of a 64-bit ELF file of this machine.
fn elf_interpreter(file: &File, head: &[u8]) -> Option<PathBuf> {
    if head.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let word = |bytes: &[u8], at: usize| Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    let half = |bytes: &[u8], at: usize| Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    let (table, size, count) = (word(head, 32)?, half(head, 54)?, half(head, 56)?);
    for index in 0..u64::from(count.min(128)) {
        let mut entry = [0; 56];
        file.read_exact_at(&mut entry, table.checked_add(index.checked_mul(u64::from(size))?)?).ok()?;
        if u32::from_ne_bytes(*entry.first_chunk()?) != libc::PT_INTERP {
            continue;
        }
        let mut name = vec![0; usize::try_from(word(&entry, 32)?).ok()?.min(4096)];
        file.read_exact_at(&mut name, word(&entry, 8)?).ok()?;
        let end = name.iter().position(|byte| *byte == 0)?;
        return Some(PathBuf::from(OsStr::from_bytes(&name[..end])));
    }
    None
}

/// As many as the kernel follows.
const SCRIPTS_IN_SCRIPTS: usize = 5;
