//! Programs of ours and of libseccomp, made of the same rules, decide the same.

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};

use super::*;

/// What libseccomp makes of a profile whose rules all count. `big_endian` is how the first architecture lays out data.
fn compile(profile: &Profile, big_endian: bool) -> Program {
    let mut context = ScmpFilterContext::new(action(profile.default_action)).unwrap();
    context.remove_arch(ScmpArch::Native).unwrap();
    for architecture in &profile.architectures {
        context.add_arch(scmp_arch(*architecture)).unwrap();
    }
    for rule in profile.rules.iter().filter(|rule| rule.action != profile.default_action) {
        let comparators: Vec<_> = rule.conditions.iter().map(comparator).collect();
        for name in rule.names.iter().filter(|name| is_known(name)) {
            let call = ScmpSyscall::from_name(name).unwrap();
            context.add_rule_conditional(action(rule.action), call, &comparators).unwrap();
        }
    }
    let mut file = tempfile::tempfile().unwrap();
    context.export_bpf(&file).unwrap();
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).unwrap();
    std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    let short = |bytes: &[u8]| {
        let bytes = [bytes[0], bytes[1]];
        if big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    };
    let word = |bytes: &[u8]| {
        let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    let instructions = bytes.chunks_exact(8).map(|bytes| Instruction {
        code: short(bytes),
        jump_true: bytes[2],
        jump_false: bytes[3],
        k: word(&bytes[4..]),
    });
    Program { instructions: instructions.collect(), flags: 0 }
}

/// The installed libseccomp may be older than our table.
fn is_known(name: &str) -> bool {
    ScmpSyscall::from_name(name).is_ok()
}

/// Its tables of some architectures are older than those of others.
fn is_known_on(name: &str, architecture: Architecture) -> bool {
    ScmpSyscall::from_name_by_arch(name, scmp_arch(architecture)).is_ok_and(|call| i32::from(call) >= 0)
}

fn action(action: Action) -> ScmpAction {
    match action {
        Action::Allow => ScmpAction::Allow,
        Action::Log => ScmpAction::Log,
        Action::Errno(errno) => ScmpAction::Errno(errno.into()),
        Action::Trace(message) => ScmpAction::Trace(message),
        Action::Trap => ScmpAction::Trap,
        Action::KillThread => ScmpAction::KillThread,
        Action::KillProcess => ScmpAction::KillProcess,
        Action::Notify => ScmpAction::Notify,
    }
}

fn scmp_arch(architecture: Architecture) -> ScmpArch {
    match architecture {
        Architecture::X86_64 => ScmpArch::X8664,
        Architecture::X86 => ScmpArch::X86,
        Architecture::X32 => ScmpArch::X32,
        Architecture::Aarch64 => ScmpArch::Aarch64,
        Architecture::Arm => ScmpArch::Arm,
        Architecture::Riscv64 => ScmpArch::Riscv64,
        Architecture::S390x => ScmpArch::S390X,
        Architecture::Ppc64le => ScmpArch::Ppc64Le,
        Architecture::Loongarch64 => panic!("newer than the libseccomp that we compare with"),
    }
}

fn comparator(condition: &Condition) -> ScmpArgCompare {
    let operator = match condition.comparison {
        Comparison::Equal => ScmpCompareOp::Equal,
        Comparison::NotEqual => ScmpCompareOp::NotEqual,
        Comparison::Less => ScmpCompareOp::Less,
        Comparison::LessOrEqual => ScmpCompareOp::LessOrEqual,
        Comparison::Greater => ScmpCompareOp::Greater,
        Comparison::GreaterOrEqual => ScmpCompareOp::GreaterEqual,
        Comparison::MaskedEqual(mask) => ScmpCompareOp::MaskedEqual(mask),
    };
    ScmpArgCompare::new(condition.argument.into(), operator, condition.value)
}

