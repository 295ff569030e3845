//! That nobody waits for a serving thread that others keep from its CPU: it has idle priority while the machine is calm, and gives
//! that up when it is calm no more (`docs/design/union.md`, "On the CPU that asked").
//!
//! How long a request takes depends on what else runs here, so times are printed. What is judged is whether all is answered, and
//! which priority the threads have.
#![expect(clippy::print_stderr, reason = "times, and what could not be tried")]

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Pid;
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};
use strata_tests::strata::finish;
use strata_tests::tier::{Need, Suite};
use strata_tests::union::{Server, Union};

use super::{RING, mount};

pub(crate) fn register(suite: &mut Suite) {
    let device = [Need::Fuse, Need::Program("chrt")];
    let ring = [Need::Fuse, Need::Program("chrt"), Need::Uring];
    let mut add = |name: &str, needs: &[Need], body| suite.add(&format!("starvation::privileged_{name}"), needs, body);
    add("busy_cpus", &device, || busy_cpus(DEVICE, "--other"));
    add("busy_cpus_of_batch_priority", &device, || busy_cpus(DEVICE, "--batch"));
    add("busy_cpus_over_io_uring", &ring, || busy_cpus(RING, "--other"));
    add("one_cpu_for_all", &device, || one_cpu_for_all(DEVICE));
    add("one_cpu_for_all_over_io_uring", &ring, || one_cpu_for_all(RING));
    add("real_time_client_that_computes", &device, real_time_client);
    add("little_time_for_the_server", &device, little_time);
    add("clients_that_come_and_go", &device, many_clients);
}

const DEVICE: &str = "transport=device";

/// A mount and the process that serves it.
struct Scene {
    union: Union,
    server: u32,
}

impl Scene {
    fn new(options: &str) -> Result<Scene> {
        let union = Union::new(Server::Strata)?.with_options(options);
        mount(&union)?;
        let [server, _] = union.server_and_keeper()?;
        Ok(Scene { union, server })
    }

    fn client(&self, name: &str, habit: Habit) -> Client {
        Client::start(self.union.point(), name.to_owned(), habit)
    }

    /// Threads of the server that have idle priority.
    fn idle_threads(&self) -> usize {
        let threads = fs::read_dir(format!("/proc/{}/task", self.server)).into_iter().flatten().flatten();
        threads.filter(|thread| policy_of(&thread.path()) == Some(SCHED_IDLE)).count()
    }

