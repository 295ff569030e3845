//! What a reader is prepared to hold.

/// Bounds on what an archive may ask for. The defaults are far above every image seen in practice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one extended header, long name or sparse map: 1 MiB. Maps at the head of a file's data may have 16 times
    /// as much.
    pub header_bytes: usize,
    /// Length of one file, holes included: 8 TiB.
    pub file_size: u64,
    /// Entries of a layer, markers included, or directories that they imply: 10 million. While its index is built, each
    /// takes about 200 bytes beside its name: of memory, or of temporary files where the caller has a place for them.
    pub entries: u64,
    /// Names, link targets, extended attributes and sparse maps of a layer together: 512 MiB.
    pub metadata_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { header_bytes: 1 << 20, file_size: 8 << 40, entries: 10_000_000, metadata_bytes: 512 << 20 }
    }
}
