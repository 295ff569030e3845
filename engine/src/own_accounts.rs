//! `/etc/passwd` and `/etc/group` of a container that runs under the id of who made it (`--userns keep-id`) get an entry for
//! him, as Podman has it. Without, he would have no name in there.
//!
//! It is added to the container's own files, since programs that change accounts replace them. Where the root is read-only,
//! files with the entry are shown over them, like its `/etc/hosts`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use strata_layer::index::Index;
use strata_sandbox::user::AccountFiles;
use strata_sandbox::userns;

use crate::container::{Container, Mount, UserNamespace};
use crate::own_file;

/// Writes what is missing, and returns how it is mounted. `root` is the container's.
pub(crate) fn prepare(container: &Container, index: &Index, root: BorrowedFd<'_>) -> io::Result<Vec<Mount>> {
    let UserNamespace::KeepId { uid, gid } = container.config.user_namespace else { return Ok(Vec::new()) };
    let kept = userns::keep_id(uid, gid).map_err(io::Error::other)?;
    let of_image = AccountFiles::read(root).map_err(io::Error::other)?;
    let host = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // Nameless there is no reason not to have a name here.
    let of_host = AccountFiles::read(host.as_fd()).unwrap_or_default();
    let group = match of_image.group_name(kept.gid) {
        Some(_) => None,
        None => Some(group_entry(&of_image, of_host.group_name(userns::gid_outside()), kept.gid)),
    };
    let user = match of_image.user_name(kept.uid) {
        Some(_) => None,
        None => Some(user_entry(&of_image, of_host.user_name(userns::uid_outside()), kept.uid, kept.gid)),
    };
    let mut mounts = Vec::new();
    for (name, content, entry) in [("passwd", of_image.passwd, user), ("group", of_image.group, group)] {
        // An image without such a file has no program that reads it.
        let place = own_file::place(container, index, &format!("/etc/{name}")).filter(|_| !content.is_empty());
        let (Some(target), Some(entry)) = (place, entry) else { continue };
        let line = line_after(&content, &entry);
        if container.config.read_only {
            mounts.push(own_file::show(container, name, target, &[content, line].concat())?);
        } else {
            AccountFiles::append(root, name, &line)?;
        }
    }
    Ok(mounts)
}

/// His name on the host, unless somebody else in the image is called so.
fn user_entry(image: &AccountFiles, name_outside: Option<&[u8]>, uid: u32, gid: u32) -> Vec<u8> {
    let name =
        name_outside.filter(|name| !image.has_user(name)).map_or_else(|| format!("user{uid}").into(), <[u8]>::to_vec);
    [&name[..], format!(":*:{uid}:{gid}::/:/bin/sh").as_bytes()].concat()
}

fn group_entry(image: &AccountFiles, name_outside: Option<&[u8]>, gid: u32) -> Vec<u8> {
    let name =
        name_outside.filter(|name| !image.has_group(name)).map_or_else(|| format!("group{gid}").into(), <[u8]>::to_vec);
    [&name[..], format!(":x:{gid}:").as_bytes()].concat()
}

/// What is written behind `content` to add a line, also where its last one has no end.
fn line_after(content: &[u8], line: &[u8]) -> Vec<u8> {
    let end: &[u8] = if content.last().is_some_and(|last| *last != b'\n') { b"\n" } else { b"" };
    [end, line, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_name_in_the_image_gets_the_one_outside_unless_it_is_taken() {
        let image = AccountFiles {
            passwd: b"root:x:0:0::/root:/bin/sh\nada:x:5:5::/:".to_vec(),
            group: b"ada:x:5:\n".to_vec(),
        };
        let user =
            |name: Option<&str>| String::from_utf8(user_entry(&image, name.map(str::as_bytes), 1000, 1001)).unwrap();
        assert_eq!(user(Some("bob")), "bob:*:1000:1001::/:/bin/sh");
        assert_eq!(user(Some("ada")), "user1000:*:1000:1001::/:/bin/sh");
        assert_eq!(user(None), "user1000:*:1000:1001::/:/bin/sh");
        assert_eq!(group_entry(&image, Some(b"ada"), 7), b"group7:x:7:");
        assert_eq!(line_after(&image.passwd, b"x"), b"\nx\n");
        assert_eq!(line_after(&image.group, b"x"), b"x\n");
    }
}