    /// Waits for a serving thread of idle priority, which a machine that has much else to do does not see; says so then.
    fn begin_calm(&self, what: &str) {
        let begun = Instant::now();
        while self.idle_threads() == 0 {
            if begun.elapsed() > Duration::from_secs(1) {
                eprintln!("{what}: the machine is not calm, so that no thread had idle priority to begin with");
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until no thread has idle priority.
    fn becomes_ordinary(&self) -> Result<()> {
        until("a serving thread keeps idle priority", || self.idle_threads() == 0)
    }

    fn end(self, clients: impl IntoIterator<Item = Client>) -> Result<()> {
        clients.into_iter().try_for_each(Client::end)?;
        self.becomes_ordinary()?;
        self.union.unmount()
    }
}

/// The scheduling policy of a thread, by the fields after its name.
fn policy_of(thread: &Path) -> Option<u32> {
    let stat = fs::read_to_string(thread.join("stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(38)?.parse().ok()
}

fn until(what: &str, mut is: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !is() {
        ensure!(begun.elapsed() < PATIENCE, "{what} after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What a client does besides asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    /// Nothing.
    Asks,
    /// It closes a file, which it does not wait for, and computes.
    Computes,
}

/// A thread that asks for one absent name after the other.
struct Client {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    id: AtomicU32,
    asked: AtomicU64,
    /// In microseconds.
    longest: AtomicU64,
    /// Requests that took a tenth of a second or more.
    late: AtomicU64,
    over: AtomicBool,
}

impl Client {
    fn start(point: PathBuf, name: String, habit: Habit) -> Client {
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            own.id.store(gettid().as_raw_nonzero().get().unsigned_abs(), Ordering::Release);
            while !own.over.load(Ordering::Acquire) {
                let number = own.asked.load(Ordering::Relaxed);
                let begun = Instant::now();
                let found = fs::symlink_metadata(point.join(format!("{name}-{number}")));
                ensure!(found.is_err_and(|error| error.kind() == ErrorKind::NotFound), "{name}-{number} is there");
                let took = begun.elapsed();
                own.longest.fetch_max(u64::try_from(took.as_micros())?, Ordering::Relaxed);
                own.late.fetch_add(u64::from(took >= Duration::from_millis(100)), Ordering::Relaxed);
                own.asked.fetch_add(1, Ordering::Release);
                if habit == Habit::Computes {
                    drop(fs::File::create(point.join(&name))?);
                    compute_for(Duration::from_millis(2));
                }
            }
            Ok(())
        });
        Client { shared, thread: Some(thread) }
    }

    /// Its number in the system.
    fn id(&self) -> Result<Pid> {
        until("a client does not begin", || self.shared.id.load(Ordering::Acquire) != 0)?;
        let id = i32::try_from(self.shared.id.load(Ordering::Acquire))?;
        Pid::from_raw(id).context("no number of a thread")
    }

    /// Waits for so many answers more, and prints what the longest of them took.
    fn asks(&self, requests: u64, what: &str) -> Result<()> {
        let shared = &self.shared;
        for counter in [&shared.longest, &shared.late] {
            counter.store(0, Ordering::Relaxed);
        }
        let begun = Instant::now();
        self.answered(requests)?;
        eprintln!(
            "{what}: {requests} requests in {:.1?}, the longest {:.1?}, {} of 100 ms or more",
            begun.elapsed(),
            Duration::from_micros(shared.longest.load(Ordering::Relaxed)),
            shared.late.load(Ordering::Relaxed)
        );
        Ok(())
    }

    /// Waits for so many answers more.
    fn answered(&self, requests: u64) -> Result<()> {
        let first = self.shared.asked.load(Ordering::Acquire);
        let failed = || self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        until("requests are not answered", || {
            self.shared.asked.load(Ordering::Acquire) >= first + requests || failed()
        })?;
        ensure!(!failed(), "a client has failed");
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        self.shared.over.store(true, Ordering::Release);
        let ended = self.thread.take().map(JoinHandle::join);
        ended.context("a client ends once")?.map_err(|_| anyhow!("a client panicked"))?
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
    }
}

fn compute_for(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Threads that compute. They end when this is dropped.
struct Busy {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    /// So many, with what `prepare` does in each.
    fn start(count: usize, prepare: impl Fn() + Clone + Send + 'static) -> Busy {
        let over = Arc::new(AtomicBool::new(false));
        let threads = (0..count).map(|_| {
            let (over, prepare) = (Arc::clone(&over), prepare.clone());
            std::thread::spawn(move || {
                prepare();
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        });
        Busy { threads: threads.collect(), over }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The CPUs that this process, and a server that it starts, may use.
fn cpus() -> Result<usize> {
    Ok(usize::try_from(sched_getaffinity(None)?.count())?)
}

/// Changes the policy of a thread by chrt(1).
fn set_policy(thread: Pid, arguments: &[&str]) -> Result<()> {
    let number = thread.as_raw_nonzero().to_string();
    let finished = finish(Command::new("chrt").args(arguments).arg(number))?;
    ensure!(finished.status.success(), "{finished}");
    Ok(())
}

/// Others compute on every CPU, from when a client is served beside it.
fn busy_cpus(options: &str, policy: &'static str) -> Result<()> {
    let scene = Scene::new(options)?;
    let client = scene.client("asked", Habit::Asks);
    scene.begin_calm(policy);
    client.asks(1000, "nothing else runs")?;
    let busy = Busy::start(cpus()?, move || {
        set_policy(gettid(), &[policy, "-p", "0"]).expect("a policy that anybody may have");
    });
    client.asks(500, "others begin to compute on every CPU")?;
    scene.becomes_ordinary()?;
    // It stays so: whoever computes on every CPU is counted.
    let first = client.shared.asked.load(Ordering::Acquire);
    until("requests are not answered", || {
        let asked = client.shared.asked.load(Ordering::Acquire) >= first + 500;
        asked || scene.idle_threads() > 0
    })?;
    ensure!(scene.idle_threads() == 0, "a serving thread has idle priority beside others on every CPU");
    client.asks(1000, "others compute")?;
    drop(busy);
    scene.end([client])
}

/// Client, server and one that computes have one CPU, while others are free and the machine looks calm.
fn one_cpu_for_all(options: &str) -> Result<()> {
    let scene = Scene::new(options)?;
    let client = scene.client("asked", Habit::Asks);
    scene.begin_calm("one CPU");
    let mut one = CpuSet::new();
    one.set(sched_getcpu());
    let all = sched_getaffinity(None)?;
    let confine = |cpus: &CpuSet| -> Result<()> {
        sched_setaffinity(Some(client.id()?), cpus)?;
        for thread in fs::read_dir(format!("/proc/{}/task", scene.server))? {
            let thread = thread?.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw);
            // It may have ended.
            let _ = sched_setaffinity(thread, cpus);
        }
        Ok(())
    };
    confine(&one)?;
    let busy = Busy::start(1, move || sched_setaffinity(None, &one).expect("a CPU that this thread has been on"));
    client.asks(1000, "one that computes begins on the only CPU")?;
    client.asks(1000, "one that computes has the only CPU too")?;
    drop(busy);
    confine(&all)?;
    client.asks(1000, "all is as before")?;
    scene.end([client])
}

/// A client of real-time priority computes while a request that it does not wait for lies unread.
fn real_time_client() -> Result<()> {
    let scene = Scene::new(DEVICE)?;
    let client = scene.client("asked", Habit::Computes);
    if let Err(error) = set_policy(client.id()?, &["--fifo", "-p", "1"]) {
        eprintln!("skipped: no real-time priority here: {error}");
        return scene.end([client]);
    }
    // Others are served meanwhile.
    let other = scene.client("other", Habit::Asks);
    client.asks(150, "a client of real-time priority")?;
    other.asks(150, "another one")?;
    scene.end([client, other])
}

/// The server has a tenth of a CPU, and then next to nothing beside others.
fn little_time() -> Result<()> {
    let Some(group) = Group::new()? else {
        eprintln!("skipped: no cgroups with a cpu controller here");
        return Ok(());
    };
    let scene = Scene::new(DEVICE)?;
    let client = scene.client("asked", Habit::Asks);
    scene.begin_calm("a cgroup");
    group.limit(10_000)?;
    group.add(scene.server)?;
    client.asks(50, "a server with 10 ms in 100 ms")?;
    group.limit(-1)?;
    let busy = Busy::start(cpus()?, || ());
    client.answered(1)?;
    client.asks(30, "a server with the least share beside others")?;
    drop(busy);
    drop(group);
    client.asks(1000, "all is as before")?;
    scene.end([client])
}

/// Clients that begin, ask a little and end, several at once.
fn many_clients() -> Result<()> {
    let scene = Scene::new(DEVICE)?;
    let stays = scene.client("stays", Habit::Asks);
    scene.begin_calm("many clients");
    for round in 0..10 {
        let clients: Vec<_> = (0..8).map(|number| scene.client(&format!("{round}-{number}"), Habit::Asks)).collect();
        for client in clients {
            client.answered(5 * round)?;
            client.end()?;
        }
    }
    stays.asks(500, "beside those that came and went")?;
    scene.end([stays])
}

/// A cgroup with the least share of the CPUs. Dropped, it gives its processes back and is removed.
struct Group {
    parent: PathBuf,
    folder: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Group {
    /// `None` where there is no such controller, or it cannot be had at the top.
    fn new() -> Result<Option<Group>> {
        let has = |folder: &str| {
            fs::read_to_string(Path::new(folder).join("cgroup.subtree_control"))
                .is_ok_and(|text| text.split_whitespace().any(|word| word == "cpu"))
        };
        let (parent, version) = if Path::new("/sys/fs/cgroup/cpu/cpu.shares").exists() {
            ("/sys/fs/cgroup/cpu", Version::One)
        } else if has("/sys/fs/cgroup") {
            ("/sys/fs/cgroup", Version::Two)
        } else {
            return Ok(None);
        };
        let folder = Path::new(parent).join(format!("strata-test-{}", std::process::id()));
        fs::create_dir(&folder)?;
        let group = Group { parent: parent.into(), folder, version };
        match version {
            Version::One => group.write("cpu.shares", "2")?,
            Version::Two => group.write("cpu.weight", "1")?,
        }
        Ok(Some(group))
    }

    /// Allows so many microseconds in a tenth of a second, or all with -1.
    fn limit(&self, time: i32) -> Result<()> {
        match self.version {
            Version::One => self.write("cpu.cfs_quota_us", &time.to_string()),
            Version::Two if time < 0 => self.write("cpu.max", "max"),
            Version::Two => self.write("cpu.max", &format!("{time} 100000")),
        }
    }

    fn add(&self, process: u32) -> Result<()> {
        self.write("cgroup.procs", &process.to_string())
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| format!("write {text} to {path:?}"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for process in fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default().lines() {
            // It may have ended.
            let _ = fs::write(self.parent.join("cgroup.procs"), process);
        }
        let _ = fs::remove_dir(&self.folder);
    }
}

/// The number of the policy in `/proc/PID/stat`.
const SCHED_IDLE: u32 = 5;
/// How long a machine that has much else to do may take for anything here.
const PATIENCE: Duration = Duration::from_secs(60);