/// xorshift64*, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    /// Mostly values where halves and signs meet.
    fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => self.next() % 8,
            1 => self.next(),
            2 => self.next() & 0xffff_ffff,
            3 => 1 << self.below(64),
            4 => ((self.next() % 3) << 32) | (self.next() % 3),
            _ => self.one_of(&[0, 0xffff_ffff, 0x1_0000_0000, u64::MAX, 0x7fff_ffff_ffff_ffff, 1 << 63]),
        }
    }

    fn condition(&mut self, argument: u8, largest: u64, alone: bool) -> Condition {
        let value = self.value() & largest;
        // With a half that is not compared, libseccomp 2.5 forgets the conditions before it.
        let comparison = match self.below(if alone || largest == u64::MAX { 7 } else { 6 }) {
            0 => Comparison::Equal,
            1 => Comparison::NotEqual,
            2 => Comparison::Less,
            3 => Comparison::LessOrEqual,
            4 => Comparison::Greater,
            5 => Comparison::GreaterOrEqual,
            _ => Comparison::MaskedEqual((self.value() | 1 << 32 | 1) & largest),
        };
        // A value with bits outside of the mask never matches; libseccomp has another idea of that.
        let value = if let Comparison::MaskedEqual(mask) = comparison { value & mask } else { value };
        Condition { argument, comparison, value }
    }

    /// One action for all rules of a call: between several libseccomp has no order to speak of.
    fn profile(&mut self, names: &[&'static str]) -> Profile {
        let architectures = match self.below(6) {
            0 => vec![Architecture::X86_64],
            1 => vec![Architecture::X86_64, Architecture::X86],
            2 => vec![Architecture::X86_64, Architecture::X86, Architecture::X32],
            3 => vec![Architecture::Aarch64, Architecture::Arm],
            4 => vec![Architecture::S390x],
            _ => vec![self.one_of(&[Architecture::Riscv64, Architecture::Ppc64le])],
        };
        let actions = [
            Action::Allow,
            Action::Errno(1),
            Action::Errno(71),
            Action::Log,
            Action::Trap,
            Action::Trace(5),
            Action::KillThread,
            Action::KillProcess,
        ];
        let default_action = self.one_of(&actions);
        // Which halves of a larger value a 32-bit architecture compares depends on libseccomp's operator.
        let largest = if architectures.iter().any(|one| one.is_narrow()) { 0xffff_ffff } else { u64::MAX };
        // A call that one of its architectures lacks can make libseccomp 2.5 forget to load the number.
        let exists = |name: &&&str| {
            architectures
                .iter()
                .all(|one| one.number(name).is_some() && is_known_on(name, *one) && !DIFFERENT.contains(*name))
        };
        let names: Vec<&'static str> = names.iter().filter(exists).copied().collect();
        let mut rules: Vec<Rule> = Vec::new();
        for _ in 0..=self.below(12) {
            let name = self.one_of(&names);
            let is_carried = architecture::carrier(name).is_some();
            let action = self.one_of(&[self.one_of_but(&actions, default_action), Action::Notify]);
            if rules.iter().any(|rule| rule.names[0] == name) {
                continue;
            }
            // Alternatives of several conditions each are beyond libseccomp's tree, which then forgets some.
            let alternatives = self.below(4);
            for _ in 0..=alternatives {
                let mut arguments = [0, 1, 2, 3, 4, 5];
                for at in 0..6 {
                    arguments.swap(at, self.below(6));
                }
                // The kernel's carriers have their arguments in memory.
                let most = if alternatives > 0 { 2 } else { 4 };
                let count = if is_carried { 0 } else { self.below(most) };
                let mut conditions: Vec<_> =
                    arguments[..count].iter().map(|argument| self.condition(*argument, largest, count == 1)).collect();
                // Of inequalities that are alternatives it mixes up the halves.
                if alternatives > 0 {
                    conditions.iter_mut().for_each(|condition| condition.comparison = Comparison::Equal);
                }
                let unconditional = conditions.is_empty();
                if unconditional {
                    rules.retain(|rule| rule.names[0] != name);
                }
                rules.push(Rule { conditions, ..Rule::new([name], action) });
                if unconditional {
                    break;
                }
            }
        }
        Profile { default_action, architectures, rules, flags: 0 }
    }

    fn one_of_but(&self, list: &[Action], but: Action) -> Action {
        let mut copy = Random(self.0 ^ 0x9e37_79b9);
        loop {
            let one = copy.one_of(list);
            if one != but {
                return one;
            }
        }
    }
}

