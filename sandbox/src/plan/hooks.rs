//! The part of the plan that is about the hooks run by the child: `createContainer` and `startContainer`.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use oci_spec::runtime::{Hook, Spec};
use rustix::event::Timespec;
use rustix::fs::{MemfdFlags, memfd_create};

use super::process::{ProgramPlan, strings};
use crate::SpawnError;
use crate::hook_state::HookState;

/// Hooks that run in the namespaces of the container.
#[derive(Debug)]
pub(crate) struct HooksPlan {
    /// Found on the host, run before the root is switched, with the privileges of the runtime.
    pub(crate) create_container: Vec<HookPlan>,
    /// Found in the container, run before its program and behind the same walls.
    pub(crate) start_container: Vec<HookPlan>,
    /// What `createContainer` hooks read, around the process number that only the child knows.
    pub(crate) creating: (Vec<u8>, Vec<u8>),
    /// The same for `startContainer` hooks.
    pub(crate) created: (Vec<u8>, Vec<u8>),
    /// Receives what hooks write, for the message if one fails.
    pub(crate) output: OwnedFd,
}

/// One hook.
#[derive(Debug)]
pub(crate) struct HookPlan {
    pub(crate) program: ProgramPlan,
    /// After so long it is killed and has failed.
    pub(crate) timeout: Option<Timespec>,
}

impl HooksPlan {
    /// Plans the hooks of `spec`, which read `state`.
    pub(crate) fn new(spec: &Spec, state: &HookState) -> Result<Self, SpawnError> {
        let hooks = spec.hooks().as_ref();
        let list = |hooks: Option<&Vec<Hook>>| -> Result<Vec<HookPlan>, SpawnError> {
            hooks.into_iter().flatten().map(HookPlan::new).collect()
        };
        let output = memfd_create(c"hook-output", MemfdFlags::CLOEXEC).map_err(|errno| SpawnError::Parent {
            what: "make a file for the output of hooks",
            source: errno.into(),
        })?;
        Ok(Self {
            create_container: list(hooks.and_then(|hooks| hooks.create_container().as_ref()))?,
            start_container: list(hooks.and_then(|hooks| hooks.start_container().as_ref()))?,
            creating: state.around_pid("creating"),
            created: state.around_pid("created"),
            output,
        })
    }
}

impl HookPlan {
    fn new(hook: &Hook) -> Result<Self, SpawnError> {
        let invalid = |what: &str| SpawnError::Invalid(format!("hook {}: {what}", hook.path().display()));
        if !hook.path().is_absolute() {
            return Err(invalid("the path is not absolute"));
        }
        let path = CString::new(hook.path().as_os_str().as_bytes()).map_err(|_| invalid("NUL in the path"))?;
        let own_name = || vec![hook.path().to_string_lossy().into_owned()];
        let arguments = hook.args().clone().filter(|arguments| !arguments.is_empty()).unwrap_or_else(own_name);
        let timeout = match hook.timeout() {
            None => None,
            Some(seconds) if seconds > 0 => Some(Timespec { tv_sec: seconds, tv_nsec: 0 }),
            Some(_) => return Err(invalid("the timeout must be greater than zero")),
        };
        let program = ProgramPlan {
            candidates: vec![path],
            searched: false,
            arguments: strings(&arguments, "argument")?,
            environment: strings(hook.env().as_deref().unwrap_or_default(), "environment")?,
        };
        Ok(Self { program, timeout })
    }
}
