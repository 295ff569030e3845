//! Switching FUSE over io_uring on while a mount is made.

use std::fs::File;

/// The kernel's switch for FUSE over io_uring, on for as long as this lives. A connection stays what it became by it.
pub(crate) struct EnabledUring {
    before: Vec<u8>,
    /// Locked, so that tests do not undo each other's doing.
    _lock: File,
}

impl EnabledUring {
    pub(crate) fn new() -> EnabledUring {
        let lock = File::open(ENABLE_URING).unwrap();
        lock.lock().unwrap();
        let before = std::fs::read(ENABLE_URING).unwrap();
        std::fs::write(ENABLE_URING, "Y").unwrap();
        EnabledUring { before, _lock: lock }
    }
}

impl Drop for EnabledUring {
    fn drop(&mut self) {
        std::fs::write(ENABLE_URING, &self.before).unwrap();
    }
}

/// Where there is such a file, the kernel has it.
pub(crate) const ENABLE_URING: &str = "/sys/module/fuse/parameters/enable_uring";
