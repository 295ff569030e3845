//! The compiled program, run by an interpreter, against the profile's meaning, computed directly.

use super::*;

/// Runs a program on one call, as the kernel would.
fn run(program: &Program, architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let word = |offset: u32| match offset {
        NUMBER => number,
        ARCHITECTURE => architecture,
        _ => {
            let argument = arguments[usize::try_from((offset - 16) / 8).unwrap()];
            u32::try_from(if (offset - 16).is_multiple_of(8) { argument & 0xffff_ffff } else { argument >> 32 })
                .unwrap()
        }
    };
    let mut accumulator = 0;
    let mut at = 0;
    loop {
        let instruction = program.instructions[at];
        at += 1;
        let mut branch =
            |holds: bool| at += usize::from(if holds { instruction.jump_true } else { instruction.jump_false });
        match instruction.code {
            LOAD_WORD => accumulator = word(instruction.k),
            AND => accumulator &= instruction.k,
            EQUAL => branch(accumulator == instruction.k),
            GREATER => branch(accumulator > instruction.k),
            NOT_LESS => branch(accumulator >= instruction.k),
            ALWAYS => at += usize::try_from(instruction.k).unwrap(),
            RETURN => return instruction.k,
            other => panic!("operation {other:#x}"),
        }
    }
}

/// What the profile means for a call, without any compiling.
fn meaning(
    profile: &Profile,
    native: Architecture,
    capabilities: CapabilitySet,
    architecture: Architecture,
    number: u32,
    arguments: [u64; 6],
) -> Action {
    let named = |rule: &&Rule| rule.names.iter().any(|name| architecture.number(name) == Some(number));
    let rules: Vec<&Rule> =
        profile.rules.iter().filter(|rule| rule.counts(native, capabilities, (6, 1))).filter(named).collect();
    let holds = |rule: &&&Rule| {
        !rule.conditions.is_empty()
            && rule.conditions.iter().all(|condition| condition.holds(arguments[usize::from(condition.argument)]))
    };
    if let Some(rule) = rules.iter().find(holds).or_else(|| rules.iter().find(|rule| rule.conditions.is_empty())) {
        return rule.action;
    }
    let unknown = profile
        .newest(architecture, &profile.calls(native, capabilities, (6, 1)))
        .is_some_and(|newest| number > newest);
    let named_by_any = profile.rules.iter().any(|rule| named(&rule));
    if unknown && !named_by_any { Action::Errno(ENOSYS) } else { profile.default_action }
}

fn interesting(profile: &Profile) -> Vec<u64> {
    let mut values = vec![0, 1, u64::MAX, 0xffff_ffff, 0x1_0000_0000];
    for condition in profile.rules.iter().flat_map(|rule| &rule.conditions) {
        for value in [condition.value, condition.value ^ 1 << 32, condition.value | 1 << 63] {
            values.extend([value.wrapping_sub(1), value, value.wrapping_add(1)]);
        }
        if let Comparison::MaskedEqual(mask) = condition.comparison {
            values.extend([mask, !mask, condition.value | !mask, condition.value | 0x100]);
        }
    }
    values.sort_unstable();
    values.dedup();
    values
}

fn check_everything(profile: &Profile, native: Architecture, capabilities: CapabilitySet) {
    let program = profile.compile_for(native, capabilities, (6, 1)).unwrap();
    let values = interesting(profile);
    for architecture in &profile.architectures {
        let base = if *architecture == Architecture::X32 { X32_BIT } else { 0 };
        let conditional: Vec<u32> = profile
            .rules
            .iter()
            .filter(|rule| !rule.conditions.is_empty())
            .flat_map(|rule| rule.names.iter().filter_map(|name| architecture.number(name)))
            .collect();
        for number in (base..base + 480).chain([base + 983_041, base + 983_045, base + 0x00ff_ffff]) {
            let check = |arguments: [u64; 6]| {
                let expected = meaning(profile, native, capabilities, *architecture, number, arguments);
                let found = run(&program, architecture.audit_number(), number, arguments);
                assert_eq!(found, expected.value(), "{architecture:?} {number} {arguments:x?}: expected {expected:?}");
            };
            check([0; 6]);
            if conditional.contains(&number) {
                for value in &values {
                    check([*value; 6]);
                    for argument in 0..6 {
                        let mut arguments = [0; 6];
                        arguments[argument] = *value;
                        check(arguments);
                    }
                }
            }
        }
    }
}

