//! The folders of a mount, found before there is a mount.
//!
//! A mount may lie over one of its own layers, and a path may lead elsewhere by the time that the next worker starts. So
//! the folders are opened once, and workers reach them through their descriptors; and so are the folders that the files
//! of an image lie in, beside which something may be made later.

use std::collections::HashMap;
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
        match &mut spec.lower {
            Lower::Folders(folders) => folders.iter_mut().for_each(|folder| pinned.pin(folder)),
            Lower::Image { index, layers } => {
                let mut known = HashMap::new();
                pinned.pin_file(index, &mut known);
                for layer in layers {
                    for file in [&mut layer.tar, &mut layer.index, &mut layer.objects] {
                        pinned.pin_file(file, &mut known);
                    }
                }
            }
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

    /// Names a file by its folder. `known` holds what was found for the folders so far.
    fn pin_file(&mut self, name: &mut PathBuf, known: &mut HashMap<PathBuf, PathBuf>) {
        let (Some(folder), Some(file)) = (name.parent(), name.file_name()) else { return };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let pinned = match known.get(folder) {
            Some(pinned) => pinned.clone(),
            None => {
                let mut pinned = folder.to_owned();
                self.pin(&mut pinned);
                known.insert(folder.to_owned(), pinned.clone());
                pinned
            }
        };
        *name = pinned.join(file);
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
    use crate::spec::{ImageLayer, Options};

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

    #[test]
    fn files_of_an_image_stay_the_same_and_a_folder_is_opened_once() {
        let base = tempfile::tempdir().unwrap();
        let store = base.path().join("store");
        std::fs::create_dir_all(store.join("layer")).unwrap();
        let at = |path: &str| store.join(path);
        for file in ["index", "layer/tar", "layer/index"] {
            std::fs::write(at(file), file).unwrap();
        }
        let layer =
            ImageLayer { tar: at("layer/tar"), index: at("layer/index"), objects: at("layer/objects"), absent: None };
        let lower = Lower::Image { index: at("index"), layers: vec![layer.clone(), layer] };
        let pinned = Pinned::new(&MountSpec { lower, upper: None, options: Options::default() });
        assert_eq!(pinned.descriptors().count(), 2);
        std::fs::rename(&store, base.path().join("aside")).unwrap();
        let Lower::Image { index, layers } = &pinned.spec().lower else { panic!("an image became something else") };
        assert_eq!(std::fs::read(index).unwrap(), b"index");
        assert_eq!(std::fs::read(&layers[1].tar).unwrap(), b"layer/tar");
        assert_eq!(std::fs::read(&layers[0].index).unwrap(), b"layer/index");
        std::fs::write(&layers[0].objects, b"").unwrap();
        assert!(base.path().join("aside/layer/objects").exists());
        let message = format!("open {:?}", layers[0].tar);
        assert_eq!(pinned.named(&message), format!("open {:?}", at("layer/tar")));
    }
}
