//! What a filter is to do, independent of architecture and instructions.

use std::borrow::Cow;

use super::{Architecture, Call, ProfileError};
use crate::capabilities::CapabilitySet;

/// A whole filter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Profile {
    /// What happens to calls that no rule names.
    pub default_action: Action,
    /// Which architectures may call at all. Calls of others end the process.
    pub architectures: Vec<Architecture>,
    /// The rules, in order.
    pub rules: Vec<Rule>,
    /// Bits of [`flags`].
    pub flags: u32,
}

/// What happens to some calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The calls. Names that an architecture does not have are skipped there.
    pub names: Vec<Cow<'static, str>>,
    /// What happens.
    pub action: Action,
    /// All of these must hold.
    pub conditions: Vec<Condition>,
    /// The rule counts only with all of these capabilities.
    pub with_capabilities: CapabilitySet,
    /// It does not count with any of these.
    pub without_capabilities: CapabilitySet,
    /// It counts only on these architectures; empty for all. Companions count as their native one.
    pub with_architectures: Vec<Architecture>,
    /// It does not count on these.
    pub without_architectures: Vec<Architecture>,
    /// It counts only from this kernel on.
    pub minimum_kernel: Option<(u32, u32)>,
}

impl Rule {
    /// Makes a rule that always counts.
    #[must_use]
    pub fn new(names: impl IntoIterator<Item = &'static str>, action: Action) -> Self {
        Self {
            names: names.into_iter().map(Cow::Borrowed).collect(),
            action,
            conditions: Vec::new(),
            with_capabilities: CapabilitySet::EMPTY,
            without_capabilities: CapabilitySet::EMPTY,
            with_architectures: Vec::new(),
            without_architectures: Vec::new(),
            minimum_kernel: None,
        }
    }
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It goes on.
    Allow,
    /// It goes on and is logged.
    Log,
    /// It fails with this errno.
    Errno(u16),
    /// A tracer decides, with this message; without a tracer it fails with `ENOSYS`.
    Trace(u16),
    /// The thread gets `SIGSYS`.
    Trap,
    /// The thread dies.
    KillThread,
    /// The process dies.
    KillProcess,
    /// Whoever has the filter's listener decides; without one it fails with `ENOSYS`.
    Notify,
}

impl Action {
    /// Returns the filter's return value.
    #[must_use]
    pub fn value(self) -> u32 {
        match self {
            Self::Allow => 0x7fff_0000,
            Self::Log => 0x7ffc_0000,
            Self::Errno(errno) => 0x0005_0000 | u32::from(errno),
            Self::Trace(message) => 0x7ff0_0000 | u32::from(message),
            Self::Trap => 0x0003_0000,
            Self::KillThread => 0,
            Self::KillProcess => 0x8000_0000,
            Self::Notify => 0x7fc0_0000,
        }
    }

    /// Tells whether a call may go on under this action. A tracer and a listener may let it.
    #[must_use]
    pub fn may_permit(self) -> bool {
        matches!(self, Self::Allow | Self::Log | Self::Trace(_) | Self::Notify)
    }

    /// Tells whether the action, as a default, is for calls that the profile means to refuse: those newer than it are
    /// then said not to exist. As in runc, a tracer is taken to know new calls by itself.
    pub(super) fn hides_unknown_calls(self) -> bool {
        match self {
            Self::Errno(errno) => errno != ENOSYS,
            Self::Trap | Self::KillThread | Self::KillProcess | Self::Notify => true,
            Self::Allow | Self::Log | Self::Trace(_) => false,
        }
    }
}

/// What is given to a filter beside its instructions: `SECCOMP_FILTER_FLAG_*`.
pub mod flags {
    /// Every answer but "allow" is logged by the kernel.
    pub const LOG: u32 = 1 << 1;
    /// Mitigations of speculation are left to the process.
    pub const SPEC_ALLOW: u32 = 1 << 2;
    /// Loading it returns a listener. Set by the compiler.
    pub const NEW_LISTENER: u32 = 1 << 3;
    /// A call that the listener has received waits for the answer, whatever signal comes but a fatal one. Linux 5.19.
    pub const WAIT_KILLABLE_RECV: u32 = 1 << 5;
}

