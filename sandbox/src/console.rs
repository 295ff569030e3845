//! The size of a terminal.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};

use crate::WindowSize;

/// Sets the size of the terminal behind `terminal`; its foreground processes get `SIGWINCH`.
///
/// # Errors
/// The errno of the ioctl, `ENOTTY` when it is no terminal.
pub fn set_size(terminal: BorrowedFd<'_>, size: WindowSize) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}

/// Returns the size of the terminal behind `terminal`.
///
/// # Errors
/// The errno of the ioctl, `ENOTTY` when it is no terminal.
pub fn size(terminal: BorrowedFd<'_>) -> io::Result<WindowSize> {
    let size = tcgetwinsize(terminal)?;
    Ok(WindowSize { rows: size.ws_row, columns: size.ws_col })
}
