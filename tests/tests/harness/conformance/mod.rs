//! What outside suites and our own say about the union filesystem, beside ext4 and the kernel's overlayfs.

mod bounded;
mod coherence;
mod pjdfstest;
mod real_life;
mod rotating;

use strata_tests::tier::Suite;

pub(crate) fn register(suite: &mut Suite) {
    bounded::register(suite);
    coherence::register(suite);
    pjdfstest::register(suite);
    real_life::register(suite);
    rotating::register(suite);
}
