//! Any bytes as a layer: a refusal or a whole index, the same one however the bytes arrive.

#![no_main]

use libfuzzer_sys::fuzz_target;
use strata_fuzz::{check, ingest, repair};
use strata_layer::index::Index;

fuzz_target!(|data: &[u8]| {
    let Some((&step, tar)) = data.split_first() else { return };
    let repaired = if step % 2 == 0 { repair(tar) } else { tar.to_vec() };
    let tar = &repaired[..];
    let whole = ingest(tar.chunks(usize::MAX));
    // From single bytes to more than a header at once.
    let pieces = ingest(tar.chunks(usize::from(step) * 3 + 1));
    match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => {
            assert_eq!(whole, pieces);
            let index = Index::from_bytes(whole.index).expect("an index that was just built can be read");
            check(&index);
            // Only what is in the tar can be pointed to.
            for node in index.nodes() {
                for extent in index.extents(node) {
                    assert!(extent.source + extent.length <= tar.len() as u64, "an extent beyond the tar");
                }
            }
        }
        (Err(whole), Err(pieces)) => assert_eq!(whole.to_string(), pieces.to_string()),
        (whole, pieces) => panic!("refused only in one way of arriving: {whole:?} {pieces:?}"),
    }
});
