//! What happens to one call: by the profile itself, and by a program that was made of it.
//!
//! The two are written independently of each other, so that either checks the other.

use super::compile::{ALWAYS, AND, ARCHITECTURE, EQUAL, GREATER, LOAD_WORD, NOT_LESS, NUMBER, RETURN};
use super::profile::ENOSYS;
use super::{Action, Architecture, Condition, Profile, Program, Rule, architecture};
use crate::capabilities::CapabilitySet;

/// A system call as a filter sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// `AUDIT_ARCH_*`.
    pub architecture: u32,
    /// Its number, bit 30 included for x32.
    pub number: u32,
    /// All six arguments.
    pub arguments: [u64; 6],
}

impl Call {
    /// Tells which of `architectures` the call is of.
    #[must_use]
    pub fn architecture_of(&self, architectures: &[Architecture]) -> Option<Architecture> {
        let is_x32 = self.number & architecture::X32_BIT != 0;
        let same = architectures.iter().filter(|one| one.audit_number() == self.architecture);
        let mut same = same.filter(|one| match one {
            Architecture::X86_64 => !is_x32,
            Architecture::X32 => is_x32,
            _ => true,
        });
        same.next().copied()
    }
}

impl Profile {
    /// Tells what happens to a call of an architecture that the profile lists, in a process with this bounding set.
    #[must_use]
    pub fn decide(
        &self,
        native: Architecture,
        capabilities: CapabilitySet,
        kernel: (u32, u32),
        architecture: Architecture,
        call: &Call,
    ) -> Action {
        let mut last = None;
        for rule in &self.rules {
            let Some(conditions) = conditions_for(rule, architecture, call.number) else { continue };
            if !rule.counts(native, capabilities, kernel) {
                continue;
            }
            if conditions.is_empty() {
                last = last.or(Some(rule.action));
            } else if conditions.iter().any(|all| all.iter().all(|condition| holds(condition, architecture, call))) {
                return rule.action;
            }
        }
        if let Some(action) = last {
            return action;
        }
        let unknown = self.default_action.hides_unknown_calls() && self.is_newer(architecture, call.number);
        if unknown { Action::Errno(ENOSYS) } else { self.default_action }
    }

    /// Tells whether a number is above all that the profile names, its rules for other machines included.
    fn is_newer(&self, architecture: Architecture, number: u32) -> bool {
        let names = self.rules.iter().flat_map(|rule| &rule.names);
        let known = names.filter_map(|name| architecture.number(name)).filter(|known| architecture.is_ordinary(*known));
        known.max().is_some_and(|newest| number > newest)
    }
}

/// The conditions under which a rule is about a call: alternatives of which one must hold whole, or none at all for a
/// rule without conditions. `None` when it is about other calls.
fn conditions_for(rule: &Rule, architecture: Architecture, number: u32) -> Option<Vec<Vec<Condition>>> {
    let mut alternatives = Vec::new();
    for name in &rule.names {
        if architecture.number(name) == Some(number) {
            if rule.conditions.is_empty() {
                return Some(Vec::new());
            }
            alternatives.push(rule.conditions.clone());
        }
        let carrier = architecture::carrier(name).filter(|_| rule.conditions.is_empty());
        if let Some(carrier) = carrier.filter(|carrier| architecture.number(carrier.name) == Some(number)) {
            alternatives.push(vec![carrier.condition()]);
        }
    }
    (!alternatives.is_empty()).then_some(alternatives)
}

fn holds(condition: &Condition, architecture: Architecture, call: &Call) -> bool {
    let argument = call.arguments[usize::from(condition.argument)];
    if architecture.is_narrow() {
        return condition.narrowed().holds(argument & 0xffff_ffff);
    }
    condition.holds(argument)
}

impl Program {
    /// Runs the program on a call, as the kernel does, and returns its answer. `None` for a program that the kernel would
    /// not load. `big_endian` tells how the machine it is for lays out the arguments.
    #[must_use]
    pub fn decide(&self, call: &Call, big_endian: bool) -> Option<u32> {
        let mut accumulator = 0;
        let mut at = 0;
        loop {
            let instruction = *self.instructions.get(at)?;
            at += 1;
            let branch = |holds: bool| usize::from(if holds { instruction.jump_true } else { instruction.jump_false });
            match instruction.code {
                LOAD_WORD => accumulator = word(call, instruction.k, big_endian)?,
                AND => accumulator &= instruction.k,
                EQUAL => at += branch(accumulator == instruction.k),
                GREATER => at += branch(accumulator > instruction.k),
                NOT_LESS => at += branch(accumulator >= instruction.k),
                ALWAYS => at += usize::try_from(instruction.k).ok()?,
                RETURN => return Some(instruction.k),
                _ => return None,
            }
        }
    }
}

/// A word of `struct seccomp_data`.
fn word(call: &Call, offset: u32, big_endian: bool) -> Option<u32> {
    match offset {
        NUMBER => Some(call.number),
        ARCHITECTURE => Some(call.architecture),
        16..64 if offset.is_multiple_of(4) => {
            let argument = call.arguments[usize::try_from((offset - 16) / 8).ok()?];
            let is_first = (offset - 16).is_multiple_of(8);
            u32::try_from(if is_first == big_endian { argument >> 32 } else { argument & 0xffff_ffff }).ok()
        }
        // The instruction pointer.
        _ => None,
    }
}
