//! Mounting in tests: the server runs in a thread of the test process.
#![allow(dead_code, reason = "not every test needs everything")]
#![allow(clippy::print_stdout, reason = "says why a test is skipped")]

pub(crate) mod image;

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use strata_unionfs::{MountReport, MountSpec, Options, ServeError, Target, Transport, mount, unmount};

/// A mount that is taken away at the end of the test.
pub(crate) struct TestMount {
    dir: PathBuf,
    server: Option<JoinHandle<Result<(), ServeError>>>,
    pub(crate) report: MountReport,
}

impl TestMount {
    pub(crate) fn new(spec: &MountSpec, dir: &Path) -> TestMount {
        let mounted = mount(spec, &Target::Directory(dir.to_owned())).unwrap();
        let report = mounted.report().clone();
        let server = std::thread::spawn(move || mounted.serve());
        TestMount { dir: dir.to_owned(), server: Some(server), report }
    }

    pub(crate) fn unmount(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(server) = self.server.take() {
            unmount(&self.dir).unwrap();
            server.join().unwrap().unwrap();
        }
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.dir).status();
        } else {
            self.end();
        }
    }
}

/// Whether this process may mount; says so if not.
pub(crate) fn privileged() -> bool {
    let allowed = rustix::mount::fsopen("fuse", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC).is_ok();
    if !allowed {
        println!("SKIPPED: needs the right to mount");
    }
    allowed
}

/// Options of a test's mount. `STRATA_TEST_TRANSPORT` says which transport the mount is to use.
pub(crate) fn options() -> Options {
    let transport = match std::env::var("STRATA_TEST_TRANSPORT").as_deref() {
        Err(_) => Transport::Auto,
        Ok("device") => Transport::Device,
        Ok("fuser") => Transport::Fuser,
        Ok(other) => panic!("no such transport: {other}"),
    };
    Options { source: "test".to_owned(), transport, ..Options::default() }
}
