//! A mount with its keeper and its clients, each a process of its own.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::str::FromStr as _;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use strata_unionfs::{Faults, Limits, Lower, MountSpec, Options, Passthrough, Target, Transport, Upper, mount_kept};

use crate::client::Client;
use crate::uring::EnabledUring;

/// What a scene is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) kills: Kills,
    /// The layers are on tmpfs.
    pub(crate) in_memory: bool,
    pub(crate) passthrough: bool,
    pub(crate) transport: Transport,
    /// All is done in a user namespace.
    pub(crate) namespace: bool,
    /// What is noted about requests is not believed.
    pub(crate) forgetful: bool,
    /// The layer may hold no more than some megabytes, which the clients never need.
    pub(crate) limited: bool,
    /// A request of this kind kills.
    pub(crate) deadly: Option<u32>,
    /// Size of one more file of the lower.
    pub(crate) large: u64,
    /// The mount lies over its own lower.
    pub(crate) over_lower: bool,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            kills: Kills::Steps,
            in_memory: false,
            passthrough: true,
            transport: Transport::Device,
            namespace: false,
            forgetful: false,
            limited: false,
            deadly: None,
            large: 0,
            over_lower: false,
        }
    }
}

impl Plan {
    /// The same over io_uring.
    pub(crate) fn io_uring() -> Plan {
        Plan { transport: Transport::Ring, ..Plan::default() }
    }
}

/// Who kills servers, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kills {
    Never,
    /// Every worker dies of the first request.
    Always,
    /// The test, at any moment.
    Outside,
    /// They themselves at one in so many steps of requests, and the test as well.
    Steps,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Total {
    pub(crate) kills: u64,
    pub(crate) injected: u64,
    pub(crate) resent: u64,
    pub(crate) intended: u64,
    pub(crate) executed: u64,
    pub(crate) poisoned: u64,
    pub(crate) unpinned: u64,
    pub(crate) operations: u64,
    pub(crate) errors: u64,
    /// In microseconds.
    pub(crate) slowest: u64,
    pub(crate) pause: u64,
    pub(crate) messages: Vec<String>,
}

impl Total {
    pub(crate) fn add(&mut self, other: Total) {
        self.kills += other.kills;
        self.injected += other.injected;
        self.resent += other.resent;
        self.intended += other.intended;
        self.executed += other.executed;
        self.poisoned += other.poisoned;
        self.unpinned += other.unpinned;
        self.operations += other.operations;
        self.errors += other.errors;
        self.slowest = self.slowest.max(other.slowest);
        self.pause = self.pause.max(other.pause);
        self.messages.extend(other.messages);
    }

    fn numbers(&mut self) -> [&mut u64; 11] {
        [
            &mut self.kills,
            &mut self.injected,
            &mut self.resent,
            &mut self.intended,
            &mut self.executed,
            &mut self.poisoned,
            &mut self.unpinned,
            &mut self.operations,
            &mut self.errors,
            &mut self.slowest,
            &mut self.pause,
        ]
    }

    /// Reads the numbers from one line, the messages from those behind.
    fn parse(text: &str) -> Result<Total> {
        let mut lines = text.lines();
        let mut total = Total::default();
        let line = lines.next().context("no answer")?.to_owned();
        let mut words = line.split(' ');
        for number in total.numbers() {
            *number = u64::from_str(words.next().with_context(|| format!("{line:?} is short"))?)?;
        }
        total.messages = lines.map(str::to_owned).collect();
        Ok(total)
    }

    fn print(mut self) {
        let line: Vec<String> = self.numbers().iter().map(|number| number.to_string()).collect();
        println!("{}", line.join(" "));
        self.messages.iter().for_each(|message| println!("{}", message.replace('\n', " ")));
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Total { kills, injected, resent, intended, executed, poisoned, unpinned, .. } = self;
        write!(
            f,
            "{kills} kills ({injected} at a step), {resent} requests sent again, {intended} of them with an intent, "
        )?;
        write!(f, "{executed} of those executed, {poisoned} poisoned, {unpinned} not pinned; {} errors ", self.errors)?;
        write!(
            f,
            "in {} operations, slowest {} ms; longest pause {} us",
            self.operations,
            self.slowest / 1000,
            self.pause
        )
    }
}

/// Runs clients for some time.
pub(crate) fn run(plan: &Plan, limit: Duration) -> Result<Total> {
    if !plan.namespace {
        return Scene::start(plan)?.work(plan, limit);
    }
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--"]).arg(std::env::current_exe()?);
    command.env("ROLE", "scene").env("SECONDS", limit.as_secs().to_string());
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the scene in a namespace: {}", output.status);
    Total::parse(std::str::from_utf8(&output.stdout)?)
}