#[test]
fn dockers_profile_means_what_it_says_everywhere() {
    let sets = [CapabilitySet::DOCKER, CapabilitySet::ALL];
    for native in [Architecture::X86_64, Architecture::Aarch64, Architecture::S390x] {
        let architectures = std::iter::once(native).chain(native.companions().iter().copied()).collect();
        let profile = Profile { architectures, ..Profile::docker_default().clone() };
        for capabilities in sets {
            check_everything(&profile, native, capabilities);
        }
    }
}

#[test]
fn every_comparison_at_its_edges() {
    let comparisons = [
        Comparison::Equal,
        Comparison::NotEqual,
        Comparison::Less,
        Comparison::LessOrEqual,
        Comparison::Greater,
        Comparison::GreaterOrEqual,
        Comparison::MaskedEqual(0xffff_0000_0000_00ff),
        Comparison::MaskedEqual(0xff),
    ];
    for comparison in comparisons {
        for value in [0, 1, 0x55, 0xffff_ffff, 0x1_0000_0000, 0x1234_0000_0000_0055, u64::MAX] {
            let condition = |argument| Condition { argument, comparison, value };
            let one = Rule { conditions: vec![condition(0)], ..Rule::new(["read"], Action::Errno(7)) };
            let two =
                Rule { conditions: vec![condition(1), condition(5)], ..Rule::new(["write", "read"], Action::Log) };
            let fallback = Rule::new(["write"], Action::Trap);
            let profile = Profile {
                default_action: Action::Allow,
                architectures: vec![Architecture::X86_64, Architecture::X86, Architecture::X32],
                rules: vec![one, two, fallback],
                flags: 0,
            };
            check_everything(&profile, Architecture::X86_64, CapabilitySet::EMPTY);
        }
    }
}

#[test]
fn foreign_architectures_die_and_a_skipped_call_does_not() {
    let only = Profile { architectures: vec![Architecture::X86_64], ..Profile::docker_default().clone() };
    let program = only.compile_for(Architecture::X86_64, CapabilitySet::DOCKER, (6, 1)).unwrap();
    let amd64 = Architecture::X86_64.audit_number();
    assert_eq!(run(&program, Architecture::X86.audit_number(), 3, [0; 6]), Action::KillProcess.value());
    assert_eq!(run(&program, amd64, X32_BIT | 1, [0; 6]), Action::KillProcess.value());
    assert_eq!(run(&program, amd64, u32::MAX, [0; 6]), Action::Errno(1).value());
    assert_eq!(run(&program, amd64, 0, [0; 6]), Action::Allow.value());
}

#[test]
fn the_default_is_small_and_the_same_every_time() {
    let compile = || Profile::docker_default().compile(CapabilitySet::DOCKER).unwrap();
    let program = compile();
    assert!(program.instructions.len() < 1200, "{} instructions", program.instructions.len());
    assert_eq!(program, compile());
}

