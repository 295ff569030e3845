//! The heap of the C library.

/// Gives pages of the heap on which nothing is left back to the system (`malloc_trim`). It looks at the whole heap, and
/// others who allocate meanwhile may wait for that. Does nothing with a C library that has no such call.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
