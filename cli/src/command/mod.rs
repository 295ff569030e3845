//! One file per verb: its options, the call, the rendering.

pub(crate) mod bench;
pub(crate) mod commit;
pub(crate) mod diff;
pub(crate) mod export;
mod filter;
pub(crate) mod history;
pub(crate) mod images;
pub(crate) mod import;
pub(crate) mod info;
pub(crate) mod inspect;
pub(crate) mod load;
pub(crate) mod mount;
pub(crate) mod ps;
pub(crate) mod rm;
pub(crate) mod rmi;
pub(crate) mod run;
pub(crate) mod tag;
pub(crate) mod umount;

use std::path::PathBuf;

use strata_engine::Engine;

use crate::failure::Failure;

/// What every verb is given.
#[derive(Debug)]
pub(crate) struct Context {
    /// Where all state is.
    pub(crate) root: PathBuf,
}

impl Context {
    /// Opens the engine.
    pub(crate) fn engine(&self) -> Result<Engine, Failure> {
        Ok(Engine::open(&self.root)?)
    }
}

/// What a verb ends with: an exit code, or a failure to report.
pub(crate) type Outcome = Result<u8, Failure>;

/// Does the same for several operands: a failure is reported and the others are still done.
pub(crate) fn for_each<T>(operands: &[T], mut action: impl FnMut(&T) -> Result<(), Failure>) -> Outcome {
    let mut code = 0;
    for operand in operands {
        if let Err(failure) = action(operand) {
            // Nobody reads any more: there is nobody to tell either.
            if crate::output::is_closed_pipe(&failure.error) {
                return Err(failure);
            }
            failure.report();
            code = failure.code;
        }
    }
    Ok(code)
}
