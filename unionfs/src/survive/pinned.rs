//! The folders of a mount, found before there is a mount.
//!
//! A mount may lie over one of its own layers, and a path may lead elsewhere by the time that the next worker starts. So
//! the folders are opened once, and workers reach them through their descriptors.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::spec::{Lower, MountSpec};

/// What to mount, with its folders held: whatever comes to lie over their paths, they are the same.
#[derive(Debug)]
pub struct Pinned {
    /// Names the folders by their descriptors.
    spec: MountSpec,
    folders: Vec<Folder>,
}

#[derive(Debug)]
struct Folder {
    fd: OwnedFd,
    /// The path that leads to it in this process and in those that it forks.
    path: PathBuf,
    name: PathBuf,
}

impl Pinned {
    /// Opens the folders of `spec`. One that cannot be opened, or reached through its descriptor (`/proc` may be absent
    /// or of other processes), stays named by its path.
    pub fn new(spec: &MountSpec) -> Pinned {
        let mut pinned = Pinned { spec: spec.clone(), folders: Vec::new() };
        let mut spec = spec.clone();
        if let Lower::Folders(folders) = &mut spec.lower {
            folders.iter_mut().for_each(|folder| pinned.pin(folder));
        }
        if let Some(upper) = &mut spec.upper {
            pinned.pin(&mut upper.dir);
            pinned.pin(&mut upper.work);
        }
        pinned.spec = spec;
        pinned
    }

    /// Returns what to mount, valid in this process and those that it forks as long as this lives.
    pub(crate) fn spec(&self) -> &MountSpec {
        &self.spec
    }

    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.folders.iter().map(|folder| folder.fd.as_fd())
    }

    /// Puts the names of the folders back into a message.
    pub(crate) fn named(&self, message: &str) -> String {
        let name = |text: String, folder: &Folder| {
            let end = |tail: &str| tail.strip_prefix(['"', '/']).is_some();
            let path = folder.path.to_string_lossy();
            let mut pieces = text.split(&*path);
            let mut named = pieces.next().unwrap_or_default().to_owned();
            for piece in pieces {
                // A number may begin with another.
                named.push_str(&if end(piece) { folder.name.to_string_lossy() } else { path.clone() });
                named.push_str(piece);
            }
            named
        };
        self.folders.iter().fold(message.to_owned(), name)
    }

    fn pin(&mut self, name: &mut PathBuf) {
        let Some((fd, path)) = open(name) else { return };
        let name = std::mem::replace(name, path.clone());
        self.folders.push(Folder { fd, path, name });
    }
}

fn open(name: &Path) -> Option<(OwnedFd, PathBuf)> {
    let look = |path: &Path| {
        let file = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let raw = rustix::fs::fstat(&file).ok()?;
        Some((file, (raw.st_dev, raw.st_ino)))
    };
    let (fd, folder) = look(name)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    look(&path).filter(|(_, same)| *same == folder)?;
    Some((fd, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Options;

    #[test]
    fn a_folder_stays_the_same_when_another_takes_its_path() {
        let base = tempfile::tempdir().unwrap();
        let (lower, aside) = (base.path().join("lower"), base.path().join("aside"));
        std::fs::create_dir(&lower).unwrap();
        std::fs::write(lower.join("first"), b"").unwrap();
        let missing = base.path().join("missing");
        let lowers = Lower::Folders(vec![lower.clone(), missing.clone()]);
        let pinned = Pinned::new(&MountSpec { lower: lowers, upper: None, options: Options::default() });
        std::fs::rename(&lower, &aside).unwrap();
        std::fs::create_dir(&lower).unwrap();
        let Lower::Folders(folders) = &pinned.spec().lower else { panic!("folders became something else") };
        assert!(folders[0].join("first").exists());
        assert_eq!(folders[1], missing);
        let message = format!("open {:?} and {:?}", folders[0], folders[0].join("x"));
        assert_eq!(pinned.named(&message), format!("open {lower:?} and {:?}", lower.join("x")));
        let longer = format!("open {:?}", format!("{}0", folders[0].display()));
        assert_eq!(pinned.named(&longer), longer);
    }
}
