//! What outside suites and our own say about the union filesystem, beside ext4 and the kernel's overlayfs.

mod bounded;
mod coherence;
mod pjdfstest;
mod real_life;
mod rotating;
mod starvation;

use anyhow::Result;
use strata_tests::tier::Suite;
use strata_tests::union::Union;

use crate::uring::EnabledUring;

pub(crate) fn register(suite: &mut Suite) {
    bounded::register(suite);
    coherence::register(suite);
    pjdfstest::register(suite);
    real_life::register(suite);
    rotating::register(suite);
    starvation::register(suite);
}

/// Mounts, with the kernel's switch for FUSE over io_uring on meanwhile if that is asked for.
fn mount(union: &Union) -> Result<()> {
    let _switch = (union.options() == RING).then(EnabledUring::new);
    union.mount()
}

/// The option for FUSE over io_uring.
const RING: &str = "transport=ring";
