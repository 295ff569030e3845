//! The compiled program, run by an interpreter, against the profile's meaning, computed directly.
//!
//! `differential.rs` compares with the programs of another compiler.

use super::*;
use crate::seccomp::Call;

fn run(program: &Program, architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    program.decide(&Call { architecture, number, arguments }, false).expect("a program that the kernel takes")
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
                let call = Call { architecture: architecture.audit_number(), number, arguments };
                let expected = profile.decide(native, capabilities, (6, 1), *architecture, &call);
                let found = program.decide(&call, native.is_big_endian()).unwrap();
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

mod differential;

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
