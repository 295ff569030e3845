//! End-to-end tests: real mounts, namespaces and processes, with the binary as a user has it.

mod bad_images;
mod bulk;
mod comparisons;
mod conformance;
mod copying;
mod debian_image;
mod debian_work;
mod disk_usage;
mod exit_codes;
mod folders;
mod interrupted;
mod isolation;
mod large_layers;
mod lazy;
mod lifecycle;
mod mounts;
mod options;
mod oracles;
mod podman;
mod power_cut;
mod reaper;
mod registries;
mod registry;
mod runtime;
mod servers;
#[expect(clippy::unwrap_used, reason = "a test")]
#[path = "../../../unionfs/tests/common/uring.rs"]
mod uring;
mod user_namespaces;
mod verity;
mod walls;

use std::process::ExitCode;

use strata_tests::tier::{self, Suite};

#[expect(clippy::print_stderr, reason = "before there is a runner to report to")]
fn main() -> ExitCode {
    if let Err(error) = tier::prepare() {
        eprintln!("cannot prepare the tests: {error:?}");
        return ExitCode::FAILURE;
    }
    let mut suite = Suite::default();
    bad_images::register(&mut suite);
    comparisons::register(&mut suite);
    bulk::register(&mut suite);
    conformance::register(&mut suite);
    copying::register(&mut suite);
    debian_image::register(&mut suite);
    debian_work::register(&mut suite);
    disk_usage::register(&mut suite);
    exit_codes::register(&mut suite);
    folders::register(&mut suite);
    interrupted::register(&mut suite);
    lazy::register(&mut suite);
    isolation::register(&mut suite);
    large_layers::register(&mut suite);
    lifecycle::register(&mut suite);
    mounts::register(&mut suite);
    options::register(&mut suite);
    oracles::register(&mut suite);
    podman::register(&mut suite);
    power_cut::register(&mut suite);
    registries::register(&mut suite);
    registry::register(&mut suite);
    runtime::register(&mut suite);
    servers::register(&mut suite);
    user_namespaces::register(&mut suite);
    walls::register(&mut suite);
    verity::register(&mut suite);
    suite.run()
}
