//! Rotating layers: steps on objects of every kind, and after each round what was the upper is a lower.
//!
//! An *instance* is a folder with an object `x` of some kind and things around it that steps can meet. Every instance gets
//! a few steps, one in each round; between rounds the layers rotate, ten deep. Names, content, attributes, link counts and
//! numbers must be those of a plain folder all the time. `STRATA_ROTATING_INSTANCES` says how many of the second kind,
//! with random steps, there are; `STRATA_SEED` where they begin.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::{OFlags, RenameFlags};
use rustix::process::{Pid, Signal, kill_process};
use strata_tests::processes;
use strata_tests::random::Random;
use strata_tests::step::Step;
use strata_tests::tier::{Need, Suite};
use strata_tests::twin::{Numbers, Twin};
use strata_tests::union::{Server, Union};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("rotating::privileged_every_step_on_every_kind", &[Need::Fuse], every_step_on_every_kind);
    suite.add("rotating::privileged_random_steps", &[Need::Fuse], random_steps);
    suite.add("rotating::privileged_random_steps_without_passthrough", &[Need::Fuse], random_steps_without_passthrough);
    suite.add("rotating::privileged_long_stories", &[Need::Fuse], long_stories);
    suite.add("rotating::privileged_links_of_what_was_changed", &[Need::Fuse], links_of_what_was_changed);
    suite.add("rotating::privileged_random_steps_while_servers_are_killed", &[Need::Fuse], while_servers_are_killed);
    let overlayfs = [Need::Server(Server::Overlayfs)];
    suite.add("rotating::privileged_overlayfs_for_comparison", &overlayfs, overlayfs_for_comparison);
}

/// What `x` is at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Absent,
    File,
    EmptyFile,
    HardLinked,
    EmptyFolder,
    Folder,
    LinkToFile,
    LinkToFolder,
    LinkToNothing,
    LinkToLink,
    Fifo,
    Device,
}

const KINDS: [Kind; 12] = [
    Kind::Absent,
    Kind::File,
    Kind::EmptyFile,
    Kind::HardLinked,
    Kind::EmptyFolder,
    Kind::Folder,
    Kind::LinkToFile,
    Kind::LinkToFolder,
    Kind::LinkToNothing,
    Kind::LinkToLink,
    Kind::Fifo,
    Kind::Device,
];

/// Where `x` is at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Lower,
    Upper,
}

fn write(path: &str, text: &'static str) -> Step {
    Step::Open(path.to_owned(), OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC, text)
}

/// What is around `x`, in the lower.
fn surroundings(at: &str) -> Vec<Step> {
    let s = |name: &str| format!("{at}/{name}");
    vec![
        Step::Mkdir(at.to_owned()),
        write(&s("f"), "fff"),
        Step::Mkdir(s("d")),
        write(&s("d/c"), "ccc"),
        Step::Mkdir(s("d/s")),
        write(&s("d/s/g"), "ggg"),
        Step::Mkdir(s("e")),
        Step::Symlink("f".to_owned(), s("l")),
    ]
}

fn object(kind: Kind, at: &str) -> Vec<Step> {
    let (x, s) = (format!("{at}/x"), |name: &str| format!("{at}/{name}"));
    match kind {
        Kind::Absent => vec![],
        Kind::File => vec![write(&x, "xxx"), Step::SetXattr(x, "value")],
        Kind::EmptyFile => vec![write(&x, "")],
        Kind::HardLinked => vec![write(&x, "linked"), Step::Link(x.clone(), s("h")), Step::Link(x, s("d/h"))],
        Kind::EmptyFolder => vec![Step::Mkdir(x)],
        Kind::Folder => {
            vec![Step::Mkdir(x), write(&s("x/a"), "aaa"), Step::Mkdir(s("x/b")), write(&s("x/b/c"), "bbb")]
        }
        Kind::LinkToFile => vec![Step::Symlink("f".to_owned(), x)],
        Kind::LinkToFolder => vec![Step::Symlink("d".to_owned(), x)],
        Kind::LinkToNothing => vec![Step::Symlink("nothing".to_owned(), x)],
        Kind::LinkToLink => vec![Step::Symlink("l".to_owned(), x)],
        Kind::Fifo => vec![Step::Fifo(x)],
        Kind::Device => vec![Step::Device(x)],
    }
}

