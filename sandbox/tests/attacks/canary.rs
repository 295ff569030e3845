//! Something outside of the container that must stay as it was.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A folder with a file on the host. [`check`](Canary::check) compares content, inodes, modes and the mount table.
pub(super) struct Canary {
    folder: TempDir,
    before: Vec<String>,
}

impl Canary {
    pub(super) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("inner")).unwrap();
        fs::write(folder.path().join("file"), "untouched").unwrap();
        let before = state(folder.path());
        Self { folder, before }
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn file(&self) -> PathBuf {
        self.path().join("file")
    }

    #[track_caller]
    pub(super) fn check(&self) {
        assert_eq!(state(self.path()), self.before);
    }
}

fn state(folder: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for path in [folder.to_owned(), folder.join("inner"), folder.join("file")] {
        let metadata = fs::symlink_metadata(&path).unwrap();
        lines.push(format!(
            "{} {} {:o} {} {} {}",
            path.display(),
            metadata.ino(),
            metadata.mode(),
            metadata.uid(),
            metadata.nlink(),
            metadata.mtime_nsec()
        ));
    }
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| format!("{:?}", entry.unwrap().file_name())).collect();
    names.sort();
    lines.extend(names);
    lines.push(fs::read_to_string(folder.join("file")).unwrap());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    // Mounts of other programs come and go meanwhile.
    let here = folder.to_str().unwrap();
    lines.extend(mounts.lines().filter(|line| line.contains(here)).map(str::to_owned));
    lines
}
