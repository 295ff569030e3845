//! Counts what the kernel asks a FUSE server, by kind, with the kernel's own tracepoint: the same for every server.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Requests by the name of their opcode.
pub type Counts = BTreeMap<String, u64>;

/// A trace buffer of our own.
#[derive(Debug)]
pub struct Requests {
    tracefs: PathBuf,
    instance: PathBuf,
}

impl Requests {
    /// Makes one; fails where the kernel has no such tracepoint.
    pub fn new(work: &Path) -> Result<Requests> {
        let tracefs = work.join("tracefs");
        fs::create_dir_all(&tracefs)?;
        mount("none", &tracefs, "tracefs", MountFlags::empty(), None).context("mount tracefs")?;
        let instance = tracefs.join(format!("instances/strata-bench-{}", std::process::id()));
        let requests = Requests { tracefs, instance };
        fs::create_dir(&requests.instance).context("make a trace buffer")?;
        fs::write(requests.instance.join("buffer_size_kb"), "16384").context("enlarge the trace buffer")?;
        requests.event("filter", "0").context("the kernel cannot trace FUSE requests")?;
        Ok(requests)
    }

    /// Starts counting what the mount at `point` is asked.
    pub fn start(&self, point: &Path) -> Result<()> {
        // The kernel's number of a FUSE connection is the device number of its mounts.
        let device = point.metadata()?.dev();
        let connection = u64::from(rustix::fs::minor(device));
        fs::write(self.instance.join("trace"), "")?;
        self.event("filter", &format!("connection == {connection}"))?;
        self.event("enable", "1")
    }

    /// Ends it.
    pub fn stop(&self) -> Result<Counts> {
        self.event("enable", "0")?;
        let mut counts = Counts::new();
        for line in fs::read_to_string(self.instance.join("trace"))?.lines() {
            let name = line.rsplit_once("(FUSE_").and_then(|(_, rest)| rest.split_once(')'));
            if let Some((name, _)) = name {
                *counts.entry(name.to_owned()).or_default() += 1;
            }
        }
        Ok(counts)
    }

    fn event(&self, file: &str, value: &str) -> Result<()> {
        let path = self.instance.join("events/fuse/fuse_request_send").join(file);
        fs::write(&path, value).with_context(|| format!("write {path:?}"))
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        let _ = self.event("enable", "0");
        let _ = fs::remove_dir(&self.instance);
        let _ = unmount(&self.tracefs, UnmountFlags::DETACH);
    }
}
