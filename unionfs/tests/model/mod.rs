//! Random operations, and the filesystems that they are tried on.

pub(crate) mod memory;
pub(crate) mod path;
pub(crate) mod union;

use proptest::prelude::*;
use rustix::io::Errno;

/// Something that a program does to a filesystem. Paths are relative to its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create(String),
    /// Offset and bytes; the file must exist.
    Write(String, u8, String),
    Truncate(String, u8),
    /// Opens with O_TRUNC and writes.
    Replace(String, String),
    Mkdir(String),
    Symlink(String, String),
    Link(String, String),
    Unlink(String),
    Rmdir(String),
    /// Deletes with all that is inside.
    RemoveAll(String),
    Rename(String, String),
    RenameNoReplace(String, String),
    Exchange(String, String),
    Chmod(String, u16),
    SetXattr(String, String),
    RemoveXattr(String),
    /// Lists a directory, which fixes its order.
    List(String),
}

/// A filesystem that operations can be tried on.
pub(crate) trait Filesystem {
    fn apply(&mut self, operation: &Operation) -> Result<(), Errno>;
    /// One line for each path: type, mode, size, links, content, attributes.
    fn listing(&mut self) -> String;
}

/// Sequences over few names, so that they meet often; deletion and making again are frequent.
pub(crate) fn operations(length: usize) -> impl Strategy<Value = Vec<Operation>> {
    proptest::collection::vec(operation(), 1..length)
}

fn operation() -> impl Strategy<Value = Operation> {
    let path = path_strategy;
    let text = || "[a-z]{0,12}";
    prop_oneof![
        4 => path().prop_map(Operation::Create),
        3 => (path(), any::<u8>(), text()).prop_map(|(path, offset, text)| Operation::Write(path, offset, text)),
        2 => (path(), any::<u8>()).prop_map(|(path, size)| Operation::Truncate(path, size)),
        2 => (path(), text()).prop_map(|(path, text)| Operation::Replace(path, text)),
        5 => path().prop_map(Operation::Mkdir),
        1 => (path(), path()).prop_map(|(target, path)| Operation::Symlink(target, path)),
        3 => (path(), path()).prop_map(|(path, new)| Operation::Link(path, new)),
        3 => path().prop_map(Operation::Unlink),
        3 => path().prop_map(Operation::Rmdir),
        4 => path().prop_map(Operation::RemoveAll),
        6 => (path(), path()).prop_map(|(path, new)| Operation::Rename(path, new)),
        1 => (path(), path()).prop_map(|(path, new)| Operation::RenameNoReplace(path, new)),
        2 => (path(), path()).prop_map(|(path, new)| Operation::Exchange(path, new)),
        2 => (path(), 0_u16..0o1000).prop_map(|(path, mode)| Operation::Chmod(path, mode)),
        1 => (path(), text()).prop_map(|(path, value)| Operation::SetXattr(path, value)),
        1 => path().prop_map(Operation::RemoveXattr),
        2 => path().prop_map(Operation::List),
    ]
}

fn path_strategy() -> impl Strategy<Value = String> {
    let name = || prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")];
    prop_oneof![
        3 => name().prop_map(str::to_owned),
        4 => (name(), name()).prop_map(|(a, b)| format!("{a}/{b}")),
        3 => (name(), name(), name()).prop_map(|(a, b, c)| format!("{a}/{b}/{c}")),
    ]
}

/// What the lowers hold at first, bottom first.
pub(crate) fn lower_content() -> Vec<Vec<Operation>> {
    use Operation::{Create, Link, Mkdir, Replace, SetXattr, Symlink};
    let s = str::to_owned;
    vec![
        vec![
            Mkdir(s("a")),
            Mkdir(s("a/b")),
            Replace(s("a/b/c"), s("bottom abc")),
            Replace(s("a/b/d"), s("bottom abd")),
            Replace(s("a/c"), s("bottom ac")),
            Mkdir(s("b")),
            Mkdir(s("b/a")),
            Create(s("b/a/a")),
            Replace(s("b/c"), s("linked")),
            Link(s("b/c"), s("b/d")),
            Link(s("b/c"), s("a/d")),
            Symlink(s("b/c"), s("c")),
            SetXattr(s("b/c"), s("value")),
        ],
        vec![
            Mkdir(s("a")),
            Mkdir(s("a/b")),
            Replace(s("a/b/c"), s("top abc")),
            Mkdir(s("d")),
            Replace(s("d/a"), s("top da")),
            Mkdir(s("d/b")),
            Replace(s("d/b/c"), s("top dbc")),
        ],
    ]
}
