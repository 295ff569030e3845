//! System calls that rustix does not cover.

pub mod file_handle;
pub mod filesystem_uuid;
pub mod map;
pub mod mount_attributes;
