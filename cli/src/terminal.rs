//! The user's terminal: raw while a container has it, restored whatever happens.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Holds a terminal in raw mode; dropping it restores the terminal.
#[derive(Debug)]
#[must_use = "the terminal is restored when this is dropped"]
pub(crate) struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Puts the terminal behind `terminal` into raw mode.
    pub(crate) fn enter(terminal: BorrowedFd<'_>) -> io::Result<RawTerminal> {
        let terminal = terminal.try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Drained, so that what was printed before is not mangled.
        tcsetattr(&terminal, OptionalActions::Drain, &raw)?;
        Ok(RawTerminal { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that has been hung up has nothing to restore.
        let _ = tcsetattr(&self.terminal, OptionalActions::Drain, &self.before);
    }
}

/// Whether standard input is a terminal.
pub(crate) fn stdin_is_terminal() -> bool {
    rustix::termios::isatty(rustix::stdio::stdin())
}

/// The lines and columns of the terminal the command runs in, if it has one.
pub(crate) fn size() -> Option<(u16, u16)> {
    let streams = [std::io::stdout().as_fd().try_clone_to_owned(), std::io::stdin().as_fd().try_clone_to_owned()];
    streams.into_iter().flatten().find_map(|stream| {
        let size = tcgetwinsize(stream).ok()?;
        (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
    })
}

/// Keeps a terminal from showing what is typed; dropping it restores the terminal.
#[derive(Debug)]
#[must_use = "the terminal is restored when this is dropped"]
pub(crate) struct HiddenInput {
    _restored: RawTerminal,
}

impl HiddenInput {
    /// Switches the echo of `terminal` off.
    pub(crate) fn enter(terminal: BorrowedFd<'_>) -> io::Result<HiddenInput> {
        let terminal = terminal.try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(rustix::termios::LocalModes::ECHO);
        hidden.local_modes.insert(rustix::termios::LocalModes::ECHONL);
        tcsetattr(&terminal, OptionalActions::Drain, &hidden)?;
        Ok(HiddenInput { _restored: RawTerminal { terminal, before } })
    }
}
