//! What is asked of operations in tests, without a kernel.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::{Operations, Outcome, Register};
use crate::fuse::backing::Backing;
use crate::fuse::reply::Reply;
use crate::fuse::request::{Operation, Request};
use crate::spec::{Lower, Metacopy, MountSpec, Options, Upper};
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

/// A lower and an empty upper.
struct Layers(tempfile::TempDir);

impl Layers {
    fn new(fill: impl FnOnce(&Path)) -> Layers {
        let temp = tempfile::tempdir().unwrap();
        for dir in ["lower", "upper", "work"] {
            std::fs::create_dir(temp.path().join(dir)).unwrap();
        }
        fill(&temp.path().join("lower"));
        Layers(temp)
    }

    fn operations(&self) -> Arc<Operations> {
        let at = |name: &str| self.0.path().join(name);
        let spec = MountSpec {
            lower: Lower::Folders(vec![at("lower")]),
            upper: Some(Upper { dir: at("upper"), work: at("work") }),
            options: Options { metacopy: Metacopy::Off, ..Options::default() },
        };
        let tree = Arc::new(Tree::open(&spec).unwrap());
        Operations::new(tree, Arc::new(File::open("/dev/null").unwrap().into()))
    }
}

fn begin(operations: &Arc<Operations>, node: u64, operation: Operation<'_>) -> Outcome {
    let request = Request { unique: 2, node, caller: Caller { uid: 0, gid: 0, pid: 0 }, operation };
    operations.serve(&request, &mut vec![0; 64 << 10], &Refuses)
}

fn serve(operations: &Arc<Operations>, node: u64, operation: Operation<'_>) -> Reply {
    match begin(operations, node, operation) {
        Outcome::Now(reply) => reply,
        Outcome::Later(job) | Outcome::Fetched(job) => job(&Refuses),
    }
}

#[test]
fn listing_opening_and_making_files_at_once_never_waits_in_a_circle() {
    let layers = Layers::new(|lower| {
        for number in 0..300 {
            std::fs::write(lower.join(format!("file-{number}")), "content").unwrap();
        }
    });
    let operations = layers.operations();
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

#[test]
fn what_may_copy_much_is_left_to_other_threads() {
    let layers = Layers::new(|lower| {
        std::fs::write(lower.join("large"), vec![1; 5 << 20]).unwrap();
        std::fs::write(lower.join("small"), "content").unwrap();
    });
    let attribute = Operation::SetXattr { name: b"user.a", value: b"1", flags: 0, kill_setgid: None };
    let first = |name: &[u8], operation: &dyn Fn(u64) -> (u64, Operation<'static>)| {
        let operations = layers.operations();
        let Reply::Entry(entry) = serve(&operations, 1, Operation::Lookup { name }) else { panic!("nothing there") };
        let (node, operation) = operation(entry.node);
        match begin(&operations, node, operation) {
            Outcome::Now(_) => "now",
            Outcome::Later(_) => "later",
            Outcome::Fetched(_) => "fetched",
        }
    };
    // The jobs are dropped, so that nothing is copied before the next.
    assert_eq!(first(b"large", &|node| (node, attribute)), "later");
    assert_eq!(first(b"large", &|node| (node, Operation::Allocate { offset: 0, length: 1, mode: 0 })), "later");
    assert_eq!(first(b"large", &|node| (1, Operation::Link { node, name: b"other" })), "later");
    let rename = |name| Operation::Rename { name, new_dir: 1, new_name: b"moved", flags: 0 };
    assert_eq!(first(b"large", &|_| (1, rename(b"large"))), "later");
    let copy = |to| Operation::CopyRange { offset: 0, to, to_offset: 0, length: 1, wide: false };
    assert_eq!(first(b"large", &|node| (node, copy(node))), "later");
    assert_eq!(first(b"small", &|node| (node, attribute)), "now");
    assert_eq!(first(b"small", &|_| (1, rename(b"small"))), "now");
}
