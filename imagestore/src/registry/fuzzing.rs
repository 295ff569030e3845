//! What comes over networks and from files, out of memory, for fuzz targets: nothing may panic, or take long.

use super::url::Url;
use super::{challenge, dns, download, http};
use crate::events;
pub use crate::lazy::fuzzing::{chunked, stargz, stargz_footer};

/// Reads an HTTP answer.
pub fn http(bytes: &[u8]) {
    http::fuzz(bytes);
}

/// Reads the answer of a name server.
pub fn dns(bytes: &[u8]) {
    dns::fuzz(bytes);
}

/// Reads the headers by which a registry asks for a login, one on a line.
pub fn challenge(text: &str) {
    challenge::parse(&text.lines().collect::<Vec<_>>());
}

/// Reads an address, and what a redirect adds to it.
pub fn url(text: &str) {
    let (base, location) = text.split_once('\n').unwrap_or((text, "/next?a=b"));
    if let Ok(url) = base.parse::<Url>() {
        let _ = url.join(location);
        let shown = url.shown();
        let _ = url.with_parameter("name", location);
        assert!(!shown.contains('\n'), "{shown:?}");
    }
}

/// Reads the header by which a server says which piece of a blob it sends.
pub fn content_range(text: &str) {
    download::range_fits(text, 0, 99, 1000);
}

/// Reads the lines of a journal of events: what is told of is written and read back as the same.
pub fn events(bytes: &[u8]) {
    for message in events::decode(bytes) {
        assert_eq!(events::decode(&events::encode(&message)), [message]);
    }
}
