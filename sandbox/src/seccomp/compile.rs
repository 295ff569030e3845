//! From rules to classic BPF.
//!
//! ```text
//! load architecture ── equal? ──▶ load number ──▶ binary search over ranges of equal outcome ──▶ return
//!        │ none                                                            └▶ argument checks ──▶ return
//!        └──▶ kill the process
//! ```
//!
//! The output depends on the profile, the capabilities and the kernel version alone, so it can be cached by content.

use std::borrow::Cow;

use strata_sys::seccomp::Instruction;

use super::architecture::{self, Numbers, X32_BIT};
use super::profile::ENOSYS;
use super::{Action, Architecture, Comparison, Condition, Profile, ProfileError, Rule, flags};
use crate::capabilities::CapabilitySet;

/// A compiled filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// What the kernel runs.
    pub instructions: Cow<'static, [Instruction]>,
    /// Bits of [`flags`] to load it with.
    pub flags: u32,
}

impl Program {
    /// Tells whether loading it makes a listener.
    #[must_use]
    pub fn notifies(&self) -> bool {
        self.flags & flags::NEW_LISTENER != 0
    }

    /// Adds the flags that its answers need, and leaves out those that mean nothing to it.
    fn with_flags(code: Vec<Instruction>, wanted: u32) -> Self {
        let notifies = code.iter().any(|at| at.code == RETURN && at.k == Action::Notify.value());
        let flags = if notifies { wanted | flags::NEW_LISTENER } else { wanted & !flags::WAIT_KILLABLE_RECV };
        Self { instructions: Cow::Owned(code), flags }
    }
}

impl Profile {
    /// Compiles for this machine and a process whose bounding set is `capabilities`.
    ///
    /// # Errors
    /// [`ProfileError::NoTable`], [`ProfileError::TooLong`].
    pub fn compile(&self, capabilities: CapabilitySet) -> Result<Program, ProfileError> {
        let native = Architecture::native().ok_or(ProfileError::NoTable)?;
        self.compile_for(native, capabilities, kernel_version())
    }

    /// Compiles for a given machine, kernel and bounding set.
    ///
    /// # Errors
    /// [`ProfileError::TooLong`].
    pub fn compile_for(
        &self,
        native: Architecture,
        capabilities: CapabilitySet,
        kernel: (u32, u32),
    ) -> Result<Program, ProfileError> {
        let calls = self.calls(native, capabilities, kernel);
        let mut code = vec![load(ARCHITECTURE)];
        // x32 lives inside x86_64's numbers and is emitted there.
        let separate = self.architectures.iter().filter(|architecture| **architecture != Architecture::X32);
        for architecture in separate {
            let mut body = vec![load(NUMBER)];
            let mut ranges = self.ranges(*architecture, &calls);
            if *architecture == Architecture::X86_64 {
                ranges.retain(|range| range.start < X32_BIT);
                if self.architectures.contains(&Architecture::X32) {
                    let x32 = self.ranges(Architecture::X32, &calls).into_iter();
                    ranges.extend(x32.map(|range| Range { start: range.start.max(X32_BIT), ..range }));
                } else {
                    ranges.push(Range { start: X32_BIT, outcome: Outcome::plain(Action::KillProcess) });
                    // What a tracer writes to skip a call.
                    ranges.push(Range { start: u32::MAX, outcome: Outcome::plain(self.default_action) });
                }
            }
            emit_tree(&mut body, &ranges, architecture.is_big_endian());
            let length = u32::try_from(body.len()).map_err(|_| ProfileError::TooLong(body.len()))?;
            // A body is longer than a conditional jump can skip.
            code.push(jump(EQUAL, architecture.audit_number(), 1, 0));
            code.push(Instruction { code: ALWAYS, jump_true: 0, jump_false: 0, k: length });
            code.append(&mut body);
        }
        code.push(give(Action::KillProcess));
        if code.len() > LONGEST {
            return Err(ProfileError::TooLong(code.len()));
        }
        Ok(Program::with_flags(code, self.flags))
    }

