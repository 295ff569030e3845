//! What happened: a short journal that every process writes and anybody can read, in the form of Docker's events.
//!
//! A line is a JSON document, written by one call under a lock. The journal is two files, of which the older one goes when
//! the newer one is full, so it never grows. It is told to people and programs and nothing depends on it: it is not
//! synced, a torn line is left out, and what cannot be written is not an error of the operation.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock, inotify};
use serde::{Deserialize, Serialize};

use crate::disk::{DiskError, Lock, OnDisk, Sharing, exists, make_folder, open_if_present};
use crate::image_id::ImageId;
use crate::store::Store;
use crate::timestamp::Timestamp;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventMessage {
    /// What kind of thing it happened to, such as `image`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// What happened, such as `pull`.
    #[serde(rename = "Action")]
    pub action: String,
    /// What it happened to.
    #[serde(rename = "Actor")]
    pub actor: EventActor,
    /// When, in nanoseconds since 1970.
    #[serde(rename = "timeNano")]
    nanoseconds: i64,
}

/// What something happened to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventActor {
    /// Its ID, or the name that was used.
    #[serde(rename = "ID")]
    pub id: String,
    /// More about it: its name, its labels.
    #[serde(rename = "Attributes", default)]
    pub attributes: BTreeMap<String, String>,
}

impl EventMessage {
    /// Returns when it happened, in nanoseconds since 1970.
    pub fn nanoseconds(&self) -> i64 {
        self.nanoseconds
    }

    /// Returns when it happened.
    pub fn time(&self) -> Timestamp {
        Timestamp::from_nanoseconds(self.nanoseconds.into()).expect("64 bits of nanoseconds are few seconds")
    }
}

impl Store {
    /// Notes that something happened to an image. `name` is what Docker gives as its name: the name or ID that was used.
    pub(crate) fn note(&self, action: &str, id: &str, name: &str, labels: BTreeMap<String, String>) {
        let mut attributes = labels;
        attributes.insert("name".to_owned(), name.to_owned());
        self.note_actor(action, EventActor { id: id.to_owned(), attributes });
    }

    /// Notes that something happened to an image that is here.
    pub(crate) fn note_image(&self, action: &str, image: ImageId, name: &str) {
        self.note(action, &image.to_string(), name, self.labels_of(image));
    }

    pub(crate) fn note_actor(&self, action: &str, actor: EventActor) {
        if self.check_writable().is_err() {
            return;
        }
        let nanoseconds = i64::try_from(Timestamp::now().in_nanoseconds()).unwrap_or(i64::MAX);
        let message = EventMessage { kind: "image".to_owned(), action: action.to_owned(), actor, nanoseconds };
        // What happened has happened, whether it is told or not.
        let _ = append(&self.layout.events(), message);
    }

    /// Returns the labels of an image; none if they cannot be read.
    pub(crate) fn labels_of(&self, image: ImageId) -> BTreeMap<String, String> {
        self.config(image).ok().and_then(|(config, _)| config.config.labels).unwrap_or_default()
    }

    /// Reads what happened: from the beginning of the journal, or only what happens from now on.
    pub fn events(&self, from: EventsFrom) -> Result<EventReader, DiskError> {
        let folder = self.layout.events();
        if self.check_writable().is_ok() {
            make_folder(&folder)?;
        }
        EventReader::open(folder, from)
    }
}

/// Where to begin to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventsFrom {
    /// With the oldest that is known.
    Beginning,
    /// With the next one.
    Now,
}