/// Compiles the spec's form with libseccomp, if this machine has it and Python.
/// The names are of calls newer than it.
fn libseccomp(spec: &oci_spec::runtime::LinuxSeccomp) -> Option<(Program, Vec<String>)> {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut command = Command::new("python3");
    command
        .args(["-I", "-c", include_str!("libseccomp.py")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("skipped: python3: {error}");
            return None;
        }
    };
    child.stdin.take().unwrap().write_all(&serde_json::to_vec(spec).unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.code() == Some(3) {
        eprintln!("skipped: no libseccomp.so.2");
        return None;
    }
    assert!(output.status.success());
    let instruction = |bytes: &[u8]| Instruction {
        code: u16::from_ne_bytes([bytes[0], bytes[1]]),
        jump_true: bytes[2],
        jump_false: bytes[3],
        k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    };
    let instructions: Vec<_> = output.stdout.chunks_exact(8).map(instruction).collect();
    let unknown = String::from_utf8(output.stderr).unwrap().lines().map(str::to_owned).collect();
    Some((Program { instructions: instructions.into(), flags: 0 }, unknown))
}

#[test]
fn libseccomp_decides_the_same() {
    if Architecture::native() != Some(Architecture::X86_64) {
        return;
    }
    let comparisons = |value| {
        [
            Comparison::NotEqual,
            Comparison::Less,
            Comparison::LessOrEqual,
            Comparison::Equal,
            Comparison::GreaterOrEqual,
            Comparison::Greater,
            Comparison::MaskedEqual(value | 0xff00_0000_00f0),
        ]
    };
    // One rule per call: where several with different actions meet, libseccomp has no order to speak of.
    let names = ["read", "write", "close", "lseek", "mmap", "mprotect", "munmap"];
    let mut made_up = vec![Profile::docker_default_portable()];
    for (value, action) in [(0x55, Action::Errno(71)), (0x1_0000_0001, Action::Log), (u64::MAX, Action::Trap)] {
        let rules = names.iter().zip(comparisons(value)).map(|(name, comparison)| Rule {
            conditions: vec![Condition { argument: 2, comparison, value }],
            ..Rule::new([*name], action)
        });
        let architectures = vec![Architecture::X86_64];
        made_up.push(Profile { default_action: Action::Allow, architectures, rules: rules.collect(), flags: 0 });
    }
    let sets = [CapabilitySet::DOCKER, CapabilitySet::EMPTY, CapabilitySet::ALL];
    for (profile, capabilities) in made_up.iter().flat_map(|profile| sets.map(|set| (profile, set))) {
        let Some((theirs, unknown)) = libseccomp(&profile.to_oci(capabilities)) else { return };
        let ours = profile.compile(capabilities).unwrap();
        let values = interesting(profile);
        for architecture in &profile.architectures {
            let (base, mask) = match architecture {
                Architecture::X32 => (X32_BIT, 0xffff_ffff),
                // The kernel fills the upper halves with zeros, and libseccomp does not look at them.
                Architecture::X86 => (0, 0xffff_ffff),
                _ => (0, u64::MAX),
            };
            // Up to the newest call of the oldest libseccomp in use.
            let known = |number: &u32| unknown.iter().all(|name| architecture.number(name) != Some(*number));
            for number in (base..=base + 449).filter(known) {
                for value in values.iter().chain([&number.into()]) {
                    let arguments = [*value & mask; 6];
                    let audit = architecture.audit_number();
                    let (ours, theirs) = (run(&ours, audit, number, arguments), run(&theirs, audit, number, arguments));
                    assert_eq!(ours, theirs, "{architecture:?} {} {value:#x}: {ours:#x} {theirs:#x}", number - base);
                }
            }
        }
    }
}

#[test]
fn upper_bits_of_a_socket_family_hide_nothing() {
    let program = Profile::docker_default().compile_for(Architecture::X86_64, CapabilitySet::DOCKER, (6, 1)).unwrap();
    let amd64 = Architecture::X86_64;
    let socket = |family| run(&program, amd64.audit_number(), amd64.number("socket").unwrap(), [family, 0, 0, 0, 0, 0]);
    for family in [38, 40] {
        assert_eq!(socket(family), Action::Errno(1).value());
        assert_eq!(socket(family | 1 << 32), Action::Errno(1).value());
        assert_eq!(socket(family | 1 << 63), Action::Errno(1).value());
    }
    for family in [0, 1, 2, 37, 39, 41, 16] {
        assert_eq!(socket(family), Action::Allow.value());
    }
}
