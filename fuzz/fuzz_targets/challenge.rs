//! What a registry sends with a refusal, asking for a login.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| strata_imagestore::fuzzing::challenge(text));