/// Everything that is done to `x`, as steps in the instance at `at`.
fn steps(at: &str, layers: Layers) -> Vec<Step> {
    let s = |name: &str| format!("{at}/{name}");
    let x = s("x");
    let mut all = Vec::new();
    let (read, only_write, both) = (OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR);
    let (create, exclusive, cut, append) =
        (OFlags::CREATE, OFlags::CREATE | OFlags::EXCL, OFlags::TRUNC, OFlags::APPEND);
    for how in [read, only_write, both] {
        for more in [OFlags::empty(), cut, append, create, exclusive, create | cut, create | append, cut | append] {
            all.push(Step::Open(x.clone(), how | more, "W"));
        }
    }
    for more in [OFlags::DIRECTORY, OFlags::NOFOLLOW, OFlags::PATH | OFlags::NOFOLLOW, OFlags::NOFOLLOW | create] {
        all.push(Step::Open(x.clone(), read | more, ""));
    }
    for more in [OFlags::empty(), create, OFlags::DIRECTORY] {
        all.push(Step::Open(s("x/"), read | more, ""));
    }
    all.push(Step::Open(s("x/"), both | create | cut, "W"));
    all.push(Step::Open(s("x/new"), both | create, "new"));
    all.push(Step::Open(s("x/a"), both, "A"));
    all.extend([0, 2, 10_000].map(|length| Step::Truncate(x.clone(), length)));
    all.extend([
        Step::Chmod(x.clone(), 0o604),
        Step::Chown(x.clone(), 7),
        Step::Touch(x.clone(), 1_000_000),
        Step::SetXattr(x.clone(), "other"),
        Step::RemoveXattr(x.clone()),
        Step::ReadLink(x.clone()),
        Step::List(x.clone()),
        Step::Unlink(x.clone()),
        Step::Unlink(s("x/")),
        Step::Rmdir(x.clone()),
        Step::Rmdir(s("x/")),
        Step::Mkdir(x.clone()),
        Step::Mkdir(s("x/")),
        Step::Mkdir(s("x/sub")),
        Step::Symlink("f".to_owned(), x.clone()),
        Step::Symlink("f".to_owned(), s("x/")),
        Step::Fifo(x.clone()),
        Step::Device(x.clone()),
        Step::DeleteOpen(x.clone()),
        Step::RemoveAll(x.clone()),
        Step::RemoveAll(s("d")),
        Step::RemoveAll(at.to_owned()),
        Step::Mkdir(at.to_owned()),
        Step::Mkdir(s("d")),
        Step::Mkdir(s("d/s")),
        write(&s("d/c"), "again"),
        write(&s("d/s/new"), "new"),
        Step::Chmod(s("d"), 0o701),
        Step::Chmod(s("h"), 0o600),
        Step::Unlink(s("h")),
        Step::List(s("d")),
    ]);
    for (old, new) in
        [("x", "y"), ("x", "f"), ("f", "x"), ("x", "d/n"), ("x", "l"), ("x", "x"), ("x", "h"), ("y", "x"), ("x", "x/z")]
    {
        all.push(Step::Link(s(old), s(new)));
    }
    let pairs = [
        ("x", "y"),
        ("x/", "y"),
        ("x", "y/"),
        ("y", "x"),
        ("x", "f"),
        ("f", "x"),
        ("x", "d"),
        ("d", "x"),
        ("x", "e"),
        ("e", "x"),
        ("d", "y"),
        ("x", "d/x"),
        ("d/c", "y"),
        ("d/s", "x/s"),
        ("d/s", "y"),
        ("x", "l"),
        ("x", "x"),
        ("x", "h"),
        ("h", "x"),
        ("x", "x/in"),
        ("x/a", "x"),
        ("x/b", "y"),
    ];
    for (old, new) in pairs {
        all.push(Step::Rename(s(old), s(new), RenameFlags::empty()));
    }
    for (old, new) in [("x", "y"), ("x", "f"), ("y", "x"), ("d", "x")] {
        all.push(Step::Rename(s(old), s(new), RenameFlags::NOREPLACE));
    }
    for (old, new) in [("x", "f"), ("x", "d"), ("x", "y"), ("x", "d/c"), ("x", "e"), ("d/s", "x"), ("x", "x/a")] {
        all.push(Step::Rename(s(old), s(new), RenameFlags::EXCHANGE));
    }
    // The whole instance moves, and so do all paths below it; the next steps find nothing there, or make it anew.
    all.push(Step::Rename(at.to_owned(), format!("{at}-moved"), RenameFlags::empty()));
    all.push(Step::Rename(format!("{at}-moved"), at.to_owned(), RenameFlags::empty()));
    all.retain(|step| layers == Layers::Stay || !matches!(step, Step::Link(..)));
    all
}

