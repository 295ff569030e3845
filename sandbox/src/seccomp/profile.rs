//! What a filter is to do, independent of architecture and instructions.

use std::borrow::Cow;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

use super::{Architecture, ProfileError};
use crate::capabilities::CapabilitySet;

/// A whole filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// What happens to calls that no rule names.
    pub default_action: Action,
    /// Which architectures may call at all. Calls of others end the process.
    pub architectures: Vec<Architecture>,
    /// The rules, in order.
    pub rules: Vec<Rule>,
    /// `SECCOMP_FILTER_FLAG_*` bits.
    pub flags: u32,
}

/// What happens to some calls.
#[derive(Clone, Debug, PartialEq, Eq)]
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
        }
    }
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
    /// Converts the spec's form.
    ///
    /// # Errors
    /// [`ProfileError`] for what does not exist or is not done here (`SCMP_ACT_NOTIFY`).
    pub fn from_oci(spec: &LinuxSeccomp) -> Result<Self, ProfileError> {
        let default_errno = spec.default_errno_ret();
        let mut rules = Vec::new();
        for syscall in spec.syscalls().iter().flatten() {
            let mut conditions = Vec::new();
            for argument in syscall.args().iter().flatten() {
                let operator = operator_of(argument.op());
                conditions.push(condition(argument.index(), operator, argument.value(), argument.value_two())?);
            }
            let action = action_of(syscall.action(), syscall.errno_ret().or(default_errno))?;
            let names: Vec<_> = syscall.names().iter().cloned().map(Cow::Owned).collect();
            push_rules(&mut rules, &Rule { names, ..Rule::new([], action) }, conditions);
        }
        let mut architectures = Vec::new();
        for architecture in spec.architectures().iter().flatten() {
            // Those of other machines cannot call here anyway.
            architectures.extend(Architecture::from_scmp(&scmp_name(*architecture)));
        }
        let mut flags = 0;
        for flag in spec.flags().iter().flatten() {
            flags |= match flag {
                // Harmless for a process with one thread.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => 2,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 4,
                // Only means something with a listener.
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
            };
        }
        Ok(Self { default_action: action_of(spec.default_action(), default_errno)?, architectures, rules, flags }
            .with_native())
    }

    /// Converts to the spec's form, with the rules that count for `capabilities` on this machine.
    ///
    /// The spec gives no order to rules for one call: where that matters, as in the default profile, take
    /// [`docker_default_portable`](Self::docker_default_portable).
    #[must_use]
    pub fn to_oci(&self, capabilities: CapabilitySet) -> LinuxSeccomp {
        let native = Architecture::native();
        let kernel = super::kernel_version();
        let counts = |rule: &&Rule| native.is_none_or(|native| rule.counts(native, capabilities, kernel));
        let mut spec = LinuxSeccomp::default();
        let (action, errno) = oci_action(self.default_action);
        spec.set_default_action(action).set_default_errno_ret(errno);
        let architectures = self.architectures.iter().filter_map(|architecture| architecture.scmp().parse().ok());
        spec.set_architectures(Some(architectures.collect()));
        let syscalls = self.rules.iter().filter(counts).map(|rule| {
            let (action, errno) = oci_action(rule.action);
            let mut syscall = LinuxSyscall::default();
            syscall.set_names(rule.names.iter().map(|name| name.clone().into_owned()).collect());
            syscall.set_action(action).set_errno_ret(errno);
            if !rule.conditions.is_empty() {
                syscall.set_args(Some(rule.conditions.iter().map(oci_argument).collect()));
            }
            syscall
        });
        spec.set_syscalls(Some(syscalls.collect()));
        spec
    }

    /// Tells whether a process with these capabilities may get through with `name`, with some arguments at least.
    #[must_use]
    pub fn may_allow(&self, name: &str, capabilities: CapabilitySet) -> bool {
        let lets_through = |action| matches!(action, Action::Allow | Action::Log | Action::Trace(_));
        let Some(native) = Architecture::native() else { return true };
        let kernel = super::kernel_version();
        let named = |rule: &&Rule| rule.names.iter().any(|known| known == name);
        let mut rules = self.rules.iter().filter(|rule| rule.counts(native, capabilities, kernel)).filter(named);
        // The first rule without conditions ends the matter, whatever the conditional ones leave to it.
        let last =
            rules.clone().find(|rule| rule.conditions.is_empty()).map_or(self.default_action, |rule| rule.action);
        lets_through(last) || rules.any(|rule| !rule.conditions.is_empty() && lets_through(rule.action))
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

fn operator_of(operator: LinuxSeccompOperator) -> Operator {
    Operator::Plain(match operator {
        LinuxSeccompOperator::ScmpCmpNe => Comparison::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => Comparison::Less,
        LinuxSeccompOperator::ScmpCmpLe => Comparison::LessOrEqual,
        LinuxSeccompOperator::ScmpCmpEq => Comparison::Equal,
        LinuxSeccompOperator::ScmpCmpGe => Comparison::GreaterOrEqual,
        LinuxSeccompOperator::ScmpCmpGt => Comparison::Greater,
        LinuxSeccompOperator::ScmpCmpMaskedEq => return Operator::Masked,
    })
}

fn action_of(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Action, ProfileError> {
    action_by_name(&action.to_string(), errno)
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
        "SCMP_ACT_NOTIFY" => return Err(ProfileError::UnsupportedAction("SCMP_ACT_NOTIFY")),
        _ => return Err(ProfileError::Action(name.to_owned())),
    })
}

