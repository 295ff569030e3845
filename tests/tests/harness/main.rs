//! End-to-end tests: real mounts, namespaces and processes, with the binary as a user has it.

mod oracles;

use std::process::ExitCode;

use strata_tests::tier::{self, Suite};

#[expect(clippy::print_stderr, reason = "before there is a runner to report to")]
fn main() -> ExitCode {
    if let Err(error) = tier::prepare() {
        eprintln!("cannot prepare the tests: {error:?}");
        return ExitCode::FAILURE;
    }
    let mut suite = Suite::default();
    oracles::register(&mut suite);
    suite.run()
}