/// Steps for one instance, one for each round.
struct Instance {
    at: String,
    kind: Kind,
    place: Place,
    steps: Vec<Step>,
}

/// What happens between rounds. How many names of a lower file were deleted is no part of the upper unless it was copied up;
/// so there are no hard links where layers rotate but in [`links_of_what_was_changed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layers {
    Rotate,
    Stay,
}

/// Does rounds of steps, each on a new mount.
fn run(mut twin: Twin, layers: Layers, instances: &[Instance]) -> Result<()> {
    for instance in instances {
        twin.prepare(&surroundings(&instance.at))?;
        if instance.place == Place::Lower {
            twin.prepare(&object(instance.kind, &instance.at))?;
        }
    }
    twin.mount()?;
    for instance in instances.iter().filter(|instance| instance.place == Place::Upper) {
        for step in object(instance.kind, &instance.at) {
            twin.step(&step)?;
        }
    }
    let rounds = instances.iter().map(|instance| instance.steps.len()).max().unwrap_or(0);
    for round in 0..rounds {
        for instance in instances {
            if let Some(step) = instance.steps.get(round) {
                let what = || format!("{:?} in the {:?}, step {round}", instance.kind, instance.place);
                twin.step(step).with_context(what)?;
            }
        }
        if round == 0 {
            twin.verify()?;
        }
        if layers == Layers::Rotate && twin.union().depth() <= DEPTH { twin.rotate()? } else { twin.remount()? }
    }
    twin.union().unmount()
}

/// Each step once on each kind in each place; then, a layer further up, the same things are looked at and made again.
fn every_step(server: &dyn Fn() -> Result<Twin>) -> Result<()> {
    for kind in KINDS {
        let layers = if kind == Kind::HardLinked { Layers::Stay } else { Layers::Rotate };
        let mut instances = Vec::new();
        for place in [Place::Lower, Place::Upper] {
            // Each step in one of the two places; the random ones have both.
            for number in (usize::from(place == Place::Upper)..steps("", layers).len()).step_by(2) {
                let at = format!("i{}", instances.len());
                let first = steps(&at, layers).swap_remove(number);
                let after = [write(&format!("{at}/x"), "after"), Step::RemoveAll(format!("{at}/x"))];
                let steps = [first].into_iter().chain(after).collect();
                instances.push(Instance { at, kind, place, steps });
            }
        }
        run(server()?, layers, &instances)?;
    }
    Ok(())
}

fn every_step_on_every_kind() -> Result<()> {
    every_step(&|| ours("passthrough=auto"))
}

fn random(server: &dyn Fn() -> Result<Twin>, seed: u64) -> Result<()> {
    let wanted = std::env::var("STRATA_ROTATING_INSTANCES").ok().and_then(|text| text.parse().ok());
    let mut left: usize = wanted.unwrap_or(INSTANCES);
    let mut random = Random::new(seed);
    let mut layers = Layers::Stay;
    while left > 0 {
        let count = left.min(BATCH);
        left -= count;
        let begun = random.state();
        layers = if layers == Layers::Stay { Layers::Rotate } else { Layers::Stay };
        let instances: Vec<Instance> = (0..count)
            .map(|number| {
                let at = format!("i{number}");
                let all = steps(&at, layers);
                let steps = (0..ROUNDS).map(|_| random.choose(&all).clone()).collect();
                let place = *random.choose(&[Place::Lower, Place::Upper]);
                let kind = *random.choose(&KINDS);
                let kind = if kind == Kind::HardLinked && layers == Layers::Rotate { Kind::File } else { kind };
                Instance { kind, place, at, steps }
            })
            .collect();
        run(server()?, layers, &instances).with_context(|| format!("STRATA_SEED={begun}"))?;
    }
    Ok(())
}

