//! Files that are either their old or their new content, whatever happens in between.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

/// Whether a written file must survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// On the disk before the call returns.
    Synced,
    /// Atomic for other processes, on the disk whenever the kernel gets to it: for what dies with its command.
    Relaxed,
}

/// Replaces `path` by `content`: written beside it, synced when asked, renamed over it.
pub(crate) fn replace(path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", rustix::process::getpid().as_raw_nonzero()));
    let temporary = directory.join(name);
    let written = write_new(&temporary, content, durability).and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        // The first error is the one to report; what cannot be removed is found and removed with its directory.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    if durability == Durability::Synced {
        sync_directory(directory)?;
    }
    Ok(())
}

/// Writes the whole of a file that no one else knows yet.
pub(crate) fn write_new(path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = std::fs::File::from(rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(content)?;
    if durability == Durability::Synced {
        rustix::fs::fsync(file.as_fd())?;
    }
    Ok(())
}

/// Makes the names in `directory` survive a power cut.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, directory, flags, Mode::empty())?;
    Ok(rustix::fs::fsync(directory)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replace_leaves_the_new_content_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        for durability in [Durability::Synced, Durability::Relaxed] {
            replace(&path, b"one", durability).unwrap();
            replace(&path, b"two", durability).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"two");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_failed_replace_keeps_the_old_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("inside"), b"old").unwrap();
        assert!(replace(&path, b"new", Durability::Synced).is_err());
        assert_eq!(std::fs::read(path.join("inside")).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
