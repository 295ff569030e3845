//! Listing directories into the room of an answer.

use std::ops::ControlFlow;

use super::Operations;
use crate::fuse::reply::{Reply, dirent_end, dirent_kind, put_dirent};
use crate::fuse::wire::Dirent;
use crate::node::Ino;

impl Operations {
    /// Serves READDIR and, with `attributes`, READDIRPLUS.
    pub(super) fn read_directory(&self, dir: Ino, cookie: u64, attributes: bool, room: &mut [u8]) -> Reply {
        let mut used = 0;
        let result = self.tree.read_dir(dir, cookie, attributes, &mut |entry| {
            let dots = entry.name == b"." || entry.name == b"..";
            let dirent = Dirent {
                ino: entry.ino.0,
                offset: entry.cookie,
                name_length: u32::try_from(entry.name.len()).unwrap_or(u32::MAX),
                kind: dirent_kind(entry.kind),
            };
            // The kernel is not told of what does not fit.
            if dirent_end(used, attributes, entry.name) > room.len() {
                return ControlFlow::Break(());
            }
            let known = match (&entry.stat, attributes) {
                (Some(stat), true) if dots => Some(self.entry(stat, stat.ino.0)),
                (Some(stat), true) => Some(self.entry(stat, self.nodes.tell(stat.ino))),
                (None, true) => return ControlFlow::Break(()),
                (_, false) => None,
            };
            match put_dirent(room, used, known.as_ref(), &dirent, entry.name) {
                Some(end) => {
                    used = end;
                    ControlFlow::Continue(())
                }
                None => ControlFlow::Break(()),
            }
        });
        match result {
            // What has been told counts; the error comes again with the next request.
            Err(error) if used == 0 => Reply::Error(error),
            _ => Reply::InRoom(used),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io;
    use std::os::fd::BorrowedFd;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::fuse::backing::{Backing, Register};
    use crate::fuse::operations::Outcome;
    use crate::fuse::request::{Operation, Request};
    use crate::spec::{Lower, MountSpec, Options, Upper};
    use crate::tree::{Caller, Tree};

    /// A kernel that takes no backing files, so that every first open asks the tree for one.
    struct Refuses;

    /// What a thread does in each round.
    type Work = Box<dyn Fn(&Arc<Operations>, usize) + Send>;

    impl Register for Refuses {
        fn register(&self, _: BorrowedFd<'_>) -> io::Result<Backing> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn serve(operations: &Arc<Operations>, node: u64, operation: Operation<'_>) -> Reply {
        let request = Request { unique: 2, node, caller: Caller { uid: 0, gid: 0, pid: 0 }, operation };
        match operations.serve(&request, &mut vec![0; 64 << 10], &Refuses) {
            Outcome::Now(reply) => reply,
            Outcome::Later(job) | Outcome::Fetched(job) => job(&Refuses),
        }
    }

    #[test]
    fn listing_opening_and_making_files_at_once_never_waits_in_a_circle() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        for dir in ["lower", "upper", "work"] {
            std::fs::create_dir(at(dir)).unwrap();
        }
        for number in 0..300 {
            std::fs::write(at("lower").join(format!("file-{number}")), "content").unwrap();
        }
        let spec = MountSpec {
            lower: Lower::Folders(vec![at("lower")]),
            upper: Some(Upper { dir: at("upper"), work: at("work") }),
            options: Options::default(),
        };
        let tree = Arc::new(Tree::open(&spec).unwrap());
        let operations = Operations::new(tree, Arc::new(File::open("/dev/null").unwrap().into()));
        operations.allow_passthrough();
        let over = Arc::new(AtomicBool::new(false));
        let (ended, ends) = channel();
        let run = |work: Work| {
            let (operations, over, ended) = (Arc::clone(&operations), Arc::clone(&over), ended.clone());
            std::thread::spawn(move || {
                for round in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    work(&operations, round);
                }
                ended.send(()).unwrap();
            });
        };
        for _ in 0..3 {
            run(Box::new(|operations, _| {
                let list = Operation::ReadDirectory { cookie: 0, size: 64 << 10, attributes: true };
                assert!(matches!(serve(operations, 1, list), Reply::InRoom(_)));
            }));
        }
        for thread in 0..3 {
            run(Box::new(move |operations, round| {
                let name = format!("file-{}", thread * 100 + round % 100);
                let Reply::Entry(entry) = serve(operations, 1, Operation::Lookup { name: name.as_bytes() }) else {
                    panic!("no {name}");
                };
                let open = Operation::Open { flags: libc::O_RDWR, kill: false };
                let Reply::Opened(open) = serve(operations, entry.node, open) else { panic!("cannot open {name}") };
                serve(operations, entry.node, Operation::Release { handle: open.handle });
            }));
        }
        run(Box::new(|operations, _| {
            let make = Operation::MakeDirectory { name: b"new", mode: 0o755, umask: 0 };
            assert!(matches!(serve(operations, 1, make), Reply::Entry(_)));
            assert!(matches!(serve(operations, 1, Operation::RemoveDirectory { name: b"new" }), Reply::Done));
        }));
        std::thread::sleep(Duration::from_secs(1));
        over.store(true, Ordering::Relaxed);
        let limit = Instant::now() + Duration::from_secs(20);
        for _ in 0..7 {
            ends.recv_timeout(limit.saturating_duration_since(Instant::now())).expect("all threads come to their end");
        }
    }
}