fn random_steps() -> Result<()> {
    random(&|| ours("passthrough=auto"), seed())
}

fn random_steps_without_passthrough() -> Result<()> {
    random(&|| ours("passthrough=off"), seed() + 1)
}

/// Whoever serves the mount is killed again and again, and nobody may see it.
fn while_servers_are_killed() -> Result<()> {
    let done = AtomicBool::new(false);
    let kills = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut chance = Random::new(seed());
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20 + chance.below(100)));
                for worker in processes::workers() {
                    let Some(worker) = Pid::from_raw(i32::try_from(worker).unwrap_or(0)) else { continue };
                    // It may just have ended by itself.
                    kills.fetch_add(u32::from(kill_process(worker, Signal::KILL).is_ok()), Ordering::Relaxed);
                }
            }
        });
        // The transport of which it is promised.
        let result = random(&|| ours("transport=device"), seed() + 2);
        done.store(true, Ordering::Relaxed);
        result
    })?;
    ensure!(kills.load(Ordering::Relaxed) > 5, "only {kills:?} kills");
    Ok(())
}

/// Sequences that unions are known to get wrong, with a rotation after every step.
fn long_stories() -> Result<()> {
    tell(&|| ours("passthrough=auto"))
}

fn tell(server: &dyn Fn() -> Result<Twin>) -> Result<()> {
    for (number, (kind, story)) in stories().iter().enumerate() {
        let mut twin = server()?;
        twin.prepare(&surroundings("i"))?;
        twin.prepare(&object(*kind, "i"))?;
        twin.mount()?;
        for step in story {
            twin.step(step).and_then(|()| twin.verify()).with_context(|| format!("story {number}"))?;
            let again = if *kind == Kind::HardLinked { twin.remount() } else { twin.rotate() };
            again.with_context(|| format!("story {number}, after {step}"))?;
        }
        twin.union().unmount()?;
    }
    Ok(())
}

/// What becomes of the names of a file that is changed in each round, where the layers rotate after it.
fn links_of_what_was_changed() -> Result<()> {
    let s = |name: &str| format!("i/{name}");
    let mv = |old: &str, new: &str| Step::Rename(s(old), s(new), RenameFlags::empty());
    let stories = [
        // The name that it was changed under goes, then the next, until one is left.
        vec![
            vec![write(&s("x"), "changed"), Step::Unlink(s("x"))],
            vec![write(&s("h"), "again"), Step::Unlink(s("h"))],
        ],
        vec![
            vec![Step::Chmod(s("h"), 0o604), Step::Unlink(s("h"))],
            vec![Step::Truncate(s("x"), 3), Step::Unlink(s("x"))],
            vec![write(&s("d/h"), "last")],
        ],
        // Replaced, and moved away with its folder.
        vec![
            vec![write(&s("x"), "changed"), mv("f", "x")],
            vec![mv("d", "n"), write(&s("n/h"), "third"), mv("n/h", "m")],
        ],
        vec![
            vec![write(&s("d/h"), "changed"), Step::RemoveAll(s("d"))],
            vec![Step::Link(s("x"), s("y")), write(&s("y"), "more")],
        ],
        // Changed by its descriptor alone.
        vec![vec![Step::Touch(s("x"), 1_000_000), Step::DeleteOpen(s("x"))], vec![Step::Touch(s("h"), 2_000_000)]],
    ];
    for (number, story) in stories.iter().enumerate() {
        let mut twin = ours("passthrough=auto")?;
        twin.prepare(&surroundings("i"))?;
        twin.prepare(&object(Kind::HardLinked, "i"))?;
        twin.mount()?;
        for round in story {
            for step in round {
                twin.step(step).and_then(|()| twin.verify()).with_context(|| format!("story {number}"))?;
            }
            twin.rotate().with_context(|| format!("story {number}, after {round:?}"))?;
        }
        twin.union().unmount()?;
    }
    Ok(())
}

