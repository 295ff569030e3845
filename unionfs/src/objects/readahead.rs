//! Reading ahead on the mounts of object tables.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Raises the read-ahead of the EROFS mount that appears between its two calls.
///
/// The default of 128 KiB costs a third of the speed of a cold sequential read. Nothing tells which of the kernel's
/// backing devices a mount has, only that it is a new one; if several are new, other mounts were made at the same time
/// and none is touched. All of it is best effort: without `/sys` reads are merely slower.
#[derive(Debug)]
pub(super) struct ReadAhead {
    before: BTreeSet<OsString>,
    /// One mount at a time in this process, or none of them would find its own.
    _turn: MutexGuard<'static, ()>,
}

impl ReadAhead {
    /// Looks at what there is before the mount.
    pub(super) fn before_mount() -> ReadAhead {
        static TURN: Mutex<()> = Mutex::new(());
        // It guards nothing that a panic could have spoilt.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        ReadAhead { before: devices(), _turn: turn }
    }

    /// Raises the read-ahead of what has appeared since.
    pub(super) fn raise(self) {
        let now = devices();
        let mut new = now.difference(&self.before);
        if let (Some(device), None) = (new.next(), new.next()) {
            let file = Path::new(DEVICES).join(device).join("read_ahead_kb");
            let raised = File::options().write(true).open(&file).and_then(|mut file| file.write_all(READ_AHEAD_KIB));
            if let Err(error) = raised {
                tracing::debug!(?file, %error, "read-ahead stays at the default");
            }
        }
    }
}

fn devices() -> BTreeSet<OsString> {
    // An unreadable folder is an empty one: nothing is raised.
    let entries = fs::read_dir(DEVICES).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).filter(|name| name.as_encoded_bytes().starts_with(b"erofs-")).collect()
}

const DEVICES: &str = "/sys/class/bdi";
const READ_AHEAD_KIB: &[u8] = b"1024";
