//! Facts about one layer: digests, tar, the mapped index, whiteouts.

pub mod objects;
