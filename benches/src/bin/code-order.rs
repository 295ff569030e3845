//! Writes the order of the program's functions for the linker, `cli/code-order.ld`. The program is `$STRATA_BIN`, else what
//! `cargo dist` made, and was linked with `$STRATA_LINK_MAP` set to the same file as now.

use std::process::ExitCode;

use anyhow::Result;

#[expect(clippy::print_stderr, reason = "a command")]
fn main() -> ExitCode {
    match write() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("code-order: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn write() -> Result<()> {
    use anyhow::Context as _;

    let program = strata_benches::binary()?;
    let map = std::env::var_os("STRATA_LINK_MAP").context("STRATA_LINK_MAP names no file")?;
    let work = tempfile::Builder::new().prefix("strata-code-order-").tempdir_in("/var/tmp")?;
    let mut order = strata_benches::code_order::CodeOrder::of(&program, map.as_ref())?;
    order.observe_starts(&program, work.path())?;
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/code-order.ld"), order.script())?;
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn write() -> Result<()> {
    anyhow::bail!("the order is found on x86-64, and serves the others as well")
}
