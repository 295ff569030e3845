//! Reaping what others leave to themselves.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, WaitOptions};

/// Reaps what Podman leaves to itself: it waits for these to disappear, and the tests' process, to which all orphans come,
/// reaps at its end only.
pub(crate) struct Reaper(Arc<AtomicBool>);

impl Reaper {
    pub(crate) fn start() -> Reaper {
        let running = Arc::new(AtomicBool::new(true));
        let seen = Arc::clone(&running);
        std::thread::spawn(move || {
            while seen.load(Ordering::Relaxed) {
                for pid in children().filter(|pid| ORPHANS.contains(&command_name(*pid).trim_end())) {
                    // Fails for what is no child of ours any more.
                    let _ = rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::NOHANG);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Reaper(running)
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

fn children() -> impl Iterator<Item = i32> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let pids = lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>());
    pids.collect::<Vec<_>>().into_iter()
}

fn command_name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}

/// No test starts a program of these names by itself.
const ORPHANS: [&str; 2] = ["conmon", "podman"];
