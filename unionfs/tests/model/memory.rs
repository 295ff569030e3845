//! A filesystem in memory, as simple as possible: the reference.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::rc::Rc;

use rustix::io::Errno;

use super::{Filesystem, Operation};

type Node = Rc<RefCell<Content>>;

#[derive(Debug)]
enum Content {
    Directory { entries: BTreeMap<String, Node>, mode: u16 },
    File { data: Vec<u8>, mode: u16, xattr: Option<String> },
    Symlink(String),
}

#[derive(Debug)]
pub(crate) struct Memory {
    root: Node,
}

impl Memory {
    pub(crate) fn new() -> Memory {
        Memory { root: directory() }
    }

    fn parent(&self, path: &str) -> Result<(Node, String), Errno> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut node = Rc::clone(&self.root);
        for part in dir.split('/').filter(|part| !part.is_empty()) {
            let next = match &*node.borrow() {
                Content::Directory { entries, .. } => entries.get(part).cloned().ok_or(Errno::NOENT)?,
                _ => return Err(Errno::NOTDIR),
            };
            node = next;
        }
        if is_directory(&node) { Ok((node, name.to_owned())) } else { Err(Errno::NOTDIR) }
    }

    fn find(&self, path: &str) -> Result<Node, Errno> {
        let (dir, name) = self.parent(path)?;
        let found = entry(&dir, &name);
        found.ok_or(Errno::NOENT)
    }

    fn insert(&self, path: &str, node: Node) -> Result<(), Errno> {
        let (dir, name) = self.parent(path)?;
        if entry(&dir, &name).is_some() {
            return Err(Errno::EXIST);
        }
        put(&dir, &name, node);
        Ok(())
    }

    fn file<T>(&self, path: &str, change: impl FnOnce(&mut Vec<u8>) -> T) -> Result<T, Errno> {
        let node = self.find(path)?;
        let mut node = node.borrow_mut();
        match &mut *node {
            Content::File { data, .. } => Ok(change(data)),
            Content::Directory { .. } => Err(Errno::ISDIR),
            Content::Symlink(_) => Err(Errno::LOOP),
        }
    }

    fn rename(&self, path: &str, new: &str, replace: bool) -> Result<(), Errno> {
        let (dir, name) = self.parent(path)?;
        let (new_dir, new_name) = self.parent(new)?;
        let node = entry(&dir, &name).ok_or(Errno::NOENT)?;
        let target = entry(&new_dir, &new_name);
        if target.is_some() && !replace {
            return Err(Errno::EXIST);
        }
        if inside(new, path) {
            return Err(Errno::INVAL);
        }
        if target.is_some() && inside(path, new) {
            return Err(Errno::NOTEMPTY);
        }
        if let Some(target) = &target {
            if Rc::ptr_eq(target, &node) {
                return Ok(());
            }
            match (is_directory(&node), is_directory(target)) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (true, true) if !is_empty(target) => return Err(Errno::NOTEMPTY),
                _ => {}
            }
        }
        take(&dir, &name);
        put(&new_dir, &new_name, node);
        Ok(())
    }

    fn exchange(&self, path: &str, new: &str) -> Result<(), Errno> {
        let (dir, name) = self.parent(path)?;
        let (new_dir, new_name) = self.parent(new)?;
        let node = entry(&dir, &name).ok_or(Errno::NOENT)?;
        let other = entry(&new_dir, &new_name).ok_or(Errno::NOENT)?;
        if path != new && (inside(new, path) || inside(path, new)) {
            return Err(Errno::INVAL);
        }
        put(&dir, &name, other);
        put(&new_dir, &new_name, node);
        Ok(())
    }

    fn remove_all(&self, path: &str) -> Result<(), Errno> {
        let (dir, name) = self.parent(path)?;
        take(&dir, &name).map(drop).ok_or(Errno::NOENT)
    }
}