    /// Splits the numbers of an architecture into ranges of equal outcome, in order, the first at 0.
    fn ranges(&self, architecture: Architecture, calls: &[Call]) -> Vec<Range> {
        let counted = calls.iter().filter(|call| call.counts);
        let mut hits: Vec<(u32, usize)> = counted
            .filter_map(|call| Some((architecture.number_in(call.numbers)?, call)))
            .map(|(number, call)| (number, call.position))
            .collect();
        hits.sort_unstable();
        let newest = self.newest(architecture, calls);
        // What no rule decides: the default, or "no such call" for what is newer than all that the profile knows.
        let unnamed = |number: u32| {
            let unknown = newest.is_some_and(|newest| number > newest);
            Outcome::plain(if unknown { Action::Errno(ENOSYS) } else { self.default_action })
        };
        let mut ranges: Vec<Range> = Vec::with_capacity(hits.len() + 2);
        push(&mut ranges, 0, unnamed(0));
        let mut boundary = newest.map(|newest| newest + 1);
        for group in hits.chunk_by(|one, other| one.0 == other.0) {
            let number = group[0].0;
            // Private ranges far above (32-bit ARM) have rules beyond it.
            if let Some(first_unknown) = boundary.take_if(|first_unknown| number >= *first_unknown) {
                push(&mut ranges, first_unknown, unnamed(first_unknown));
            }
            push(&mut ranges, number, self.outcome(architecture, group.iter().map(|(_, call)| &calls[*call])));
            push(&mut ranges, number.saturating_add(1), unnamed(number.saturating_add(1)));
        }
        if let Some(first_unknown) = boundary {
            push(&mut ranges, first_unknown, unnamed(first_unknown));
        }
        ranges
    }

    /// What happens to one call: conditions in order, then the first rule without any, then the default.
    fn outcome<'a>(&self, architecture: Architecture, calls: impl Iterator<Item = &'a Call>) -> Outcome {
        let mut last = None;
        let mut checks = Vec::new();
        for call in calls {
            let rule = &self.rules[call.rule];
            let conditions = call.selector.as_ref().map_or(rule.conditions.as_slice(), std::slice::from_ref);
            if conditions.is_empty() {
                last = last.or(Some(rule.action));
            } else {
                checks.push((conditions.to_vec(), rule.action));
            }
        }
        let last = last.unwrap_or(self.default_action);
        // Checks at the end that lead to the same outcome need not be made.
        while checks.last().is_some_and(|(_, action)| *action == last) {
            checks.pop();
        }
        Outcome { narrow: !checks.is_empty() && architecture.is_narrow(), checks, last }
    }

    /// The highest number that the profile knows, if what is above is to be taken for unknown.
    fn newest(&self, architecture: Architecture, calls: &[Call]) -> Option<u32> {
        if !self.default_action.hides_unknown_calls() {
            return None;
        }
        let numbers = calls.iter().filter_map(|call| architecture.number_in(call.numbers));
        numbers.filter(|number| architecture.is_ordinary(*number)).max()
    }

    /// Looks every name up, once for all architectures.
    fn calls(&self, native: Architecture, capabilities: CapabilitySet, kernel: (u32, u32)) -> Vec<Call> {
        let mut calls = Vec::with_capacity(512);
        for (position, rule) in self.rules.iter().enumerate() {
            let counts = rule.counts(native, capabilities, kernel);
            for name in &rule.names {
                let mut add = |name: &str, selector| {
                    let numbers = architecture::numbers(name)?;
                    calls.push(Call { numbers, position: calls.len(), rule: position, counts, selector });
                    Some(())
                };
                add(name, None);
                // Conditions are on the arguments of the direct call; those of the carrier are in memory, out of sight.
                if rule.conditions.is_empty()
                    && let Some(carrier) = architecture::carrier(name)
                {
                    add(carrier.name, Some(carrier.condition()));
                }
            }
        }
        calls
    }
}

