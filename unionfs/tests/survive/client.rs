//! A client that works on its folder and checks everything that it sees.

use std::fs::File as Disk;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FallocateFlags, RenameFlags, StatxFlags, XattrFlags};
use rustix::io::Errno;

use crate::model::{File, Model, Node, join};

pub(crate) struct Client {
    root: PathBuf,
    model: Model,
    dice: u64,
    made: u64,
    /// Files and folders without a name, still open.
    held: Vec<Held>,
    pub(crate) errors: Vec<String>,
    pub(crate) error_count: u64,
    pub(crate) operations: u64,
    pub(crate) slowest: Duration,
}

enum Held {
    File(Disk, Vec<u8>),
    Folder(Disk),
    /// Open and not removed, for reading.
    Reader(Disk, u64),
}

type Outcome = Result<(), String>;

impl Client {
    pub(crate) fn new(root: &Path, lower: &Path, seed: u64) -> io::Result<Client> {
        Ok(Client {
            root: root.to_owned(),
            model: Model::of(lower)?,
            dice: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            made: 0,
            held: Vec::new(),
            errors: Vec::new(),
            error_count: 0,
            operations: 0,
            slowest: Duration::ZERO,
        })
    }

    pub(crate) fn run(&mut self, limit: Duration) {
        let end = Instant::now() + limit;
        while Instant::now() < end && self.error_count < 200 {
            let began = Instant::now();
            let kind = self.roll(STEPS);
            if let Err(error) = self.step(kind) {
                self.fail(format!("step {kind}: {error}"));
            }
            self.slowest = self.slowest.max(began.elapsed());
            self.operations += 1;
        }
        self.held.clear();
        if let Err(error) = self.check_all() {
            self.fail(format!("at the end: {error}"));
        }
    }

