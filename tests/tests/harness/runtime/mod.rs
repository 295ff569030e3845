//! `strata runtime` beside runc and crun: the same bundles, the same commands, the same outcome.
//!
//! What differs on purpose is in `docs/compat.md`. The peers see a machine with version 1 of cgroups alone: crun refuses
//! the two side by side.

mod bundle;
mod containerd;
mod dockerd;
mod fields;
mod hooks;
mod interrupted;
mod lifecycle;
mod plain_user;
mod podman;
mod processes;
mod resources;
mod systemd;

use strata_tests::tier::{Need, Suite};

pub(crate) fn register(suite: &mut Suite) {
    let needs = [Need::Busybox];
    lifecycle::register(suite, &needs);
    hooks::register(suite, &needs);
    fields::register(suite, &needs);
    processes::register(suite, &needs);
    resources::register(suite, &needs);
    systemd::register(suite, &needs);
    interrupted::register(suite, &needs);
    plain_user::register(suite, &needs);
    podman::register(suite);
    containerd::register(suite);
    dockerd::register(suite);
}
