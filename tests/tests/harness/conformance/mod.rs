//! What outside suites and our own say about the union filesystem, beside ext4 and the kernel's overlayfs.

mod pjdfstest;
mod rotating;

use strata_tests::tier::Suite;

pub(crate) fn register(suite: &mut Suite) {
    pjdfstest::register(suite);
    rotating::register(suite);
}