/// A comparison of one argument, as unsigned 64-bit numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    /// Which argument, from 0 to 5.
    pub argument: u8,
    /// How it is compared.
    pub comparison: Comparison,
    /// With what.
    pub value: u64,
}

/// How an argument is compared with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Comparison {
    /// Equal.
    Equal,
    /// Not equal.
    NotEqual,
    /// Less.
    Less,
    /// Less or equal.
    LessOrEqual,
    /// Greater.
    Greater,
    /// Greater or equal.
    GreaterOrEqual,
    /// Equal after masking the argument with this.
    MaskedEqual(u64),
}

impl Condition {
    /// Returns the condition as an architecture with 32-bit arguments has it: the low halves are compared, as
    /// libseccomp does.
    #[must_use]
    pub(super) fn narrowed(self) -> Self {
        let low = |value: u64| value & 0xffff_ffff;
        let comparison = match self.comparison {
            Comparison::MaskedEqual(mask) => Comparison::MaskedEqual(low(mask)),
            plain => plain,
        };
        Self { comparison, value: low(self.value), ..self }
    }

    /// Tells whether the condition holds for an argument.
    #[must_use]
    pub fn holds(&self, argument: u64) -> bool {
        match self.comparison {
            Comparison::Equal => argument == self.value,
            Comparison::NotEqual => argument != self.value,
            Comparison::Less => argument < self.value,
            Comparison::LessOrEqual => argument <= self.value,
            Comparison::Greater => argument > self.value,
            Comparison::GreaterOrEqual => argument >= self.value,
            Comparison::MaskedEqual(mask) => argument & mask == self.value,
        }
    }
}

impl Profile {
    /// Tells whether a process with these capabilities may get through with `name`, with some arguments at least.
    #[must_use]
    pub fn may_allow(&self, name: &str, capabilities: CapabilitySet) -> bool {
        let Some(native) = Architecture::native() else { return true };
        let kernel = super::kernel_version();
        let named = |rule: &&Rule| rule.names.iter().any(|known| known == name);
        let mut rules = self.rules.iter().filter(|rule| rule.counts(native, capabilities, kernel)).filter(named);
        // The first rule without conditions ends the matter, whatever the conditional ones leave to it.
        let last =
            rules.clone().find(|rule| rule.conditions.is_empty()).map_or(self.default_action, |rule| rule.action);
        last.may_permit() || rules.any(|rule| !rule.conditions.is_empty() && rule.action.may_permit())
    }

    /// Tells whether a process with these capabilities gets through with `name` whatever its arguments are.
    #[must_use]
    pub fn always_allows(&self, name: &str, capabilities: CapabilitySet) -> bool {
        let Some(native) = Architecture::native() else { return false };
        let kernel = super::kernel_version();
        let named = |rule: &&Rule| rule.names.iter().any(|known| known == name);
        let rules = self.rules.iter().filter(|rule| rule.counts(native, capabilities, kernel)).filter(named);
        let lets_through = |action| matches!(action, Action::Allow | Action::Log);
        let last =
            rules.clone().find(|rule| rule.conditions.is_empty()).map_or(self.default_action, |rule| rule.action);
        lets_through(last) && rules.clone().all(|rule| rule.conditions.is_empty() || lets_through(rule.action))
    }

    /// Tells whether a process with these capabilities gets through with these flags of `clone`.
    #[must_use]
    pub fn allows_clone(&self, flags: u64, capabilities: CapabilitySet) -> bool {
        let Some(native) = Architecture::native() else { return false };
        let Some(number) = native.number("clone") else { return false };
        let call = Call { architecture: native.audit_number(), number, arguments: [flags, 0, 0, 0, 0, 0] };
        let action = self.decide(native, capabilities, super::kernel_version(), native, &call);
        matches!(action, Action::Allow | Action::Log)
    }