/// Adds a line.
fn append(folder: &Path, mut message: EventMessage) -> Result<(), DiskError> {
    make_folder(folder)?;
    let path = folder.join(CURRENT);
    let mut line = encode(&message);
    if line.len() > MAX_LINE {
        // Labels may be as long as their author likes.
        message.actor.attributes.retain(|key, value| TOLD.contains(&key.as_str()) && value.len() < 1024);
        line = encode(&message);
        line.truncate(MAX_LINE);
    }
    loop {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let mut file = options.open(&path).on_disk("open", &path)?;
        let held = file.try_clone().on_disk("open", &path)?;
        let _lock = Lock::wait(held, Sharing::Exclusive, &path)?;
        if !is_named(&file, &path) {
            // Somebody has begun another one while we waited.
            continue;
        }
        let length = file.metadata().on_disk("examine", &path)?.len();
        if length > 0 && length + line.len() as u64 > MAX_FILE {
            fs::rename(&path, folder.join(PREVIOUS)).on_disk("rename", &path)?;
            continue;
        }
        // A line that was torn by a kill ends here.
        let mut last = [b'\n'];
        if length > 0 {
            file.read_exact_at(&mut last, length - 1).on_disk("read", &path)?;
        }
        if last != [b'\n'] {
            line.insert(0, b'\n');
        }
        return file.write_all(&line).on_disk("write", &path);
    }
}

pub(crate) fn encode(message: &EventMessage) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("texts and numbers are JSON");
    line.push(b'\n');
    line
}

/// Returns whether a file still has its name.
fn is_named(file: &File, path: &Path) -> bool {
    let named = fs::metadata(path).map(identity);
    named.is_ok_and(|named| file.metadata().is_ok_and(|opened| identity(opened) == named))
}

/// Returns whether two open files are the same one.
fn is_same(one: &File, other: &File) -> bool {
    let other = other.metadata().map(identity);
    other.is_ok_and(|other| one.metadata().is_ok_and(|one| identity(one) == other))
}

fn identity(metadata: fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Opens the older file and the one that is written to, as far as there are such, one after the other.
fn open_files(folder: &Path) -> Result<(Option<File>, Option<File>), DiskError> {
    let (path, previous) = (folder.join(CURRENT), folder.join(PREVIOUS));
    loop {
        let Some(current) = open_if_present(&path)? else {
            // A kill, or what goes on just now, leaves only the older one.
            let previous = open_if_present(&previous)?;
            if exists(&path)? {
                continue;
            }
            return Ok((previous, None));
        };
        // While it is locked, no other one is begun.
        let held = current.try_clone().on_disk("open", &path)?;
        let _lock = Lock::wait(held, Sharing::Shared, &path)?;
        if !is_named(&current, &path) {
            continue;
        }
        let previous = open_if_present(&previous)?;
        // The lock is of the open file, which stays open: held on, nobody could write any more.
        flock(&current, FlockOperation::Unlock).on_disk("unlock", &path)?;
        return Ok((previous, Some(current)));
    }
}

/// Reads the journal, and follows it where it goes on.
#[derive(Debug)]
pub struct EventReader {
    folder: PathBuf,
    changes: Option<OwnedFd>,
    /// What is read before the current file.
    previous: Option<File>,
    current: Option<File>,
    /// What was read to its end. It stays open, so that no other file is taken for it.
    ended: Option<File>,
    /// The begin of a line whose end has not come.
    rest: Vec<u8>,
}

impl EventReader {
    fn open(folder: PathBuf, from: EventsFrom) -> Result<EventReader, DiskError> {
        // Without a folder, nothing has happened and nothing will be written.
        let changes = if folder.is_dir() { Some(watch(&folder).on_disk("watch", &folder)?) } else { None };
        let (previous, current) = open_files(&folder)?;
        let mut reader = EventReader { folder, changes, previous, current, ended: None, rest: Vec::new() };
        if from == EventsFrom::Now {
            reader.ended = reader.previous.take();
            if let Some(current) = &mut reader.current {
                io::Seek::seek(current, io::SeekFrom::End(0)).on_disk("read", &reader.folder.join(CURRENT))?;
            }
        }
        Ok(reader)
    }

    /// Returns what has come since it was last asked. What was written and gone between the two is not among it.
    pub fn read(&mut self) -> Result<Vec<EventMessage>, DiskError> {
        let path = self.folder.join(CURRENT);
        let mut messages = Vec::new();
        loop {
            if let Some(mut previous) = self.previous.take() {
                self.take(&mut previous, &path, &mut messages)?;
                self.end(previous);
            }
            let Some(mut current) = self.current.take() else {
                let (previous, current) = open_files(&self.folder)?;
                self.previous = previous.filter(|file| !self.ended.as_ref().is_some_and(|ended| is_same(ended, file)));
                self.current = current;
                if self.previous.is_none() && self.current.is_none() {
                    return Ok(messages);
                }
                continue;
            };
            // Looked at before it is read: nothing is added to a file that has lost its name.
            let named = is_named(&current, &path);
            self.take(&mut current, &path, &mut messages)?;
            if named {
                self.current = Some(current);
                return Ok(messages);
            }
            self.end(current);
        }
    }

    /// Leaves a file to which nothing is added any more, with the line that a kill has left there.
    fn end(&mut self, file: File) {
        self.rest.clear();
        self.ended = Some(file);
    }

    fn take(&mut self, file: &mut File, path: &Path, messages: &mut Vec<EventMessage>) -> Result<(), DiskError> {
        file.take(MAX_FILE * 2).read_to_end(&mut self.rest).on_disk("read", path)?;
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
        let after = self.rest.split_off(end + 1);
        let lines = std::mem::replace(&mut self.rest, after);
        messages.extend(decode(&lines));
        Ok(())
    }

    /// Waits until something may have come, or for so long.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let timeout = timeout.map(|time| Timespec { tv_sec: seconds(time), tv_nsec: i64::from(time.subsec_nanos()) });
        let mut waiting: Vec<PollFd<'_>> =
            self.changes.iter().map(|changes| PollFd::new(changes, PollFlags::IN)).collect();
        match poll(&mut waiting, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            result => result?,
        };
        if let Some(changes) = &self.changes {
            let mut space = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(changes, &mut space);
            while events.next().is_ok() {}
        }
        Ok(())
    }
}

