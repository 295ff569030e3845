//! What `cp` makes of two paths: the rules of Docker, which are those of `cp -a` but for the ends of the paths.

use rustix::fs::FileType;

use super::ArchiveError;
use super::tree::{Found, Tree, asserts_directory, is_contents, last_name, parent};

/// What is copied.
#[derive(Debug)]
pub struct CopySource {
    /// What was found.
    pub found: Found,
    /// What it is called; empty when only its contents are copied.
    pub name: Vec<u8>,
}

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyPlan {
    /// The directory to unpack in.
    pub directory: Vec<u8>,
    /// What it is called there; empty for contents without a directory of their own.
    pub name: Vec<u8>,
}

impl Tree {
    /// Finds what is to be copied. A path that ends in `/.` means the contents of a directory, and so does the root.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn source(&self, path: &[u8], follow_link: bool) -> Result<CopySource, ArchiveError> {
        let mut found = self.find(path)?;
        // Also what is reached through a link is called as the user called it.
        let name = if is_contents(path) { Vec::new() } else { found.name().to_vec() };
        if follow_link && found.file_type() == FileType::Symlink {
            let (target, there) = self.follow(path)?;
            found = there.ok_or_else(|| self.failed(&target, rustix::io::Errno::NOENT))?;
        }
        Ok(CopySource { found, name })
    }
}