/// One name of one rule.
#[derive(Clone, Copy)]
struct Call {
    numbers: &'static Numbers,
    /// Its own position in the list.
    position: usize,
    /// The rule's position in the profile.
    rule: usize,
    /// Whether the rule counts here; if not, the name is still one that the profile knows.
    counts: bool,
    /// For a call made through another one: the condition on the carrier's first argument.
    selector: Option<Condition>,
}

impl Rule {
    pub(super) fn counts(&self, native: Architecture, capabilities: CapabilitySet, kernel: (u32, u32)) -> bool {
        capabilities.intersection(self.with_capabilities) == self.with_capabilities
            && capabilities.intersection(self.without_capabilities) == CapabilitySet::EMPTY
            && (self.with_architectures.is_empty() || self.with_architectures.contains(&native))
            && !self.without_architectures.contains(&native)
            && self.minimum_kernel.is_none_or(|minimum| kernel >= minimum)
    }
}

/// From `start` to the next range's start, one outcome.
#[derive(Clone, Debug)]
struct Range {
    start: u32,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    checks: Vec<(Vec<Condition>, Action)>,
    last: Action,
    /// Whether only the lower halves of the arguments count.
    narrow: bool,
}

impl Outcome {
    fn plain(action: Action) -> Self {
        Self { checks: Vec::new(), last: action, narrow: false }
    }
}

/// Appends a range, or corrects the last one if it starts there too; neighbours of equal outcome become one.
fn push(ranges: &mut Vec<Range>, start: u32, outcome: Outcome) {
    ranges.pop_if(|last| last.start == start);
    if ranges.last().is_none_or(|last| last.outcome != outcome) {
        ranges.push(Range { start, outcome });
    }
}

/// Emits a search for the range of the number in the accumulator. Every path returns, so that nothing follows.
fn emit_tree(code: &mut Vec<Instruction>, ranges: &[Range], big_endian: bool) {
    let (lower, upper) = match ranges {
        [] => return,
        [only] => return emit_outcome(code, &only.outcome, big_endian),
        _ => ranges.split_at(ranges.len() / 2),
    };
    let at = code.len();
    code.push(jump(NOT_LESS, upper[0].start, 0, 0));
    emit_tree(code, lower, big_endian);
    let length = code.len() - at - 1;
    match u8::try_from(length) {
        Ok(length) => code[at].jump_true = length,
        Err(_) => {
            // Too far for a conditional jump: hop over an unconditional one.
            code[at].jump_false = 1;
            let far = u32::try_from(length).unwrap_or(u32::MAX);
            code.insert(at + 1, Instruction { code: ALWAYS, jump_true: 0, jump_false: 0, k: far });
        }
    }
    emit_tree(code, upper, big_endian);
}

fn emit_outcome(code: &mut Vec<Instruction>, outcome: &Outcome, big_endian: bool) {
    for (conditions, action) in &outcome.checks {
        let start = code.len();
        for condition in conditions {
            // Where in `struct seccomp_data` the halves of the argument are.
            let base = 16 + 8 * u32::from(condition.argument);
            let (low_at, high_at) = if big_endian { (base + 4, base) } else { (base, base + 4) };
            if outcome.narrow {
                emit_narrow(code, &condition.narrowed(), low_at);
            } else {
                emit_condition(code, condition, low_at, high_at);
            }
        }
        code.push(give(*action));
        let end = code.len();
        for (position, instruction) in code.iter_mut().enumerate().skip(start) {
            // At most six conditions of six instructions each: always within reach.
            let distance = u8::try_from(end - position - 1).unwrap_or(u8::MAX);
            if instruction.code & CLASS == JUMP_CLASS {
                for target in [&mut instruction.jump_true, &mut instruction.jump_false] {
                    if *target == FAIL {
                        *target = distance;
                    }
                }
            }
        }
    }
    code.push(give(outcome.last));
}

