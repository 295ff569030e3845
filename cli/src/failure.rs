//! What a command ends with when it did not do what was asked.

use std::process::ExitCode;

use crate::output::human::printable;

/// An error with the exit code and the advice that go with it.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code of the command.
    pub(crate) code: u8,
    /// What failed, and why.
    pub(crate) error: anyhow::Error,
    /// What the user can do about it, where we know.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// A failure of strata itself while a container was to be run.
    pub(crate) fn of_engine(error: impl Into<anyhow::Error>) -> Failure {
        Failure { code: 125, error: error.into(), hint: None }
    }

    /// Adds advice.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Failure {
        Failure { hint: Some(hint.into()), ..self }
    }

    /// Prints it and returns the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("strata: {}", printable(&strata_engine::error_chain(self.error.as_ref())));
        if let Some(hint) = &self.hint {
            eprintln!("\nhint: {}", printable(hint));
        }
        ExitCode::from(self.code)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure { code: 1, error: error.into(), hint: None }
    }
}