fn scmp_name(architecture: oci_spec::runtime::Arch) -> String {
    architecture.to_string()
}

fn oci_action(action: Action) -> (LinuxSeccompAction, Option<u32>) {
    match action {
        Action::Allow => (LinuxSeccompAction::ScmpActAllow, None),
        Action::Log => (LinuxSeccompAction::ScmpActLog, None),
        Action::Errno(errno) => (LinuxSeccompAction::ScmpActErrno, Some(errno.into())),
        Action::Trace(message) => (LinuxSeccompAction::ScmpActTrace, Some(message.into())),
        Action::Trap => (LinuxSeccompAction::ScmpActTrap, None),
        Action::KillThread => (LinuxSeccompAction::ScmpActKillThread, None),
        Action::KillProcess => (LinuxSeccompAction::ScmpActKillProcess, None),
    }
}

fn oci_argument(condition: &Condition) -> LinuxSeccompArg {
    let (operator, value, second) = match condition.comparison {
        Comparison::Equal => (LinuxSeccompOperator::ScmpCmpEq, condition.value, None),
        Comparison::NotEqual => (LinuxSeccompOperator::ScmpCmpNe, condition.value, None),
        Comparison::Less => (LinuxSeccompOperator::ScmpCmpLt, condition.value, None),
        Comparison::LessOrEqual => (LinuxSeccompOperator::ScmpCmpLe, condition.value, None),
        Comparison::Greater => (LinuxSeccompOperator::ScmpCmpGt, condition.value, None),
        Comparison::GreaterOrEqual => (LinuxSeccompOperator::ScmpCmpGe, condition.value, None),
        Comparison::MaskedEqual(mask) => (LinuxSeccompOperator::ScmpCmpMaskedEq, mask, Some(condition.value)),
    };
    let argument = LinuxSeccompArgBuilder::default().index(usize::from(condition.argument)).value(value).op(operator);
    let argument = match second {
        Some(second) => argument.value_two(second),
        None => argument,
    };
    argument.build().expect("every field of the builder is optional")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_allowed_depends_on_capabilities_and_conditions() {
        let docker = Profile::docker_default();
        let sys_admin = CapabilitySet::parse("SYS_ADMIN").unwrap();
        assert!(docker.may_allow("read", CapabilitySet::EMPTY) && docker.may_allow("clone", CapabilitySet::EMPTY));
        assert!(!docker.may_allow("mount", CapabilitySet::DOCKER) && docker.may_allow("mount", sys_admin));
        assert!(
            !docker.may_allow("clone3", CapabilitySet::DOCKER) && !docker.may_allow("nonsense", CapabilitySet::ALL)
        );
    }

    #[test]
    fn the_spec_form_compiles_to_the_same_program() {
        for capabilities in [CapabilitySet::DOCKER, CapabilitySet::ALL] {
            let profile = Profile::docker_default_portable();
            let there_and_back = Profile::from_oci(&profile.to_oci(capabilities)).unwrap();
            assert_eq!(
                there_and_back.compile(capabilities).unwrap().instructions,
                profile.compile(capabilities).unwrap().instructions
            );
        }
    }
}