/// As [`emit_condition`], for an argument of 32 bits.
fn emit_narrow(code: &mut Vec<Instruction>, condition: &Condition, at: u32) {
    let value = half(condition.value);
    code.push(load(at));
    if let Comparison::MaskedEqual(mask) = condition.comparison {
        code.push(and(half(mask)));
    }
    code.push(match condition.comparison {
        Comparison::Equal | Comparison::MaskedEqual(_) => jump(EQUAL, value, 0, FAIL),
        Comparison::NotEqual => jump(EQUAL, value, FAIL, 0),
        Comparison::Less => jump(NOT_LESS, value, FAIL, 0),
        Comparison::LessOrEqual => jump(GREATER, value, FAIL, 0),
        Comparison::Greater => jump(GREATER, value, 0, FAIL),
        Comparison::GreaterOrEqual => jump(NOT_LESS, value, 0, FAIL),
    });
}

/// Goes on behind itself when the condition holds, else to [`FAIL`].
fn emit_condition(code: &mut Vec<Instruction>, condition: &Condition, low_at: u32, high_at: u32) {
    let (high, low) = (half(condition.value >> 32), half(condition.value));
    match condition.comparison {
        Comparison::Equal => {
            code.extend([load(high_at), jump(EQUAL, high, 0, FAIL), load(low_at), jump(EQUAL, low, 0, FAIL)])
        }
        Comparison::NotEqual => {
            code.extend([load(high_at), jump(EQUAL, high, 0, 2), load(low_at), jump(EQUAL, low, FAIL, 0)])
        }
        Comparison::Greater | Comparison::GreaterOrEqual => {
            let last = if condition.comparison == Comparison::Greater { GREATER } else { NOT_LESS };
            code.extend([
                load(high_at),
                jump(GREATER, high, 3, 0),
                jump(EQUAL, high, 0, FAIL),
                load(low_at),
                jump(last, low, 0, FAIL),
            ]);
        }
        Comparison::Less | Comparison::LessOrEqual => {
            let last = if condition.comparison == Comparison::Less { NOT_LESS } else { GREATER };
            code.extend([
                load(high_at),
                jump(GREATER, high, FAIL, 0),
                jump(EQUAL, high, 0, 2),
                load(low_at),
                jump(last, low, FAIL, 0),
            ]);
        }
        Comparison::MaskedEqual(mask) => {
            let (mask_high, mask_low) = (half(mask >> 32), half(mask));
            if mask_high != 0 || high != 0 {
                code.extend([load(high_at), and(mask_high), jump(EQUAL, high, 0, FAIL)]);
            }
            code.extend([load(low_at), and(mask_low), jump(EQUAL, low, 0, FAIL)]);
        }
    }
}

/// The lower 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "that is what it is for")]
const fn half(value: u64) -> u32 {
    value as u32
}

const fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD_WORD, jump_true: 0, jump_false: 0, k: offset }
}

const fn and(mask: u32) -> Instruction {
    Instruction { code: AND, jump_true: 0, jump_false: 0, k: mask }
}

const fn jump(code: u16, k: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, k }
}

fn give(action: Action) -> Instruction {
    Instruction { code: RETURN, jump_true: 0, jump_false: 0, k: action.value() }
}

/// Major and minor version of the running kernel.
pub(crate) fn kernel_version() -> (u32, u32) {
    let uname = rustix::system::uname();
    let mut numbers = uname.release().to_str().unwrap_or_default().split(|letter: char| !letter.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0);
    (next(), next())
}

pub(super) const LOAD_WORD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const RETURN: u16 = 0x06;
pub(super) const ALWAYS: u16 = 0x05;
pub(super) const EQUAL: u16 = 0x15;
pub(super) const GREATER: u16 = 0x25;
pub(super) const NOT_LESS: u16 = 0x35;
const CLASS: u16 = 0x07;
const JUMP_CLASS: u16 = 0x05;
/// A jump out of a list of conditions, until its length is known. No real jump in there is that far.
const FAIL: u8 = u8::MAX;
/// Offsets in `struct seccomp_data`.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCHITECTURE: u32 = 4;
/// `BPF_MAXINSNS`.
const LONGEST: usize = 4096;

#[cfg(test)]
mod tests;