/// Plays a process of a scene.
pub(crate) fn play(role: &str) -> ExitCode {
    let played = match role {
        "keeper" => keeper(),
        "client" => client(),
        "scene" => {
            let limit = Duration::from_secs(number("SECONDS"));
            Scene::start(&Plan::default()).and_then(|scene| scene.work(&Plan::default(), limit)).map(Total::print)
        }
        other => Err(anyhow::anyhow!("no role {other:?}")),
    };
    match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:?}");
            // Whoever plays the others may not come to reading that.
            eprintln!("the {role} fails: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A mount with its keeper.
pub(crate) struct Scene {
    keeper: Child,
    says: BufReader<std::process::ChildStdout>,
    base: tempfile::TempDir,
    over_lower: bool,
}

impl Scene {
    pub(crate) fn start(plan: &Plan) -> Result<Scene> {
        let place = if plan.in_memory { Path::new("/dev/shm") } else { Path::new(env!("CARGO_TARGET_TMPDIR")) };
        let base = tempfile::Builder::new().prefix("survive-").tempdir_in(place)?;
        for folder in ["lower", "upper", "work", "mount"] {
            fs::create_dir(base.path().join(folder))?;
        }
        fill(&base.path().join("lower"), plan.large)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.env("ROLE", "keeper").env("BASE", base.path()).stdout(Stdio::piped());
        command.env("PASSTHROUGH", u8::from(plan.passthrough).to_string());
        command.env("TRANSPORT", plan.transport.name());
        command.env("AT_FOLDER", if plan.over_lower { "lower" } else { "mount" });
        command.env("FORGETFUL", u8::from(plan.forgetful).to_string());
        command.env("LIMITED", u8::from(plan.limited).to_string());
        command.env("DEADLY", plan.deadly.unwrap_or(0).to_string());
        let (one_in, at) = match plan.kills {
            Kills::Never | Kills::Outside => (0, 0),
            Kills::Always => (1, 1),
            Kills::Steps => (STEPS_PER_KILL, 0),
        };
        command.env("ONE_IN", one_in.to_string()).env("AT", at.to_string());
        let mut keeper = command.spawn()?;
        let mut says = BufReader::new(keeper.stdout.take().context("no output")?);
        let mut line = String::new();
        says.read_line(&mut line)?;
        if line != "mounted\n" {
            says.read_to_string(&mut line)?;
            let _ = keeper.wait();
            bail!("the keeper says {line:?}");
        }
        Ok(Scene { keeper, says, base, over_lower: plan.over_lower })
    }

    pub(crate) fn mount(&self) -> PathBuf {
        self.base.path().join(if self.over_lower { "lower" } else { "mount" })
    }

    pub(crate) fn lower(&self) -> PathBuf {
        self.base.path().join("lower")
    }

    /// The staging folder.
    pub(crate) fn work_folder(&self) -> PathBuf {
        self.base.path().join("work/work")
    }

    /// Lets clients work for some time, and ends the scene.
    fn work(self, plan: &Plan, limit: Duration) -> Result<Total> {
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let mut command = Command::new(std::env::current_exe()?);
            command.env("ROLE", "client").env("SECONDS", limit.as_secs().to_string());
            let folder = format!("c{number}");
            command.env("ROOT", self.mount().join(&folder)).env("LOWER", self.lower().join(&folder));
            let seed = u64::from(std::process::id()) * 1000 + number + seconds_of_the_day();
            command.env("SEED", seed.to_string()).stdout(Stdio::piped());
            clients.push(command.spawn()?);
        }
        let (mut outside, mut dice) = (0, seconds_of_the_day() | 1);
        let end = Instant::now() + limit + PATIENCE;
        while clients.iter_mut().any(|client| matches!(client.try_wait(), Ok(None))) {
            ensure!(Instant::now() < end, "a client hangs");
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            std::thread::sleep(Duration::from_micros(40_000 + (dice >> 33) % 100_000));
            if !matches!(plan.kills, Kills::Outside | Kills::Steps) {
                continue;
            }
            let Some(worker) = self.worker().ok().flatten() else { continue };
            // If all were killed before they serve, where starting takes as long as a round, nothing would ever be
            // answered. It has one thread until then.
            let serves =
                fs::read_dir(format!("/proc/{}/task", worker.as_raw_pid())).is_ok_and(|tasks| tasks.count() > 1);
            if (serves || (dice >> 20).is_multiple_of(8)) && kill_process(worker, Signal::KILL).is_ok() {
                outside += 1;
            }
        }
        let mut total = Total::default();
        for client in clients {
            let output = client.wait_with_output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let seen = Total::parse(&text).with_context(|| format!("a client says {text:?}"))?;
            total.add(seen);
        }
        let (survived, base) = self.end_and_leave()?;
        if plan.limited {
            let (kept, counted) = (kept_usage(base.path())?, count(base.path())?);
            ensure!(kept == counted, "after {survived}: {kept:?} bytes and inodes, but a walk finds {counted:?}");
        }
        ensure!(survived.kills >= survived.injected && survived.kills <= survived.injected + outside, "{survived}");
        total.add(survived);
        Ok(total)
    }

    /// Kills the process that serves, waiting for it if there is none just now.
    pub(crate) fn kill_worker(&self) -> Result<()> {
        for _ in 0..1000 {
            if let Some(worker) = self.worker()? {
                return Ok(kill_process(worker, Signal::KILL)?);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!("there is no worker")
    }

    /// Returns the process that serves, or is about to.
    fn worker(&self) -> Result<Option<Pid>> {
        let pid = self.keeper.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        // Not those that only start the queues of an io_uring again.
        let serves =
            |child: &&str| fs::read(format!("/proc/{child}/comm")).is_ok_and(|name| !name.ends_with(b"-kick\n"));
        let child = children.split_ascii_whitespace().find(serves);
        child.map(|child| Pid::from_raw(child.parse()?).context("no pid")).transpose()
    }

    /// Returns how much memory of those that it shares with its successors the server has touched, in KiB.
    pub(crate) fn shared_memory(&self) -> Result<u64> {
        let worker = self.worker()?.context("there is no worker")?;
        let status = fs::read_to_string(format!("/proc/{}/status", worker.as_raw_pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssShmem:")).context("no RssShmem")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Waits until as little is left of it, or for 10 seconds.
    pub(crate) fn shared_memory_settles(&self, settled: impl Fn(u64) -> bool) -> Result<u64> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let left = self.shared_memory()?;
            if settled(left) || Instant::now() > end {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub(crate) fn kill_keeper(&self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.keeper.id())?).context("no pid")?;
        Ok(kill_process(pid, Signal::KILL)?)
    }

    /// Waits for the end of the keeper.
    pub(crate) fn keeper_ends(&mut self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if !matches!(self.keeper.try_wait(), Ok(None)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// Asks for the attributes of a name that nobody has asked for before.
    pub(crate) fn client(&self, name: &str) -> JoinHandle<io::Result<()>> {
        let path = self.mount().join(name);
        std::thread::spawn(move || path.symlink_metadata().map(drop))
    }

    /// Takes the mount away, which must not take long.
    pub(crate) fn unmount_within(self, limit: Duration) -> Result<()> {
        let mount = self.mount();
        let (done, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _ = done.send(rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::empty()));
        });
        wait.recv_timeout(limit).context("unmounting hangs")?.context("unmount")
    }

    /// Takes the mount away and returns what it has been through.
    pub(crate) fn end(self) -> Result<Total> {
        self.end_and_leave().map(|(total, _)| total)
    }

    /// The same, and leaves the folders.
    fn end_and_leave(mut self) -> Result<(Total, tempfile::TempDir)> {
        rustix::mount::unmount(self.mount(), rustix::mount::UnmountFlags::empty()).context("unmount")?;
        let mut text = String::new();
        self.says.read_to_string(&mut text)?;
        ensure!(self.keeper.wait()?.success(), "the keeper says {text:?}");
        let next = tempfile::tempdir_in(self.base.path().parent().context("no parent")?)?;
        let base = std::mem::replace(&mut self.base, next);
        Ok((Total::parse(&text)?, base))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // After a failure in the middle; otherwise all of it is gone already.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        let _ = rustix::mount::unmount(self.mount(), rustix::mount::UnmountFlags::DETACH);
    }
}

/// Bytes and inodes that the last server has written down.
fn kept_usage(base: &Path) -> Result<(u64, u64)> {
    let text = fs::read_to_string(base.join("work/strata-usage")).context("no sums were kept")?;
    let value = |name: &str| -> Result<u64> {
        let value = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("{text:?}"))?;
        Ok(value.trim().parse()?)
    };
    Ok((value("bytes ")?, value("inodes ")?))
}

/// Bytes and inodes in the upper, by walking it.
fn count(base: &Path) -> Result<(u64, u64)> {
    let mut seen = HashSet::new();
    let (mut bytes, mut inodes) = (0, 0);
    let mut pending = vec![base.join("upper")];
    for entry in fs::read_dir(base.join("work/strata-links")).into_iter().flatten() {
        pending.push(entry?.path());
    }
    while let Some(path) = pending.pop() {
        let metadata = path.symlink_metadata()?;
        let whiteout = metadata.file_type().is_char_device() && metadata.rdev() == 0;
        let names = path.extension().is_some_and(|extension| extension == "names");
        if whiteout || names || !seen.insert(metadata.ino()) {
            continue;
        }
        bytes += metadata.blocks() * 512;
        inodes += 1;
        if metadata.is_dir() {
            for entry in fs::read_dir(&path)? {
                pending.push(entry?.path());
            }
        }
    }
    Ok((bytes, inodes))
}

fn keeper() -> Result<()> {
    let base = PathBuf::from(std::env::var("BASE")?);
    let passthrough = if number("PASSTHROUGH") == 1 { Passthrough::Auto } else { Passthrough::Off };
    let asked = match std::env::var("TRANSPORT")?.as_str() {
        "ring" => Transport::Ring,
        _ => Transport::Device,
    };
    let limits = match number("LIMITED") {
        1 => Limits { bytes: Some(256 << 20), inodes: Some(100_000) },
        _ => Limits::default(),
    };
    let spec = MountSpec {
        lower: Lower::Folders(vec![base.join("lower")]),
        upper: Some(Upper { dir: base.join("upper"), work: base.join("work") }),
        options: Options { passthrough, transport: asked, allow_other: true, limits, ..Options::default() },
    };
    let some = |number: u64| (number > 0).then_some(number);
    let faults = Faults {
        kill_one_in: some(number("ONE_IN")),
        kill_at: some(number("AT")),
        forgetful: number("FORGETFUL") == 1,
        patience: (number("FORGETFUL") == 1).then_some(Duration::from_secs(2)),
        deadly: u32::try_from(number("DEADLY")).ok().filter(|opcode| *opcode > 0),
    };
    let uring = (asked == Transport::Ring).then(EnabledUring::new);
    let mounted = mount_kept(&spec, &Target::Directory(base.join(std::env::var("AT_FOLDER")?)), faults)?;
    drop(uring);
    println!("mounted");
    let (result, survived) = mounted.serve_and_tell();
    result?;
    let total = Total {
        kills: survived.deaths,
        injected: survived.injected,
        resent: survived.resent,
        intended: survived.intended,
        executed: survived.executed,
        poisoned: survived.poisoned,
        unpinned: survived.unpinned,
        pause: u64::try_from(survived.longest_pause.as_micros())?,
        ..Total::default()
    };
    total.print();
    Ok(())
}

fn client() -> Result<()> {
    let path = |name: &str| std::env::var(name).map(PathBuf::from);
    rustix::process::umask(rustix::fs::Mode::empty());
    let mut client = Client::new(&path("ROOT")?, &path("LOWER")?, number("SEED"))?;
    client.run(Duration::from_secs(number("SECONDS")));
    let total = Total {
        operations: client.operations,
        errors: client.error_count,
        slowest: u64::try_from(client.slowest.as_micros())?,
        messages: client.errors,
        ..Total::default()
    };
    total.print();
    Ok(())
}

/// Makes what the clients find in their folders.
fn fill(lower: &Path, large: u64) -> Result<()> {
    for client in 0..CLIENTS {
        let root = lower.join(format!("c{client}"));
        for folder in ["", "a", "a/deep", "a/deep/er", "b", "b/empty"] {
            fs::create_dir(root.join(folder))?;
        }
        for number in 0..24_usize {
            let folder = ["", "a", "a/deep", "a/deep/er", "b"][number % 5];
            let path = root.join(folder).join(format!("f{number}"));
            fs::write(&path, vec![b'a' + u8::try_from(number)?; number * 397])?;
            if number % 6 == 0 {
                fs::hard_link(&path, root.join(format!("b/link{number}")))?;
            }
        }
        std::os::unix::fs::symlink("a/deep", root.join("symlink"))?;
    }
    if large > 0 {
        let file = fs::File::create(lower.join("large"))?;
        let block: Vec<u8> = (0..1 << 20).map(|place: u32| u8::try_from(place % 253).unwrap_or(0)).collect();
        for _ in 0..large >> 20 {
            io::Write::write_all(&mut &file, &block)?;
        }
    }
    Ok(())
}

fn number(name: &str) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn seconds_of_the_day() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

const CLIENTS: u64 = 3;
/// How much longer than it was to work a client may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// About one kill in 30 ms under load.
const STEPS_PER_KILL: u64 = 1000;
