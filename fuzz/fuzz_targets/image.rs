//! The JSON documents of an image: whatever is accepted is written and read back as the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use strata_imagestore::model::{Document, parse_docker_manifest};
use strata_imagestore::{Change, ImageConfig, Platform};

fuzz_target!(|data: &[u8]| {
    if let Ok(config) = ImageConfig::parse(data) {
        let written = config.to_bytes();
        let again = ImageConfig::parse(&written).expect("what was written can be read");
        // Not all of it: numbers in fields that we only carry along may lose digits.
        assert_eq!(again.rootfs, config.rootfs);
        assert_eq!(again.history, config.history);
        let _ = config.platform().to_string();
    }
    for expected in ["", "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"] {
        match Document::parse(data, expected) {
            Ok(Document::Manifest(manifest)) => {
                let _ = manifest.check_is_image();
            }
            Ok(Document::Index(index)) => {
                for descriptor in &index.manifests {
                    let _ = (descriptor.is_index(), descriptor.is_foreign(), descriptor.may_be_image());
                    let fitness = descriptor.platform.as_ref().and_then(|platform| platform.fitness(&Platform::host()));
                    std::hint::black_box(fitness);
                }
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    let _ = parse_docker_manifest(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = text.parse::<Change>();
        if let Ok(platform) = text.parse::<Platform>() {
            assert_eq!(platform.to_string().parse::<Platform>().expect("what was written can be read"), platform);
        }
    }
});
