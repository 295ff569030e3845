//! System calls that rustix does not cover.
