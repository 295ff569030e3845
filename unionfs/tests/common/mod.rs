//! Mounting in tests: the server runs in a thread of the test process.
#![allow(dead_code, reason = "not every test needs everything")]
#![allow(clippy::print_stdout, reason = "says why a test is skipped")]

pub(crate) mod image;
mod uring;

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use strata_unionfs::{MountReport, MountSpec, Mounted, Options, ServeError, Target, Transport, unmount};

use self::uring::EnabledUring;

/// A mount that is taken away at the end of the test.
pub(crate) struct TestMount {
    dir: PathBuf,
    server: Option<JoinHandle<Result<(), ServeError>>>,
    pub(crate) report: MountReport,
    /// How often the kernel asked for what.
    pub(crate) counts: std::sync::Arc<strata_unionfs::Counts>,
}

impl TestMount {
    pub(crate) fn new(spec: &MountSpec, dir: &Path) -> TestMount {
        let mounted = mount(spec, &Target::Directory(dir.to_owned()));
        let (report, counts) = (mounted.report().clone(), mounted.counts().expect("this process serves"));
        let server = std::thread::spawn(move || mounted.serve());
        TestMount { dir: dir.to_owned(), server: Some(server), report, counts }
    }

    pub(crate) fn unmount(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(server) = self.server.take() {
            unmount_soon(&self.dir);
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

/// Unmounts. Other tests of this process start programs, which have all its files open until they are executed: for that
/// moment the mount may be in use.
fn unmount_soon(dir: &Path) {
    let started = std::time::Instant::now();
    loop {
        match unmount(dir) {
            Err(error) if is_busy(&error) && started.elapsed().as_secs() < 10 => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            result => return result.unwrap(),
        }
    }
}

fn is_busy(error: &strata_unionfs::UnmountError) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|source| source.kind() == std::io::ErrorKind::ResourceBusy)
}

/// Mounts, with the kernel's switch for FUSE over io_uring on if that is asked for.
pub(crate) fn mount(spec: &MountSpec, target: &Target) -> Mounted {
    let _uring = (spec.options.transport == Transport::Ring).then(EnabledUring::new);
    strata_unionfs::mount(spec, target).unwrap()
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
        Ok("ring") => Transport::Ring,
        Ok("fuser") => Transport::Fuser,
        Ok(other) => panic!("no such transport: {other}"),
    };
    Options { source: "test".to_owned(), transport, ..Options::default() }
}