fn watch(folder: &Path) -> io::Result<OwnedFd> {
    let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let what = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE;
    inotify::add_watch(&changes, folder, what)?;
    Ok(changes)
}

/// Reads whole lines, and leaves out those that are damaged.
pub(crate) fn decode(lines: &[u8]) -> Vec<EventMessage> {
    lines.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// What is told beside labels.
const TOLD: [&str; 4] = ["name", "layer", "error", "reclaimed"];
const CURRENT: &str = "current";
const PREVIOUS: &str = "previous";
/// How large a file becomes. Some thousand events.
const MAX_FILE: u64 = 256 << 10;
/// How long a line may be.
const MAX_LINE: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: i64) -> EventMessage {
        let attributes = BTreeMap::from([("name".to_owned(), "x".repeat(200))]);
        let actor = EventActor { id: number.to_string(), attributes };
        EventMessage { kind: "image".to_owned(), action: "tag".to_owned(), actor, nanoseconds: number }
    }

    fn numbers(messages: &[EventMessage]) -> Vec<i64> {
        messages.iter().map(|message| message.nanoseconds).collect()
    }

    #[test]
    fn many_write_and_a_reader_sees_each_line_once_over_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let mut follower = EventReader::open(folder.path().to_owned(), EventsFrom::Now).unwrap();
        let mut seen = Vec::new();
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|writer| {
                    let folder = folder.path();
                    scope.spawn(move || (0..300).for_each(|i| append(folder, message(writer * 1000 + i)).unwrap()))
                })
                .collect();
            while !writers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                follower.wait(Some(Duration::from_millis(20))).unwrap();
                seen.extend(numbers(&follower.read().unwrap()));
            }
        });
        seen.extend(numbers(&follower.read().unwrap()));
        seen.sort_unstable();
        let expected: Vec<i64> = (0..4).flat_map(|writer| (0..300).map(move |i| writer * 1000 + i)).collect();
        assert_eq!(seen, expected);
        let mut reader = EventReader::open(folder.path().to_owned(), EventsFrom::Beginning).unwrap();
        let mut known = numbers(&reader.read().unwrap());
        known.sort_unstable();
        assert_eq!(known, expected);
    }

    #[test]
    fn the_oldest_go_when_it_is_full() {
        let folder = tempfile::tempdir().unwrap();
        (0..3000).for_each(|number| append(folder.path(), message(number)).unwrap());
        let size = |name: &str| fs::metadata(folder.path().join(name)).unwrap().len();
        assert!(size(CURRENT) <= MAX_FILE && size(PREVIOUS) <= MAX_FILE);
        let mut reader = EventReader::open(folder.path().to_owned(), EventsFrom::Beginning).unwrap();
        let known = numbers(&reader.read().unwrap());
        assert!(known.len() > 800 && known.is_sorted() && known.last() == Some(&2999), "{}", known.len());
    }

    #[test]
    fn who_follows_keeps_nobody_from_writing() {
        let folder = tempfile::tempdir().unwrap();
        append(folder.path(), message(1)).unwrap();
        for from in [EventsFrom::Now, EventsFrom::Beginning] {
            let mut follower = EventReader::open(folder.path().to_owned(), from).unwrap();
            follower.read().unwrap();
            let (sender, receiver) = std::sync::mpsc::channel();
            let path = folder.path().to_owned();
            std::thread::spawn(move || sender.send(append(&path, message(2)).is_ok()));
            assert_eq!(receiver.recv_timeout(Duration::from_secs(20)), Ok(true));
            follower.wait(Some(Duration::from_secs(20))).unwrap();
            assert_eq!(numbers(&follower.read().unwrap()), [2]);
        }
    }

    #[test]
    fn what_was_is_known_where_a_kill_has_left_only_the_older_file() {
        let folder = tempfile::tempdir().unwrap();
        append(folder.path(), message(1)).unwrap();
        fs::rename(folder.path().join(CURRENT), folder.path().join(PREVIOUS)).unwrap();
        let open = |from| EventReader::open(folder.path().to_owned(), from).unwrap();
        let (mut all, mut new) = (open(EventsFrom::Beginning), open(EventsFrom::Now));
        assert_eq!(numbers(&all.read().unwrap()), [1]);
        assert!(all.read().unwrap().is_empty() && new.read().unwrap().is_empty());
        append(folder.path(), message(2)).unwrap();
        assert_eq!(numbers(&all.read().unwrap()), [2]);
        assert_eq!(numbers(&new.read().unwrap()), [2]);
    }

    #[test]
    fn who_was_away_for_two_files_reads_both() {
        let folder = tempfile::tempdir().unwrap();
        append(folder.path(), message(0)).unwrap();
        let mut follower = EventReader::open(folder.path().to_owned(), EventsFrom::Beginning).unwrap();
        assert_eq!(numbers(&follower.read().unwrap()), [0]);
        for number in 1..4 {
            fs::rename(folder.path().join(CURRENT), folder.path().join(PREVIOUS)).unwrap();
            append(folder.path(), message(number)).unwrap();
            if number == 1 {
                continue;
            }
            let expected: &[i64] = if number == 2 { &[1, 2] } else { &[3] };
            assert_eq!(numbers(&follower.read().unwrap()), expected);
        }
    }

    #[test]
    fn torn_and_damaged_lines_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        append(folder.path(), message(1)).unwrap();
        let path = folder.path().join(CURRENT);
        let mut bytes = fs::read(&path).unwrap();
        let half = bytes.len() / 2;
        bytes.extend_from_within(..half);
        fs::write(&path, bytes).unwrap();
        append(folder.path(), message(2)).unwrap();
        let mut reader = EventReader::open(folder.path().to_owned(), EventsFrom::Beginning).unwrap();
        assert_eq!(numbers(&reader.read().unwrap()), [1, 2]);
        assert!(reader.read().unwrap().is_empty());
        append(folder.path(), message(3)).unwrap();
        assert_eq!(numbers(&reader.read().unwrap()), [3]);
    }

    #[test]
    fn labels_without_end_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let mut long = message(-1);
        long.actor.attributes.insert("label".to_owned(), "y".repeat(1 << 20));
        append(folder.path(), long).unwrap();
        let mut reader = EventReader::open(folder.path().to_owned(), EventsFrom::Beginning).unwrap();
        let read = reader.read().unwrap();
        assert_eq!(read[0].actor.attributes.keys().collect::<Vec<_>>(), ["name"]);
        assert_eq!(read[0].time(), Timestamp { seconds: -1, nanoseconds: 999_999_999 });
    }
}