fn stories() -> Vec<(Kind, Vec<Step>)> {
    let s = |name: &str| format!("i/{name}");
    let mv = |old: &str, new: &str| Step::Rename(s(old), s(new), RenameFlags::empty());
    vec![
        // Names go round.
        (
            Kind::File,
            vec![
                mv("f", "g"),
                mv("x", "f"),
                mv("g", "x"),
                mv("f", "g"),
                mv("x", "f"),
                mv("g", "x"),
                write(&s("x"), "new"),
            ],
        ),
        // Folders go round, and something is made in them.
        (
            Kind::File,
            vec![
                mv("d", "n"),
                write(&s("n/c"), "changed"),
                mv("n", "d"),
                mv("e", "n"),
                mv("d", "n/d"),
                write(&s("n/d/s/g"), "deep"),
                mv("n/d/s", "d"),
                Step::List(s("d")),
                mv("n", "e"),
            ],
        ),
        // What was deleted does not come back.
        (
            Kind::File,
            vec![
                Step::RemoveAll(s("d")),
                Step::Mkdir(s("d")),
                Step::Mkdir(s("d/s")),
                write(&s("d/s/new"), "new"),
                Step::RemoveAll(s("d")),
                Step::Mkdir(s("d")),
                Step::Mkdir(s("d/s")),
                mv("d", "n"),
                Step::Mkdir(s("d")),
                Step::RemoveAll(s("n")),
                Step::Mkdir(s("n")),
            ],
        ),
        // A moved folder leaves nothing behind, and what takes its place hides it.
        (
            Kind::File,
            vec![
                mv("d", "n"),
                Step::Mkdir(s("d")),
                Step::List(s("d")),
                mv("n/s", "d/s"),
                Step::Mkdir(s("n/s")),
                Step::Rename(s("n"), s("d"), RenameFlags::EXCHANGE),
                Step::List(s("n/s")),
                Step::RemoveAll("i".to_owned()),
                Step::Mkdir("i".to_owned()),
                Step::Mkdir(s("d")),
            ],
        ),
        // Hard links stay together.
        (
            Kind::HardLinked,
            vec![
                Step::Chmod(s("x"), 0o600),
                write(&s("h"), "through h"),
                Step::Link(s("d/h"), s("e/h")),
                Step::Unlink(s("x")),
                mv("h", "x"),
                write(&s("e/h"), "through e/h"),
                Step::Unlink(s("d/h")),
                mv("e/h", "x"),
                Step::Unlink(s("x")),
                write(&s("e/h"), "only"),
            ],
        ),
        // Links to links, moved and replaced.
        (
            Kind::File,
            vec![
                Step::Symlink("l".to_owned(), s("m")),
                write(&s("m"), "through m"),
                mv("m", "n"),
                mv("l", "m"),
                mv("m", "l"),
                write(&s("n"), "again"),
                Step::Unlink(s("n")),
            ],
        ),
        // A file becomes a folder, and a folder a file.
        (
            Kind::File,
            vec![
                Step::Unlink(s("f")),
                Step::Mkdir(s("f")),
                write(&s("f/in"), "in"),
                Step::RemoveAll(s("f")),
                write(&s("f"), "file"),
                Step::RemoveAll(s("d")),
                write(&s("d"), "file"),
                Step::Unlink(s("d")),
                Step::Mkdir(s("d")),
                Step::List(s("d")),
            ],
        ),
    ]
}

/// Overlayfs does all this as well: if it fails, the test is wrong.
fn overlayfs_for_comparison() -> Result<()> {
    tell(&|| Ok(Twin::new(Server::Overlayfs)?.over_rotations(Numbers::Change)))
}

fn ours(options: &str) -> Result<Twin> {
    Twin::of(Union::new(Server::Strata)?.with_options(options))
}

fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| std::env::var("STRATA_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1))
}

/// Instances with random steps, in each of the two modes.
const INSTANCES: usize = 200;
/// Instances in one tree.
const BATCH: usize = 100;
/// Steps of an instance with random ones.
const ROUNDS: usize = 8;
/// How deep the stack of lowers becomes.
const DEPTH: usize = 10;
