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

/// Whether files may have several names.
///
/// Which names of a lower file belong together is kept beside the upper, so it does not outlast a rotation of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HardLinks {
    Some,
    None,
}

/// Sequences over few names, so that they meet often; deletion and making again are frequent.
pub(crate) fn operations(length: usize, links: HardLinks) -> impl Strategy<Value = Vec<Operation>> {
    proptest::collection::vec(group(), 1..length).prop_map(move |groups| {
        let mut operations = groups.concat();
        operations.retain(|operation| links == HardLinks::Some || !matches!(operation, Operation::Link(..)));
        operations
    })
}

/// One operation, or some in a row that unions are known to get wrong: what was deleted must not come back through what
/// takes its place, and what was moved must be there whole.
fn group() -> impl Strategy<Value = Vec<Operation>> {
    use Operation::{Chmod, Create, Exchange, List, Mkdir, RemoveAll, Rename, Replace, Rmdir, Write};
    let path = path_strategy;
    let name = || prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")];
    prop_oneof![
        40 => operation().prop_map(|operation| vec![operation]),
        3 => path().prop_map(|path| vec![RemoveAll(path.clone()), Mkdir(path)]),
        3 => (path(), name(), name()).prop_map(|(path, inner, file)| {
            let inner = format!("{path}/{inner}");
            let file = format!("{inner}/{file}");
            vec![RemoveAll(path.clone()), Mkdir(path), Mkdir(inner), Create(file)]
        }),
        2 => (path(), path()).prop_map(|(path, new)| vec![RemoveAll(new.clone()), Mkdir(new.clone()), Rename(path, new)]),
        2 => (path(), path(), name()).prop_map(|(path, new, name)| {
            let (inside, back) = (format!("{new}/{name}"), format!("{path}/{name}"));
            vec![Rename(path.clone(), new), Mkdir(path), Rename(inside, back)]
        }),
        2 => (path(), path()).prop_map(|(path, new)| {
            vec![Exchange(path.clone(), new.clone()), RemoveAll(path), List(new)]
        }),
        2 => (path(), path()).prop_map(|(path, new)| {
            vec![Rename(path.clone(), new.clone()), RemoveAll(new.clone()), Mkdir(new), Mkdir(path)]
        }),
        2 => (path(), 0_u16..0o1000).prop_map(|(path, mode)| {
            vec![Chmod(path.clone(), mode), Write(path, 3, "after chmod".to_owned())]
        }),
        1 => path().prop_map(|path| vec![RemoveAll(path.clone()), Replace(path, "a file now".to_owned())]),
        1 => path().prop_map(|path| vec![Rmdir(path.clone()), RemoveAll(path.clone()), Create(path)]),
        1 => Just(["a", "b", "c", "d"].map(|name| RemoveAll(name.to_owned())).to_vec()),
    ]
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
        1 => (name(), name(), name(), name()).prop_map(|(a, b, c, d)| format!("{a}/{b}/{c}/{d}")),
    ]
}

/// What the lowers hold at first, bottom first.
pub(crate) fn lower_content(links: HardLinks) -> Vec<Vec<Operation>> {
    use Operation::{Create, Link, Mkdir, Replace, SetXattr, Symlink};
    let s = str::to_owned;
    let mut layers = vec![
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
    ];
    if links == HardLinks::None {
        layers.iter_mut().for_each(|layer| layer.retain(|operation| !matches!(operation, Link(..))));
    }
    layers
}

/// How many random sequences are tried: the usual number, times what `STRATA_MODEL_TIMES` says.
pub(crate) fn cases(usual: u32) -> u32 {
    let times = std::env::var("STRATA_MODEL_TIMES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    usual.saturating_mul(times)
}
