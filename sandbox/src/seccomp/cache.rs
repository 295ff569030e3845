//! Programs that were compiled before, by content.
//!
//! A process that starts many, such as the monitor of a container that others are added to, compiles a profile once.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use super::{Profile, ProfileError, Program};
use crate::capabilities::CapabilitySet;

impl Profile {
    /// As [`compile`](Self::compile), and keeps the last few programs for as long as this process runs.
    ///
    /// # Errors
    /// As [`compile`](Self::compile).
    pub fn compile_cached(&self, capabilities: CapabilitySet) -> Result<Program, ProfileError> {
        static KEPT: Mutex<VecDeque<Entry>> = Mutex::new(VecDeque::new());
        let capabilities = capabilities.intersection(self.deciding_capabilities());
        let is_it = |entry: &&Entry| entry.capabilities == capabilities && entry.profile == *self;
        let found = KEPT.lock().unwrap_or_else(PoisonError::into_inner).iter().find(is_it).map(|it| it.program.clone());
        if let Some(program) = found {
            return Ok(program);
        }
        let program = self.compile(capabilities)?;
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_front(Entry { profile: self.clone(), capabilities, program: program.clone() });
        kept.truncate(MOST);
        Ok(program)
    }
}

struct Entry {
    profile: Profile,
    capabilities: CapabilitySet,
    program: Program,
}

/// Each is some ten kilobytes.
const MOST: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::{Action, Rule};

    #[test]
    fn what_is_kept_is_what_would_be_compiled() {
        for errno in 1..20 {
            let profile =
                Profile { rules: vec![Rule::new(["read"], Action::Errno(errno))], ..Profile::docker_default().clone() };
            for _ in 0..2 {
                let kept = profile.compile_cached(CapabilitySet::DOCKER).unwrap();
                assert_eq!(kept, profile.compile(CapabilitySet::DOCKER).unwrap());
            }
        }
    }
}