impl Filesystem for Memory {
    fn apply(&mut self, operation: &Operation) -> Result<(), Errno> {
        match operation {
            Operation::Create(path) => self.insert(path, file(Vec::new())),
            Operation::Write(path, offset, text) => self.file(path, |data| {
                let (start, end) = (usize::from(*offset), usize::from(*offset) + text.len());
                if !text.is_empty() && data.len() < end {
                    data.resize(end, 0);
                }
                if !text.is_empty() {
                    data[start..end].copy_from_slice(text.as_bytes());
                }
            }),
            Operation::Truncate(path, size) => self.file(path, |data| data.resize(usize::from(*size), 0)),
            Operation::Replace(path, text) => match self.find(path) {
                Err(Errno::NOENT) => self.insert(path, file(text.clone().into_bytes())),
                _ => self.file(path, |data| *data = text.clone().into_bytes()),
            },
            Operation::Mkdir(path) => self.insert(path, directory()),
            Operation::Symlink(target, path) => {
                self.insert(path, Rc::new(RefCell::new(Content::Symlink(target.clone()))))
            }
            Operation::Link(path, new) => {
                let node = self.find(path)?;
                let (dir, name) = self.parent(new)?;
                if entry(&dir, &name).is_some() {
                    return Err(Errno::EXIST);
                }
                if is_directory(&node) {
                    return Err(Errno::PERM);
                }
                put(&dir, &name, node);
                Ok(())
            }
            Operation::Unlink(path) => {
                let (dir, name) = self.parent(path)?;
                let node = entry(&dir, &name).ok_or(Errno::NOENT)?;
                if is_directory(&node) {
                    return Err(Errno::ISDIR);
                }
                take(&dir, &name);
                Ok(())
            }
            Operation::Rmdir(path) => {
                let (dir, name) = self.parent(path)?;
                let node = entry(&dir, &name).ok_or(Errno::NOENT)?;
                if !is_directory(&node) {
                    return Err(Errno::NOTDIR);
                }
                if !is_empty(&node) {
                    return Err(Errno::NOTEMPTY);
                }
                take(&dir, &name);
                Ok(())
            }
            Operation::RemoveAll(path) => self.remove_all(path),
            Operation::Rename(path, new) => self.rename(path, new, true),
            Operation::RenameNoReplace(path, new) => self.rename(path, new, false),
            Operation::Exchange(path, new) => self.exchange(path, new),
            Operation::Chmod(path, bits) => match &mut *self.find(path)?.borrow_mut() {
                Content::File { mode, .. } | Content::Directory { mode, .. } => {
                    *mode = *bits;
                    Ok(())
                }
                Content::Symlink(_) => Err(Errno::LOOP),
            },
            Operation::SetXattr(path, value) => match &mut *self.find(path)?.borrow_mut() {
                Content::File { xattr, .. } => {
                    *xattr = Some(value.clone());
                    Ok(())
                }
                _ => Err(Errno::PERM),
            },
            Operation::RemoveXattr(path) => match &mut *self.find(path)?.borrow_mut() {
                Content::File { xattr, .. } => xattr.take().map(drop).ok_or(Errno::NODATA),
                _ => Err(Errno::PERM),
            },
            Operation::List(path) => match &*self.find(path)?.borrow() {
                Content::Directory { .. } => Ok(()),
                _ => Err(Errno::NOTDIR),
            },
        }
    }

    fn listing(&mut self) -> String {
        let mut out = String::new();
        list(&self.root, "", &self.root, &mut out);
        out
    }
}

fn list(node: &Node, path: &str, root: &Node, out: &mut String) {
    let Content::Directory { entries, .. } = &*node.borrow() else { return };
    for (name, child) in entries {
        let path = format!("{path}/{name}");
        match &*child.borrow() {
            Content::Directory { mode, .. } => writeln!(out, "{path} d {mode:o}").unwrap(),
            Content::Symlink(target) => writeln!(out, "{path} l {} {target}", links(root, child)).unwrap(),
            Content::File { data, mode, xattr } => {
                let data = String::from_utf8_lossy(data);
                writeln!(out, "{path} f {mode:o} {} {xattr:?} {data:?}", links(root, child)).unwrap();
            }
        }
        list(child, &path, root, out);
    }
}

/// Counts the names of a node.
fn links(dir: &Node, node: &Node) -> usize {
    let Content::Directory { entries, .. } = &*dir.borrow() else { return 0 };
    entries.values().map(|child| usize::from(Rc::ptr_eq(child, node)) + links(child, node)).sum()
}

fn directory() -> Node {
    Rc::new(RefCell::new(Content::Directory { entries: BTreeMap::new(), mode: 0o755 }))
}

fn file(data: Vec<u8>) -> Node {
    Rc::new(RefCell::new(Content::File { data, mode: 0o644, xattr: None }))
}

fn is_directory(node: &Node) -> bool {
    matches!(&*node.borrow(), Content::Directory { .. })
}

fn is_empty(node: &Node) -> bool {
    matches!(&*node.borrow(), Content::Directory { entries, .. } if entries.is_empty())
}

fn entry(dir: &Node, name: &str) -> Option<Node> {
    match &*dir.borrow() {
        Content::Directory { entries, .. } => entries.get(name).cloned(),
        _ => None,
    }
}

fn put(dir: &Node, name: &str, node: Node) {
    if let Content::Directory { entries, .. } = &mut *dir.borrow_mut() {
        entries.insert(name.to_owned(), node);
    }
}

fn take(dir: &Node, name: &str) -> Option<Node> {
    match &mut *dir.borrow_mut() {
        Content::Directory { entries, .. } => entries.remove(name),
        _ => None,
    }
}

/// Returns whether `path` is below `dir`.
fn inside(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}
