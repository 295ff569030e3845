//! The container's terminal: made in its own devpts, reached only by descriptors.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, mknodat, openat};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};

use super::report::{At, Failure, Step, send_console};
use crate::plan::ConsolePlan;

/// Makes a terminal in `devpts`, shows it as `/dev/console`, sends its other end to the parent.
pub(super) fn create(
    parent: BorrowedFd<'_>,
    owner: rustix::process::Uid,
    console: ConsolePlan,
    devpts: BorrowedFd<'_>,
    dev: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let main = openat(devpts, c"ptmx", flags, Mode::empty()).at(Step::OpenTerminal, 0)?;
    unlockpt(&main).at(Step::OpenTerminal, 1)?;
    // By the pair's own descriptor: a path could have been swapped for something else meanwhile.
    let peer = ioctl_tiocgptpeer(&main, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .at(Step::OpenTerminal, 2)?;
    if let Some(size) = console.size {
        let size = rustix::termios::Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&main, size).at(Step::OpenTerminal, 3)?;
    }
    // The group is the devpts's business (gid=5).
    rustix::fs::fchown(&peer, Some(owner), None).at(Step::OpenTerminal, 4)?;
    if let Some(dev) = dev {
        match mknodat(dev, c"console", rustix::fs::FileType::RegularFile, Mode::from_bits_truncate(0o600), 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno).at(Step::BindConsole, 0),
        }
        let target = openat(dev, c"console", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .at(Step::BindConsole, 1)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let bound = open_tree(&peer, c"", flags).at(Step::BindConsole, 2)?;
        move_mount(bound.as_fd(), c"", target.as_fd(), c"", EMPTY_PATHS).at(Step::BindConsole, 3)?;
    }
    send_console(parent, main.as_fd()).at(Step::Parent, 3)?;
    Ok(peer)
}

const EMPTY_PATHS: MoveMountFlags =
    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH.union(MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH);
