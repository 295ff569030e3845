//! HTTP answers: heads, and bodies in chunks.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| strata_imagestore::fuzzing::http(bytes));
