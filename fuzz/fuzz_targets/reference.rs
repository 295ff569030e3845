//! References: both written forms mean the reference that was read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use strata_imagestore::{ImageId, ImageRef};
use strata_layer::Digest;

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<ImageRef>() {
        for written in [reference.to_string(), reference.familiar()] {
            let again: ImageRef = written.parse().expect("what was written can be read");
            assert_eq!(again, reference, "{written}");
        }
        assert!(reference.tag().is_some() || reference.digest().is_some());
        assert!(!reference.path().contains("..") && !reference.path().starts_with('/'), "a path that could escape");
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(id) = text.parse::<ImageId>() {
        assert!(id.has_prefix(&id.short()));
    }
});