    /// Returns the capabilities that decide whether some rule counts.
    #[must_use]
    pub fn deciding_capabilities(&self) -> CapabilitySet {
        let sets = self.rules.iter().flat_map(|rule| [rule.with_capabilities, rule.without_capabilities]);
        CapabilitySet::from_bits(sets.fold(0, |bits, set| bits | set.bits()))
    }

    /// Returns the names that no architecture has a call of: misspelt, or of machines that have no table here.
    #[must_use]
    pub fn unknown_names(&self) -> Vec<&str> {
        let names = self.rules.iter().flat_map(|rule| &rule.names).map(AsRef::as_ref);
        let mut unknown: Vec<&str> = names.filter(|name| super::architecture::numbers(name).is_none()).collect();
        unknown.sort_unstable();
        unknown.dedup();
        unknown
    }

    /// Adds the native architecture: a profile without it would let nothing run.
    pub(super) fn with_native(mut self) -> Self {
        if let Some(native) = Architecture::native()
            && !self.architectures.contains(&native)
        {
            self.architectures.insert(0, native);
        }
        self
    }
}

/// Adds `rule` with its conditions. As runc does: conditions on one and the same argument are alternatives, since
/// libseccomp cannot have two of them in one rule.
pub(super) fn push_rules(rules: &mut Vec<Rule>, rule: &Rule, conditions: Vec<Condition>) {
    let repeats = conditions.iter().enumerate().any(|(position, condition)| {
        conditions[..position].iter().any(|earlier| earlier.argument == condition.argument)
    });
    if repeats {
        rules.extend(conditions.into_iter().map(|condition| Rule { conditions: vec![condition], ..rule.clone() }));
    } else {
        rules.push(Rule { conditions, ..rule.clone() });
    }
}

pub(super) fn condition(
    index: usize,
    operator: Operator,
    value: u64,
    second: Option<u64>,
) -> Result<Condition, ProfileError> {
    let argument = u8::try_from(index).ok().filter(|index| *index < 6).ok_or(ProfileError::ArgumentIndex(index))?;
    Ok(match operator {
        Operator::Plain(comparison) => Condition { argument, comparison, value },
        // The first value is the mask here, the second what it is compared with.
        Operator::Masked => {
            Condition { argument, comparison: Comparison::MaskedEqual(value), value: second.unwrap_or(0) }
        }
    })
}

/// An operator before its values are known.
#[derive(Clone, Copy)]
pub(super) enum Operator {
    Plain(Comparison),
    Masked,
}

/// Parses libseccomp's name. The errno, `EPERM` unless said otherwise, is for those actions that have one.
pub(super) fn action_by_name(name: &str, errno: Option<u32>) -> Result<Action, ProfileError> {
    // The kernel keeps errnos up to 4095.
    let errno = u16::try_from(errno.unwrap_or(1)).unwrap_or(4095).min(4095);
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_ERRNO" => Action::Errno(errno),
        "SCMP_ACT_TRACE" => Action::Trace(errno),
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_NOTIFY" => Action::Notify,
        _ => return Err(ProfileError::Action(name.to_owned())),
    })
}

pub(super) const ENOSYS: u16 = 38;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_allowed_depends_on_capabilities_and_conditions() {
        let docker = Profile::docker_default();
        let sys_admin = CapabilitySet::parse("SYS_ADMIN").unwrap();
        assert!(docker.may_allow("read", CapabilitySet::EMPTY) && docker.may_allow("clone", CapabilitySet::EMPTY));
        assert!(docker.allows_clone(0x10_8011, CapabilitySet::DOCKER), "a sibling");
        assert!(!docker.allows_clone(0x2000_0000, CapabilitySet::DOCKER), "a pid namespace");
        assert!(!docker.may_allow("mount", CapabilitySet::DOCKER) && docker.may_allow("mount", sys_admin));
        assert!(
            !docker.may_allow("clone3", CapabilitySet::DOCKER) && !docker.may_allow("nonsense", CapabilitySet::ALL)
        );
    }
}
