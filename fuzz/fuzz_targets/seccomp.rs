//! Seccomp profiles: what is read compiles to a program that decides as the profile says, on every call.

#![no_main]

use libfuzzer_sys::fuzz_target;
use strata_sandbox::capabilities::CapabilitySet;
use strata_sandbox::seccomp::{Architecture, Call, Profile, ProfileError};

// Eight numbers (six arguments, the call and architecture, capabilities), then the profile.
fuzz_target!(|input: &[u8]| {
    let Some((numbers, text)) = input.split_first_chunk::<64>() else { return };
    let word = |at: usize| u64::from_le_bytes(numbers[at * 8..at * 8 + 8].try_into().expect("eight bytes"));
    let arguments = [0, 1, 2, 3, 4, 5].map(word);
    let (number, choice) = (word(6) as u32, (word(6) >> 32) as usize);
    let capabilities = CapabilitySet::from_bits(word(7));
    let Ok(profile) = Profile::from_json(text) else { return };
    let Some(native) = Architecture::native() else { return };
    let program = match profile.compile_for(native, capabilities, (6, 1)) {
        Ok(program) => program,
        Err(ProfileError::TooLong(length)) => return assert!(length > 4096),
        Err(error) => panic!("{error}"),
    };
    let architecture = profile.architectures[choice % profile.architectures.len()];
    // Mostly numbers that the profile names.
    let names: Vec<_> = profile.rules.iter().flat_map(|rule| &rule.names).collect();
    let named = names.get(number as usize % (names.len() + 1)).and_then(|name| architecture.number(name));
    for number in named.into_iter().chain([number % 512]) {
        let call = Call { architecture: architecture.audit_number(), number, arguments };
        if call.architecture_of(&profile.architectures) != Some(architecture) {
            continue;
        }
        let expected = profile.decide(native, capabilities, (6, 1), architecture, &call);
        assert_eq!(program.decide(&call, native.is_big_endian()), Some(expected.value()), "{call:x?} {profile:?}");
    }
});
