//! What a client expects to find: a tree in memory, with the contents of all files.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The tree of one client.
#[derive(Debug, Default)]
pub(crate) struct Model {
    /// Paths relative to the client's folder.
    pub(crate) names: BTreeMap<String, Node>,
    pub(crate) files: HashMap<u64, File>,
    next: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Directory,
    Symlink(String),
    /// A file by its number here.
    File(u64),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct File {
    pub(crate) data: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) links: u64,
    pub(crate) attribute: Option<Vec<u8>>,
    /// The inode number as first seen; it must never change.
    pub(crate) ino: Option<u64>,
}

impl Model {
    /// Reads what a folder holds.
    pub(crate) fn of(root: &Path) -> std::io::Result<Model> {
        let mut model = Model::default();
        let mut known: HashMap<u64, u64> = HashMap::new();
        let mut pending = vec![(root.to_owned(), String::new())];
        while let Some((dir, prefix)) = pending.pop() {
            for entry in std::fs::read_dir(&dir)? {
                let entry = entry?;
                let path = join(&prefix, &entry.file_name().into_string().unwrap());
                let metadata = entry.path().symlink_metadata()?;
                let node = if metadata.is_dir() {
                    pending.push((entry.path(), path.clone()));
                    Node::Directory
                } else if metadata.is_symlink() {
                    Node::Symlink(std::fs::read_link(entry.path())?.into_os_string().into_string().unwrap())
                } else {
                    let number = match known.get(&metadata.ino()) {
                        Some(number) => *number,
                        None => model.add(File {
                            data: std::fs::read(entry.path())?,
                            mode: metadata.mode() & 0o7777,
                            links: metadata.nlink(),
                            ..File::default()
                        }),
                    };
                    known.insert(metadata.ino(), number);
                    Node::File(number)
                };
                model.names.insert(path, node);
            }
        }
        Ok(model)
    }

    pub(crate) fn add(&mut self, file: File) -> u64 {
        self.next += 1;
        self.files.insert(self.next, file);
        self.next
    }

    pub(crate) fn children(&self, dir: &str) -> Vec<&str> {
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let below = self.names.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix));
        below
            .filter_map(|(path, _)| Some(&path[prefix.len()..]).filter(|rest| !rest.is_empty() && !rest.contains('/')))
            .collect()
    }

    /// Takes a name away; the file goes with its last one.
    pub(crate) fn remove(&mut self, path: &str) {
        if let Some(Node::File(number)) = self.names.remove(path)
            && let Some(file) = self.files.get_mut(&number)
        {
            file.links -= 1;
        }
    }

    /// Moves a name and all below it.
    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        if from == to {
            return;
        }
        if let (Some(Node::File(one)), Some(Node::File(other))) = (self.names.get(from), self.names.get(to))
            && one == other
        {
            return;
        }
        self.remove(to);
        for (path, node) in self.take(from) {
            self.names.insert(format!("{to}{path}"), node);
        }
    }

    pub(crate) fn exchange(&mut self, one: &str, other: &str) {
        let (first, second) = (self.take(one), self.take(other));
        self.names.extend(first.into_iter().map(|(path, node)| (format!("{other}{path}"), node)));
        self.names.extend(second.into_iter().map(|(path, node)| (format!("{one}{path}"), node)));
    }

    fn take(&mut self, root: &str) -> Vec<(String, Node)> {
        let below = format!("{root}/");
        let all: Vec<String> =
            self.names.keys().filter(|path| *path == root || path.starts_with(&below)).cloned().collect();
        all.into_iter().map(|path| (path[root.len()..].to_owned(), self.names.remove(&path).unwrap())).collect()
    }
}

pub(crate) fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}
