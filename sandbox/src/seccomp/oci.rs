//! Profiles in the form of the OCI runtime specification, both ways.

use std::borrow::Cow;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

use super::profile::{Operator, action_by_name, condition, push_rules};
use super::{Action, Architecture, Comparison, Condition, Profile, ProfileError, Rule, flags};
use crate::capabilities::CapabilitySet;

impl Profile {
    /// Converts the spec's form.
    ///
    /// # Errors
    /// [`ProfileError`] for what does not exist.
    pub fn from_oci(spec: &LinuxSeccomp) -> Result<Self, ProfileError> {
        let default_errno = spec.default_errno_ret();
        let mut rules = Vec::new();
        for syscall in spec.syscalls().iter().flatten() {
            let mut conditions = Vec::new();
            for argument in syscall.args().iter().flatten() {
                let operator = operator_of(argument.op());
                conditions.push(condition(argument.index(), operator, argument.value(), argument.value_two())?);
            }
            // A rule's own errno is EPERM unless it says otherwise, whatever the default action's is.
            let action = action_of(syscall.action(), syscall.errno_ret())?;
            let names: Vec<_> = syscall.names().iter().cloned().map(Cow::Owned).collect();
            push_rules(&mut rules, &Rule { names, ..Rule::new([], action) }, conditions);
        }
        let mut architectures = Vec::new();
        for architecture in spec.architectures().iter().flatten() {
            // Those of other machines cannot call here anyway.
            architectures.extend(Architecture::from_scmp(&architecture.to_string()));
        }
        let flags = spec.flags().iter().flatten().fold(0, |bits, flag| {
            bits | match flag {
                // Means nothing for a process with one thread.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => flags::LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => flags::SPEC_ALLOW,
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => flags::WAIT_KILLABLE_RECV,
            }
        });
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
        let listed = [
            (flags::LOG, LinuxSeccompFilterFlag::SeccompFilterFlagLog),
            (flags::SPEC_ALLOW, LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow),
            (flags::WAIT_KILLABLE_RECV, LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv),
        ];
        let set = listed.into_iter().filter(|(bit, _)| self.flags & bit != 0).map(|(_, flag)| flag);
        spec.set_flags((self.flags != 0).then(|| set.collect()));
        spec
    }
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

fn oci_action(action: Action) -> (LinuxSeccompAction, Option<u32>) {
    match action {
        Action::Allow => (LinuxSeccompAction::ScmpActAllow, None),
        Action::Log => (LinuxSeccompAction::ScmpActLog, None),
        Action::Errno(errno) => (LinuxSeccompAction::ScmpActErrno, Some(errno.into())),
        Action::Trace(message) => (LinuxSeccompAction::ScmpActTrace, Some(message.into())),
        Action::Trap => (LinuxSeccompAction::ScmpActTrap, None),
        Action::KillThread => (LinuxSeccompAction::ScmpActKillThread, None),
        Action::KillProcess => (LinuxSeccompAction::ScmpActKillProcess, None),
        Action::Notify => (LinuxSeccompAction::ScmpActNotify, None),
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
