//! OCI images on disk: blobs, layers, references.