    fn fail(&mut self, error: String) {
        self.error_count += 1;
        if self.errors.len() < 20 {
            self.errors.push(error);
        }
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 11) % sides
    }

    fn full(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn pick(&mut self, wanted: impl Fn(&Node) -> bool) -> Option<String> {
        let all: Vec<&String> =
            self.model.names.iter().filter(|(_, node)| wanted(node)).map(|(path, _)| path).collect();
        let count = all.len() as u64;
        if count == 0 {
            return None;
        }
        let all: Vec<String> = all.into_iter().cloned().collect();
        let place = self.roll(count);
        all.into_iter().nth(usize::try_from(place).unwrap())
    }

    fn pick_file(&mut self) -> Option<(String, u64)> {
        let path = self.pick(|node| matches!(node, Node::File(_)))?;
        let Some(Node::File(number)) = self.model.names.get(&path) else { return None };
        let number = *number;
        Some((path, number))
    }

    fn pick_folder(&mut self) -> String {
        if self.roll(4) == 0 { String::new() } else { self.pick(|node| *node == Node::Directory).unwrap_or_default() }
    }

    fn fresh(&mut self) -> String {
        let dir = self.pick_folder();
        self.made += 1;
        // Some names come back after they were deleted.
        let name = if self.roll(3) == 0 { format!("n{}", self.roll(12)) } else { format!("m{}", self.made) };
        join(&dir, &name)
    }

    fn noise(&mut self, most: u64) -> Vec<u8> {
        let length = usize::try_from(self.roll(most)).unwrap();
        let seed = self.roll(251);
        (0..length).map(|place| u8::try_from((place as u64 * 31 + seed) % 251).unwrap()).collect()
    }

    fn step(&mut self, kind: u64) -> Outcome {
        match kind {
            0..=3 => self.create(),
            4..=6 => self.change(),
            7..=9 => self.check_one(),
            10..=12 => self.rename(),
            13 => self.exchange(),
            14 => self.link(),
            15..=17 => self.unlink(),
            18..=19 => self.mkdir(),
            20..=21 => self.rmdir(),
            22 => self.list(),
            23 => self.symlink(),
            24 => self.chmod(),
            25 => self.attribute(),
            26 => self.hold(),
            27 => self.check_held(),
            28 => self.absent(),
            29 => self.check_kept(),
            _ => self.unnamed(),
        }
    }

    fn create(&mut self) -> Outcome {
        let path = self.fresh();
        let data = self.noise(3000);
        let result = Disk::options().read(true).write(true).create_new(true).mode(0o640).open(self.full(&path));
        if self.model.names.contains_key(&path) {
            return expect(result.map(drop), Err(Errno::EXIST), "create what exists");
        }
        let file = result.map_err(|error| format!("create {path}: {error}"))?;
        check(file.write_all_at(&data, 0), "write a new file")?;
        let number = self.model.add(File { data, mode: 0o640, links: 1, ..File::default() });
        self.model.names.insert(path, Node::File(number));
        Ok(())
    }

    fn change(&mut self) -> Outcome {
        let Some((path, number)) = self.pick_file() else { return Ok(()) };
        let data = self.noise(2000);
        let how = self.roll(5);
        let offset = self.roll(5000);
        let full = self.full(&path);
        let model = self.model.files.get_mut(&number).unwrap();
        let what = format!("change {how} of {path}");
        match how {
            0 => {
                let file = check(Disk::options().append(true).open(full), &what)?;
                check(io::Write::write_all(&mut &file, &data), &what)?;
                model.data.extend_from_slice(&data);
            }
            1 => {
                let file = check(Disk::options().write(true).open(full), &what)?;
                check(file.set_len(offset), &what)?;
                model.data.resize(usize::try_from(offset).unwrap(), 0);
            }
            2 => {
                check(std::fs::write(full, &data), &what)?;
                model.data = data;
            }
            3 => {
                let file = check(Disk::options().read(true).write(true).open(full), &what)?;
                check(file.write_all_at(&data, offset), &what)?;
                if !data.is_empty() {
                    let end = usize::try_from(offset).unwrap() + data.len();
                    let length = model.data.len().max(end);
                    model.data.resize(length, 0);
                    model.data[end - data.len()..end].copy_from_slice(&data);
                }
                check(file.sync_data(), &what)?;
            }
            _ => {
                let file = check(Disk::options().write(true).open(full), &what)?;
                check(rustix::fs::fallocate(&file, FallocateFlags::empty(), offset, 100).map_err(Into::into), &what)?;
                let length = model.data.len().max(usize::try_from(offset).unwrap() + 100);
                model.data.resize(length, 0);
            }
        }
        self.check_file(&path, number)
    }

    fn check_one(&mut self) -> Outcome {
        match self.pick_file() {
            Some((path, number)) => self.check_file(&path, number),
            None => Ok(()),
        }
    }

    fn check_file(&mut self, path: &str, number: u64) -> Outcome {
        let full = self.full(path);
        let metadata = check(full.symlink_metadata(), &format!("stat {path}"))?;
        let data = check(std::fs::read(&full), &format!("read {path}"))?;
        let file = self.model.files.get_mut(&number).unwrap();
        if data != file.data {
            return Err(format!("content of {path}: {} bytes instead of {}", data.len(), file.data.len()));
        }
        let found = (metadata.len(), metadata.mode() & 0o7777, metadata.nlink());
        let expected = (file.data.len() as u64, file.mode, file.links);
        if found != expected {
            return Err(format!("attributes of {path}: {found:?} instead of {expected:?}"));
        }
        match file.ino.get_or_insert(metadata.ino()) {
            ino if *ino == metadata.ino() => Ok(()),
            ino => Err(format!("number of {path}: {} instead of {ino}", metadata.ino())),
        }
    }

    fn rename(&mut self) -> Outcome {
        let Some(from) = self.pick(|_| true) else { return Ok(()) };
        let to = if self.roll(3) == 0 { self.pick(|_| true).unwrap() } else { self.fresh() };
        if to.starts_with(&format!("{from}/")) || from.starts_with(&format!("{to}/")) {
            return Ok(());
        }
        let expected = match (&self.model.names[&from], self.model.names.get(&to)) {
            _ if from == to => Ok(()),
            (Node::Directory, Some(Node::Directory)) if !self.model.children(&to).is_empty() => Err(Errno::NOTEMPTY),
            (Node::Directory, Some(Node::Directory) | None) => Ok(()),
            (Node::Directory, Some(_)) => Err(Errno::NOTDIR),
            (_, Some(Node::Directory)) => Err(Errno::ISDIR),
            _ => Ok(()),
        };
        let result = std::fs::rename(self.full(&from), self.full(&to));
        expect(result, expected, &format!("rename {from} to {to}"))?;
        if expected.is_ok() {
            self.model.rename(&from, &to);
        }
        self.gone(if expected.is_ok() && !self.model.names.contains_key(&from) { Some(&from) } else { None })
    }

    fn exchange(&mut self) -> Outcome {
        let (Some(one), Some(other)) = (self.pick(|_| true), self.pick(|_| true)) else { return Ok(()) };
        let inside = |a: &str, b: &str| a == b || a.starts_with(&format!("{b}/"));
        if inside(&one, &other) || inside(&other, &one) {
            return Ok(());
        }
        if self.model.names[&one] == self.model.names[&other] && matches!(self.model.names[&one], Node::File(_)) {
            return Ok(());
        }
        let (a, b) = (self.full(&one), self.full(&other));
        let result = rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE);
        check(result.map_err(Into::into), &format!("exchange {one} and {other}"))?;
        self.model.exchange(&one, &other);
        Ok(())
    }

    fn link(&mut self) -> Outcome {
        let Some((from, number)) = self.pick_file() else { return Ok(()) };
        let to = self.fresh();
        let exists = self.model.names.contains_key(&to);
        let result = std::fs::hard_link(self.full(&from), self.full(&to));
        expect(result, if exists { Err(Errno::EXIST) } else { Ok(()) }, &format!("link {from} to {to}"))?;
        if !exists {
            self.model.files.get_mut(&number).unwrap().links += 1;
            self.model.names.insert(to.clone(), Node::File(number));
            self.check_file(&to, number)?;
        }
        Ok(())
    }

    fn unlink(&mut self) -> Outcome {
        let Some(path) = self.pick(|node| *node != Node::Directory) else { return Ok(()) };
        check(std::fs::remove_file(self.full(&path)), &format!("unlink {path}"))?;
        self.model.remove(&path);
        self.gone(Some(&path))
    }

    fn gone(&self, path: Option<&str>) -> Outcome {
        let Some(path) = path else { return Ok(()) };
        match self.full(path).symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => Err(format!("{path} is gone, but stat says {:?}", other.map(drop))),
        }
    }

    fn mkdir(&mut self) -> Outcome {
        let path = self.fresh();
        let exists = self.model.names.contains_key(&path);
        let result = std::fs::create_dir(self.full(&path));
        expect(result, if exists { Err(Errno::EXIST) } else { Ok(()) }, &format!("mkdir {path}"))?;
        if !exists {
            self.model.names.insert(path, Node::Directory);
        }
        Ok(())
    }

    fn rmdir(&mut self) -> Outcome {
        let Some(path) = self.pick(|node| *node == Node::Directory) else { return Ok(()) };
        let empty = self.model.children(&path).is_empty();
        let hold = empty && self.roll(3) == 0;
        let held = if hold { Some(check(Disk::open(self.full(&path)), "open a folder")?) } else { None };
        let result = std::fs::remove_dir(self.full(&path));
        expect(result, if empty { Ok(()) } else { Err(Errno::NOTEMPTY) }, &format!("rmdir {path}"))?;
        if empty {
            self.model.remove(&path);
            self.held.extend(held.map(Held::Folder));
            self.gone(Some(&path))?;
        }
        Ok(())
    }

    fn list(&mut self) -> Outcome {
        let path = self.pick_folder();
        let listed = check(std::fs::read_dir(self.full(&path)), &format!("list {path}"))?;
        let mut found = Vec::new();
        for entry in listed {
            found.push(check(entry, &format!("list {path}"))?.file_name().into_string().unwrap());
        }
        found.sort_unstable();
        let expected = self.model.children(&path);
        if found != expected {
            return Err(format!("names in {path:?}: {found:?} instead of {expected:?}"));
        }
        Ok(())
    }

    fn symlink(&mut self) -> Outcome {
        let path = self.fresh();
        let exists = self.model.names.contains_key(&path);
        let target = format!("to/{}", self.made);
        let result = std::os::unix::fs::symlink(&target, self.full(&path));
        expect(result, if exists { Err(Errno::EXIST) } else { Ok(()) }, &format!("symlink {path}"))?;
        if !exists {
            let read = check(std::fs::read_link(self.full(&path)), &format!("read link {path}"))?;
            if read.as_os_str() != target.as_str() {
                return Err(format!("{path} leads to {read:?}"));
            }
            self.model.names.insert(path, Node::Symlink(target));
        }
        Ok(())
    }

    fn chmod(&mut self) -> Outcome {
        let Some((path, number)) = self.pick_file() else { return Ok(()) };
        let mode = 0o600 | u32::try_from(self.roll(0o200)).unwrap();
        let permissions = std::fs::Permissions::from_mode(mode);
        check(std::fs::set_permissions(self.full(&path), permissions), &format!("chmod {path}"))?;
        self.model.files.get_mut(&number).unwrap().mode = mode;
        self.check_file(&path, number)
    }

    fn attribute(&mut self) -> Outcome {
        let Some((path, number)) = self.pick_file() else { return Ok(()) };
        let full = self.full(&path);
        let value = self.noise(60);
        let how = self.roll(3);
        let file = self.model.files.get_mut(&number).unwrap();
        let what = format!("attribute {how} of {path}");
        let wrapped = |result: rustix::io::Result<()>| result.map_err(io::Error::from);
        match how {
            0 => {
                let result = rustix::fs::setxattr(&full, "user.survive", &value, XattrFlags::CREATE);
                expect(wrapped(result), if file.attribute.is_some() { Err(Errno::EXIST) } else { Ok(()) }, &what)?;
                file.attribute.get_or_insert(value);
            }
            1 => {
                let result = rustix::fs::removexattr(&full, "user.survive");
                expect(wrapped(result), if file.attribute.is_none() { Err(Errno::NODATA) } else { Ok(()) }, &what)?;
                file.attribute = None;
            }
            _ => {
                let mut buffer = [0; 100];
                let found = rustix::fs::getxattr(&full, "user.survive", &mut buffer[..]);
                let found = match found {
                    Ok(length) => Some(buffer[..length].to_vec()),
                    Err(Errno::NODATA) => None,
                    Err(error) => return Err(format!("{what}: {error}")),
                };
                if found != file.attribute {
                    return Err(format!("{what}: {found:?} instead of {:?}", file.attribute));
                }
            }
        }
        Ok(())
    }

    fn hold(&mut self) -> Outcome {
        if self.held.len() > 12 {
            let place = self.roll(12);
            self.held.swap_remove(usize::try_from(place).unwrap());
        }
        let Some((path, number)) = self.pick_file() else { return Ok(()) };
        let full = self.full(&path);
        if self.model.files[&number].links > 1 || self.roll(3) == 0 {
            let file = check(Disk::open(full), &format!("open {path}"))?;
            self.held.push(Held::Reader(file, number));
            return Ok(());
        }
        let file = check(Disk::options().read(true).write(true).open(&full), &format!("open {path}"))?;
        check(std::fs::remove_file(full), &format!("unlink open {path}"))?;
        self.model.remove(&path);
        let data = std::mem::take(&mut self.model.files.get_mut(&number).unwrap().data);
        // A reader that is open on the same file is checked against the bytes that were taken.
        self.held.retain(|held| !matches!(held, Held::Reader(_, other) if *other == number));
        self.held.push(Held::File(file, data));
        Ok(())
    }

    fn check_held(&mut self) -> Outcome {
        let addition = self.noise(200);
        for held in &mut self.held {
            match held {
                Held::File(file, data) => {
                    check(file.write_all_at(&addition, data.len() as u64), "write a file without a name")?;
                    data.extend_from_slice(&addition);
                    let mut found = vec![0; data.len() + 1];
                    let length = check(file.read_at(&mut found, 0), "read a file without a name")?;
                    let metadata = check(file.metadata(), "stat a file without a name")?;
                    if found[..length] != data[..] || metadata.nlink() != 0 || metadata.len() != data.len() as u64 {
                        return Err(format!("a file without a name: {length} bytes, {} links", metadata.nlink()));
                    }
                    check(file.set_permissions(std::fs::Permissions::from_mode(0o600)), "chmod without a name")?;
                }
                Held::Folder(folder) => {
                    let metadata = check(folder.metadata(), "stat a removed folder")?;
                    if metadata.nlink() != 0 {
                        return Err(format!("a removed folder has {} links", metadata.nlink()));
                    }
                }
                Held::Reader(file, number) => {
                    let expected = &self.model.files[number].data;
                    let mut found = vec![0; expected.len() + 1];
                    let length = check(file.read_at(&mut found, 0), "read an open file")?;
                    if found[..length] != expected[..] {
                        return Err(format!("an open file: {length} bytes instead of {}", expected.len()));
                    }
                }
            }
        }
        Ok(())
    }

    fn absent(&mut self) -> Outcome {
        let path = self.fresh();
        if self.model.names.contains_key(&path) { Ok(()) } else { self.gone(Some(&path)) }
    }

    /// What the kernel keeps of attributes is what the server would say.
    fn check_kept(&mut self) -> Outcome {
        let path = if self.roll(2) == 0 { self.pick_folder() } else { self.pick(|_| true).unwrap_or_default() };
        let full = self.full(&path);
        let look = |how| -> Result<_, String> {
            let what = format!("statx {path:?}");
            let found = rustix::fs::statx(CWD, &full, how | AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS);
            let found = check(found.map_err(Into::into), &what)?;
            let time = |time: rustix::fs::StatxTimestamp| (time.tv_sec, time.tv_nsec);
            Ok((found.stx_mode, found.stx_nlink, found.stx_size, time(found.stx_mtime), time(found.stx_ctime)))
        };
        let (kept, asked) = (look(AtFlags::empty())?, look(AtFlags::STATX_FORCE_SYNC)?);
        if kept != asked {
            return Err(format!("kept attributes of {path:?}: {kept:?} instead of {asked:?}"));
        }
        Ok(())
    }

    fn unnamed(&mut self) -> Outcome {
        let dir = self.pick_folder();
        let dir = self.full(&dir);
        let data = self.noise(500);
        let flags = rustix::fs::OFlags::TMPFILE.bits().cast_signed();
        let file = check(
            Disk::options().read(true).write(true).mode(0o640).custom_flags(flags).open(dir),
            "open a file without a name",
        )?;
        check(file.write_all_at(&data, 0), "write a new file without a name")?;
        if self.roll(2) == 0 {
            self.held.push(Held::File(file, data));
            return Ok(());
        }
        let path = self.fresh();
        if self.model.names.contains_key(&path) {
            return Ok(());
        }
        let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file.as_fd()));
        let named = rustix::fs::linkat(CWD, source, CWD, self.full(&path), AtFlags::SYMLINK_FOLLOW);
        check(named.map_err(Into::into), &format!("name {path}"))?;
        let number = self.model.add(File { data, mode: 0o640, links: 1, ..File::default() });
        self.model.names.insert(path.clone(), Node::File(number));
        self.check_file(&path, number)
    }

    fn check_all(&mut self) -> Outcome {
        let mut folders = vec![String::new()];
        let all: Vec<(String, Node)> =
            self.model.names.iter().map(|(path, node)| (path.clone(), node.clone())).collect();
        for (path, node) in all {
            match node {
                Node::File(number) => self.check_file(&path, number)?,
                Node::Directory => folders.push(path),
                Node::Symlink(target) => {
                    let found = check(std::fs::read_link(self.full(&path)), &format!("read link {path}"))?;
                    if found.as_os_str() != target.as_str() {
                        return Err(format!("{path} leads to {found:?}"));
                    }
                }
            }
        }
        for folder in folders {
            let listed = check(std::fs::read_dir(self.full(&folder)), &format!("list {folder}"))?;
            let mut found = Vec::new();
            for entry in listed {
                found.push(check(entry, &format!("list {folder}"))?.file_name().into_string().unwrap());
            }
            found.sort_unstable();
            if found != self.model.children(&folder) {
                return Err(format!("names in {folder:?}: {found:?}"));
            }
        }
        Ok(())
    }
}

fn check<T>(result: io::Result<T>, what: &str) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}

fn expect(result: io::Result<()>, expected: Result<(), Errno>, what: &str) -> Outcome {
    let found = result.map_err(|error| error.raw_os_error().unwrap_or(0));
    let expected = expected.map_err(Errno::raw_os_error);
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?} instead of {expected:?}")) }
}

const STEPS: u64 = 31;
