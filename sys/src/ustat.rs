//! `ustat`: asking a filesystem by the number of its device, wherever it is mounted.

use std::io;

/// Asks the filesystem with the anonymous device number `minor` how much room it has, and throws the answer away.
///
/// It need not be mounted anywhere that this process can see: FUSE asks its server, which is what this is for.
///
/// # Errors
/// `EINVAL` if there is no such filesystem; whatever it answers; `ENOSYS` on machines whose kernel lacks the call.
pub fn ask_filesystem(minor: u32) -> io::Result<()> {
    ustat((minor & 0xff) | (minor & !0xff) << 12)
}

#[cfg(target_arch = "x86_64")]
fn ustat(device: u32) -> io::Result<()> {
    // `struct ustat` has 32 bytes.
    let mut answer = [0_u64; 8];
    // SAFETY: the kernel writes one `struct ustat`, for which there is more than enough room.
    let result = unsafe { libc::syscall(libc::SYS_ustat, device, answer.as_mut_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(target_arch = "x86_64"))]
fn ustat(_: u32) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn a_filesystem_is_found_by_its_device() {
        use std::os::unix::fs::MetadataExt as _;
        let device = std::fs::metadata("/proc").unwrap().dev();
        ask_filesystem(libc::minor(device)).unwrap();
        assert_eq!(ask_filesystem(0xf_ffff).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
