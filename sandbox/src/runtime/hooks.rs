//! Hooks that run outside of the container: `prestart`, `createRuntime`, `poststart`, `poststop`.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use oci_spec::runtime::Hook;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::{HookError, HookFault};

/// Runs hooks one after the other, each with `state` as its input, until one fails.
pub(super) fn run_all(point: &'static str, hooks: Option<&Vec<Hook>>, state: &[u8]) -> Result<(), HookError> {
    for (index, hook) in hooks.into_iter().flatten().enumerate() {
        run(hook, state).map_err(|(fault, output)| HookError { point, index, fault, output })?;
    }
    Ok(())
}

/// Runs every hook; what fails is told by a warning, and the others have their turn.
pub(super) fn run_each(point: &'static str, hooks: Option<&Vec<Hook>>, state: &[u8]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (index, hook) in hooks.into_iter().flatten().enumerate() {
        if let Err((fault, output)) = run(hook, state) {
            warnings.push(HookError { point, index, fault, output }.to_string());
        }
    }
    warnings
}

fn run(hook: &Hook, state: &[u8]) -> Result<(), (HookFault, String)> {
    let not_run = |error: io::Error| (HookFault::NotRun(error), String::new());
    let mut input = memory_file(c"state").map_err(not_run)?;
    input.write_all(state).and_then(|()| input.rewind()).map_err(not_run)?;
    let output = memory_file(c"output").map_err(not_run)?;
    let streams = [input, output.try_clone().map_err(not_run)?, output.try_clone().map_err(not_run)?];
    let status = run_to_end(hook, streams).map_err(not_run)?;
    let fault = match status {
        Some(status) if status.success() => return Ok(()),
        Some(status) => HookFault::Ended(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))),
        None => HookFault::TimedOut,
    };
    Err((fault, read_back(output)))
}

/// Returns how it ended; nothing when it was killed because its time was over.
fn run_to_end(hook: &Hook, [input, output, errors]: [File; 3]) -> io::Result<Option<ExitStatus>> {
    let mut command = Command::new(hook.path());
    if let Some((name, arguments)) = hook.args().as_ref().and_then(|arguments| arguments.split_first()) {
        command.arg0(name).args(arguments);
    }
    command.env_clear();
    for entry in hook.env().iter().flatten() {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        command.env(name, value);
    }
    let mut child = command.stdin(input).stdout(output).stderr(errors).spawn()?;
    let Some(seconds) = hook.timeout() else { return child.wait().map(Some) };
    let ended = ends_within(child.id(), seconds)?;
    if !ended {
        child.kill()?;
    }
    let status = child.wait()?;
    Ok(ended.then_some(status))
}

fn ends_within(pid: u32, seconds: i64) -> io::Result<bool> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    // It is our child and not reaped: the number is its own.
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    strata_sys::pidfd::wait_for_end(pidfd.as_fd(), Duration::from_secs(seconds.max(0).unsigned_abs()))
}

fn memory_file(name: &std::ffi::CStr) -> io::Result<File> {
    Ok(File::from(memfd_create(name, MemfdFlags::CLOEXEC)?))
}

fn read_back(mut output: File) -> String {
    let mut bytes = Vec::new();
    // What cannot be read is not worth another error.
    let _ = output.rewind().and_then(|()| output.take(OUTPUT_LIMIT).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// So much of what a hook wrote is a message still.
const OUTPUT_LIMIT: u64 = 4096;