/// Compares the two programs on the calls that the profile names and their neighbours.
fn compare(profile: &Profile, capabilities: CapabilitySet, random: &mut Random, values: &[u64]) -> usize {
    let native = profile.architectures[0];
    let ours = profile.compile_for(native, capabilities, (6, 1)).unwrap();
    let counted = Profile {
        rules: profile.rules.iter().filter(|rule| rule.counts(native, capabilities, (6, 1))).cloned().collect(),
        ..profile.clone()
    };
    let theirs = compile(&counted, native.is_big_endian());
    let calls = profile.calls(native, capabilities, (6, 1));
    let mut compared = 0;
    for architecture in &profile.architectures {
        let newest = profile.newest(*architecture, &calls);
        let named: Vec<u32> = calls.iter().filter_map(|call| architecture.number_in(call.numbers)).collect();
        let mut numbers: Vec<u32> =
            named.iter().flat_map(|number| [number.saturating_sub(1), *number, number + 1]).collect();
        let base = if *architecture == Architecture::X32 { X32_BIT } else { 0 };
        numbers.extend((0..8).map(|_| base + u32::try_from(random.below(450)).unwrap()));
        numbers.sort_unstable();
        numbers.dedup();
        // What is newer than libseccomp, or than the profile, is not its to decide.
        let unknown: Vec<u32> = calls
            .iter()
            .filter(|call| !is_known_on(architecture::name_of(call.numbers), *architecture))
            .filter_map(|call| architecture.number_in(call.numbers))
            .collect();
        numbers.retain(|number| *number >= base && !unknown.contains(number));
        let carriers = ["socketcall", "ipc"].map(|name| architecture.number(name));
        for number in numbers {
            for round in 0..values.len() + 8 {
                let mut arguments =
                    [0; 6].map(|_: u64| if random.below(2) == 0 { random.one_of(values) } else { random.value() });
                if let Some(value) = values.get(round) {
                    arguments = [*value; 6];
                }
                // The kernel gives 32-bit calls no more, and looks at no more of a carrier's selector.
                let mask = match architecture {
                    Architecture::X86 | Architecture::Arm => 0xffff_ffff,
                    _ if carriers.contains(&Some(number)) => 0xffff,
                    _ => u64::MAX,
                };
                let mut arguments = arguments.map(|argument| argument & mask);
                if carriers.contains(&Some(number)) {
                    arguments[0] &= 0x1f;
                }
                let call = Call { architecture: architecture.audit_number(), number, arguments };
                let expected = match newest {
                    Some(newest) if number > newest && !named.contains(&number) => Action::Errno(ENOSYS).value(),
                    _ => theirs.decide(&call, native.is_big_endian()).unwrap(),
                };
                let found = ours.decide(&call, native.is_big_endian()).unwrap();
                assert_eq!(found, expected, "{architecture:?} {call:x?}: {found:#x} {expected:#x}\n{profile:#x?}");
                compared += 1;
            }
        }
    }
    compared
}

fn seed(default: u64) -> u64 {
    std::env::var("STRATA_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// `STRATA_SECCOMP_PROFILES` makes it longer.
#[test]
fn libseccomp_decides_the_same_for_random_profiles() {
    let names: Vec<&'static str> = architecture::names().filter(|name| is_known(name)).collect();
    // Those with a meaning of their own as numbers, and those that libseccomp rewrites.
    let names: Vec<_> = names.into_iter().filter(|name| !matches!(*name, "socketcall" | "ipc")).collect();
    let count = std::env::var("STRATA_SECCOMP_PROFILES").ok().and_then(|text| text.parse().ok()).unwrap_or(400);
    let mut compared = 0;
    for number in 0..count {
        let mut random = Random(seed(0x5eed).wrapping_add(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let profile = random.profile(&names);
        let mut values = interesting(&profile);
        values.truncate(40);
        compared += compare(&profile, CapabilitySet::EMPTY, &mut random, &values);
    }
    assert!(compared > 100_000, "{compared}");
}

/// The kernel's tables have them for one word size of POWER each, and libseccomp's for the other.
const DIFFERENT: &[&str] = &["sys_debug_setcontext"];

#[test]
fn libseccomp_has_the_same_numbers() {
    let mut different = Vec::new();
    for architecture in Architecture::ALL.into_iter().filter(|one| *one != Architecture::Loongarch64) {
        for name in architecture::names().filter(|name| is_known_on(name, architecture)) {
            let theirs = ScmpSyscall::from_name_by_arch(name, scmp_arch(architecture)).unwrap();
            if architecture.number(name).is_some_and(|ours| i64::from(ours) != i64::from(i32::from(theirs))) {
                different.push((architecture, name, architecture.number(name), theirs));
            }
        }
    }
    different.retain(|(_, name, ..)| !DIFFERENT.contains(name));
    assert!(different.is_empty(), "{different:#?}");
}

#[test]
fn libseccomp_decides_the_same_for_dockers_profile() {
    let mut random = Random(seed(7));
    for native in [Architecture::X86_64, Architecture::Aarch64] {
        let architectures = std::iter::once(native).chain(native.companions().iter().copied()).collect();
        let profile = Profile { architectures, ..Profile::docker_default_portable() };
        let values = interesting(&profile);
        for capabilities in [CapabilitySet::DOCKER, CapabilitySet::EMPTY, CapabilitySet::ALL] {
            compare(&profile, capabilities, &mut random, &values);
        }
    }
}
