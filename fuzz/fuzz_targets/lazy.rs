//! Tables of contents of layers that are used before they are here; the first byte chooses the kind.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    match kind % 3 {
        0 => strata_imagestore::fuzzing::stargz(bytes),
        1 => strata_imagestore::fuzzing::chunked(bytes),
        _ => strata_imagestore::fuzzing::stargz_footer(bytes),
    };
});
