//! Files that people and other programs write: `daemon.json`, `htpasswd`, the journal of events; and `Content-Range`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = strata_imagestore::RegistrySettings::default().read_daemon_json(bytes);
    strata_imagestore::fuzzing::events(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = strata_registry::Access::basic(text);
        strata_imagestore::fuzzing::content_range(text);
    }
});
