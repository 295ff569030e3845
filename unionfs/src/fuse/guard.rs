//! The last line: a panic in a request must not end the thread that serves, and with it every container on the mount.
//!
//! None is known. If one comes, its request is answered EIO; locks are not poisoned for the others, as all of them are
//! taken in spite of that.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs one request and returns what it returned, or `None` if it panicked.
pub(super) fn survive<T>(serve: impl FnOnce() -> T) -> Option<T> {
    let result = catch_unwind(AssertUnwindSafe(serve)).ok();
    if result.is_none() {
        tracing::error!("a request failed in a way that should not exist");
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_survived() {
        assert_eq!(survive(|| 5), Some(5));
        assert_eq!(survive(|| panic!("on purpose")), None::<()>);
    }
}
