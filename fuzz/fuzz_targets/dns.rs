//! Answers of name servers, and the files that say where they are.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| strata_imagestore::fuzzing::dns(bytes));
