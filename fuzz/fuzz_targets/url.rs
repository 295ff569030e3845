//! Addresses, and where redirects lead.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| strata_imagestore::fuzzing::url(text));
