//! What the end-to-end tests and the whole-workload benchmarks stand on.
//!
//! * [`tier`] registers tests and says which of them this machine cannot run, and why;
//! * [`strata`] runs the command under test with a state folder of its own;
//! * [`image`] makes images: a real Debian one, a small busybox one, synthetic ones of any number of layers,
//!   and writes them in every archive form that is read;
//! * [`network`] gives a test addresses and names of its own;
//! * [`union`] mounts stacks of folders, by strata and by its peers; [`tools`] finds programs that cargo installed;
//! * [`oracle`] extracts layers with GNU tar, [`tree`] lists a folder so that two trees compare as text.
//!
//! None of it uses a crate of the product: what it expects comes from outside.

#![forbid(unsafe_code)]

pub mod image;
pub mod network;
pub mod oracle;
pub mod plain_user;
pub mod processes;
pub mod random;
pub mod recorder;
pub mod step;
pub mod strata;
pub mod tier;
pub mod tools;
pub mod tree;
pub mod twin;
pub mod union;