/// Decides where something goes that is to be copied to `path`.
///
/// # Errors
/// [`ArchiveError::DirectoryOntoFile`], [`ArchiveError::NoSuchDirectory`], those of [`Tree::follow`].
pub fn plan_copy(source: &CopySource, tree: &Tree, path: &[u8]) -> Result<CopyPlan, ArchiveError> {
    let (resolved, there) = tree.follow(path)?;
    let beside =
        |resolved: &[u8]| CopyPlan { directory: [parent(resolved), b"/"].concat(), name: last_name(resolved).to_vec() };
    match (there, source.found.is_directory()) {
        (Some(there), _) if there.is_directory() => Ok(CopyPlan { directory: resolved, name: source.name.clone() }),
        (Some(_), true) => Err(ArchiveError::DirectoryOntoFile),
        (None, false) if asserts_directory(path) => Err(ArchiveError::NoSuchDirectory),
        (Some(_), false) | (None, _) => Ok(beside(&resolved)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;

    use super::super::{Owner, text};
    use super::*;

    /// A tree of the host below a folder of its own.
    fn tree(folder: &std::path::Path) -> Tree {
        Tree::container(fs::File::open(folder).unwrap().into(), "c", None)
    }

    fn copy(from: &Tree, source: &str, to: &Tree, target: &str, follow: bool) -> Result<(), ArchiveError> {
        let source = from.source(source.as_bytes(), follow)?;
        let plan = plan_copy(&source, to, target.as_bytes())?;
        let mut archive = Vec::new();
        from.pack(&source.found, &plan.name, &mut archive)?;
        to.unpack(&plan.directory, &mut archive.as_slice(), Owner::Kept)?;
        Ok(())
    }

    /// All paths below a folder.
    fn listing(folder: &std::path::Path) -> String {
        let mut found = Vec::new();
        let mut pending = vec![folder.to_owned()];
        while let Some(path) = pending.pop() {
            for entry in fs::read_dir(&path).unwrap().flatten() {
                found.push(entry.path().strip_prefix(folder).unwrap().display().to_string());
                if entry.file_type().unwrap().is_dir() {
                    pending.push(entry.path());
                }
            }
        }
        found.sort();
        found.join(" ")
    }

    #[test]
    fn the_ends_of_paths_decide_as_in_docker() {
        // The source, the target, and what is then in the target's tree; "-" for a refusal.
        for (source, target, result) in [
            ("/file", "/", "file old old/kept"),
            ("/file", "/new", "new old old/kept"),
            ("/file", "/old", "old old/file old/kept"),
            ("/file", "/old/kept", "old old/kept"),
            ("/file", "/new/", "-no such directory"),
            ("/file", "/new/x", "-Could not find the file /new in container c"),
            ("/dir", "/", "dir dir/a dir/sub dir/sub/b old old/kept"),
            ("/dir/", "/", "dir dir/a dir/sub dir/sub/b old old/kept"),
            ("/dir/.", "/", "a old old/kept sub sub/b"),
            ("/dir", "/new", "new new/a new/sub new/sub/b old old/kept"),
            ("/dir/.", "/new", "new new/a new/sub new/sub/b old old/kept"),
            ("/dir", "/new/", "new new/a new/sub new/sub/b old old/kept"),
            ("/dir", "/old", "old old/dir old/dir/a old/dir/sub old/dir/sub/b old/kept"),
            ("/dir/.", "/old", "old old/a old/kept old/sub old/sub/b"),
            ("/dir", "/old/kept", "-cannot copy directory"),
            ("/link", "/", "link old old/kept"),
            ("/link/", "/", "link link/a link/sub link/sub/b old old/kept"),
            ("/link/.", "/", "a old old/kept sub sub/b"),
            ("/gone", "/", "-Could not find the file /gone in container c"),
            ("/file/", "/", "-open \"/file/\" in container c"),
        ] {
            let base = tempfile::tempdir().unwrap();
            let (one, other) = (base.path().join("one"), base.path().join("other"));
            fs::create_dir_all(one.join("dir/sub")).unwrap();
            fs::create_dir_all(other.join("old")).unwrap();
            for file in ["one/file", "one/dir/a", "one/dir/sub/b", "other/old/kept"] {
                fs::write(base.path().join(file), file).unwrap();
            }
            std::os::unix::fs::symlink("dir", one.join("link")).unwrap();
            let found = match copy(&tree(&one), source, &tree(&other), target, false) {
                Ok(()) => listing(&other),
                Err(error) => format!("-{error}"),
            };
            assert_eq!(found, result, "{source} to {target}");
        }
    }

    #[test]
    fn links_are_copied_or_followed() {
        let base = tempfile::tempdir().unwrap();
        let (one, other) = (base.path().join("one"), base.path().join("other"));
        fs::create_dir(&one).unwrap();
        fs::create_dir_all(other.join("real")).unwrap();
        fs::write(one.join("file"), "content").unwrap();
        std::os::unix::fs::symlink("/file", one.join("link")).unwrap();
        std::os::unix::fs::symlink("/real", other.join("to-real")).unwrap();
        let (from, to) = (tree(&one), tree(&other));
        copy(&from, "/link", &to, "/", false).unwrap();
        assert_eq!(fs::read_link(other.join("link")).unwrap(), std::path::Path::new("/file"));
        copy(&from, "/link", &to, "/to-real", true).unwrap();
        assert_eq!(fs::read_to_string(other.join("real/link")).unwrap(), "content");
        // A link is replaced by what is copied onto its place, never written through.
        copy(&from, "/file", &to, "/real/link", false).unwrap();
        assert_eq!(fs::read_to_string(other.join("real/link")).unwrap(), "content");
    }

    #[test]
    fn attributes_links_and_holes_arrive() {
        use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
        let base = tempfile::tempdir().unwrap();
        let (one, other) = (base.path().join("one"), base.path().join("other"));
        fs::create_dir_all(one.join("dir")).unwrap();
        fs::create_dir(&other).unwrap();
        let sparse = fs::File::create(one.join("dir/sparse")).unwrap();
        sparse.set_len(8 << 20).unwrap();
        sparse.write_all_at(b"middle", 4 << 20).unwrap();
        fs::write(one.join("dir/.wh.name"), "ordinary").unwrap();
        fs::hard_link(one.join("dir/sparse"), one.join("dir/twin")).unwrap();
        fs::set_permissions(one.join("dir/.wh.name"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(one.join("dir"), fs::Permissions::from_mode(0o2750)).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
        fs::File::open(one.join("dir")).unwrap().set_modified(time).unwrap();
        copy(&tree(&one), "/dir", &tree(&other), "/", false).unwrap();
        let stat = |path: &str| fs::metadata(other.join(path)).unwrap();
        assert_eq!(stat("dir").mode() & 0o7777, 0o2750);
        assert_eq!(stat("dir").modified().unwrap(), time);
        assert_eq!(stat("dir/.wh.name").mode() & 0o7777, 0o640);
        assert_eq!((stat("dir/sparse").ino(), stat("dir/sparse").nlink()), (stat("dir/twin").ino(), 2));
        assert!(stat("dir/sparse").blocks() < 1024, "the holes are kept");
        let mut content = Vec::new();
        fs::File::open(other.join("dir/sparse")).unwrap().read_to_end(&mut content).unwrap();
        assert_eq!((content.len(), &content[4 << 20..(4 << 20) + 6]), (8 << 20, &b"middle"[..]));
        assert!(!listing(&other).contains(".strata-cp"), "{}", listing(&other));
    }

    #[test]
    fn a_hostile_archive_makes_nothing_outside() {
        let base = tempfile::tempdir().unwrap();
        let inside = base.path().join("inside");
        fs::create_dir(&inside).unwrap();
        std::os::unix::fs::symlink("..", inside.join("up")).unwrap();
        let host = Tree::host().unwrap();
        let canary = base.path().join("canary");
        fs::write(&canary, "whole").unwrap();
        let archive = |name: &[u8], kind: u8, link: &[u8]| {
            let mut block = vec![0; 1536];
            block[..name.len()].copy_from_slice(name);
            block[100..107].copy_from_slice(b"0000777");
            for (at, text) in [(108, "0000000"), (116, "0000000"), (124, "00000000000"), (136, "00000000000")] {
                block[at..at + text.len()].copy_from_slice(text.as_bytes());
            }
            block[156] = kind;
            block[157..157 + link.len()].copy_from_slice(link);
            block[257..265].copy_from_slice(b"ustar\x0000");
            block[148..156].fill(b' ');
            let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            block
        };
        let path = std::os::unix::ffi::OsStrExt::as_bytes(inside.as_os_str());
        for (name, kind, link, expected) in [
            (&b"../canary"[..], b'0', &b""[..], "outside"),
            (b"a/../../canary", b'0', b"", "outside"),
            (b"up/canary", b'0', b"", "symbolic link"),
            (b"up", b'5', b"", "cannot overwrite non-directory"),
            (b"twin", b'1', b"../canary", "outside"),
            (b"twin", b'1', b"up/canary", "symbolic link"),
        ] {
            let error = host.unpack(path, &mut archive(name, kind, link).as_slice(), Owner::Maker).unwrap_err();
            assert!(error.to_string().contains(expected), "{}: {error}", text(name));
        }
        // A link out is only a link; what comes after does not go through it.
        let mut both = archive(b"out", b'2', b"..");
        both.truncate(512);
        both.extend(archive(b"out/canary", b'0', b""));
        assert!(host.unpack(path, &mut both.as_slice(), Owner::Maker).is_err());
        assert_eq!(fs::read_to_string(&canary).unwrap(), "whole");
        assert_eq!(listing(base.path()), "canary inside inside/out inside/up");
        let device = archive(b"null", b'3', b"");
        let done = host.unpack(path, &mut device.as_slice(), Owner::Maker).unwrap();
        assert_eq!(done.left_out, ["null"]);
    }
}
