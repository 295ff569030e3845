//! Mounts whose server is killed under load.
//!
//! Each test needs processes of its own, single-threaded ones at that; this binary plays them when it is started with
//! `ROLE` set. `SURVIVE_KILLS` is how many kills each of the long tests goes for.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test")]

mod client;
mod model;
mod scene;
#[path = "../common/uring.rs"]
mod uring;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::fs::{CWD, FileType, Mode};

use self::scene::{Kills, Plan, Scene, Total};

fn main() -> ExitCode {
    if let Some(role) = std::env::var_os("ROLE") {
        return scene::play(&role.into_string().unwrap());
    }
    let tests: [Test; 23] = [
        ("privileged_killed_from_outside_on_disk", || storm(&Plan { kills: Kills::Outside, ..Plan::default() })),
        ("privileged_killed_at_any_step_on_disk", || storm(&Plan::default())),
        ("privileged_killed_at_any_step_in_memory", || storm(&Plan { in_memory: true, ..Plan::default() })),
        ("privileged_killed_at_any_step_without_passthrough", || {
            storm(&Plan { passthrough: false, ..Plan::default() })
        }),
        ("rootless_killed_at_any_step_in_a_user_namespace", || storm(&Plan { namespace: true, ..Plan::default() })),
        ("privileged_a_limited_layer_is_counted_right_in_spite_of_kills", || {
            storm(&Plan { limited: true, in_memory: true, ..Plan::default() })
        }),
        ("privileged_without_the_journal_clients_see_errors", control),
        ("privileged_a_request_that_kills_is_answered_with_an_error", || poison(&Plan::default())),
        ("privileged_without_a_server_unmounting_returns", || unmounting(&Plan::default())),
        ("privileged_without_a_keeper_clients_get_errors", || orphans(&Plan::default())),
        ("privileged_a_large_copy_is_made_in_spite_of_kills", || large_copy(&Plan::default())),
        ("privileged_numbers_are_reused_and_nothing_is_mistaken", reuse),
        ("privileged_a_mount_over_its_own_lower_goes_on", over_its_lower),
        ("privileged_over_io_uring_killed_from_outside", || storm(&Plan { kills: Kills::Outside, ..Plan::io_uring() })),
        ("privileged_over_io_uring_killed_at_any_step", || storm(&Plan::io_uring())),
        ("privileged_over_io_uring_killed_at_any_step_without_passthrough", || {
            storm(&Plan { passthrough: false, ..Plan::io_uring() })
        }),
        ("privileged_over_io_uring_a_request_that_kills_is_answered", || poison(&Plan::io_uring())),
        ("privileged_over_io_uring_without_a_server_unmounting_returns", || unmounting(&Plan::io_uring())),
        ("privileged_over_io_uring_without_a_keeper_clients_get_errors", || orphans(&Plan::io_uring())),
        ("privileged_over_io_uring_a_lost_request_ends_the_connection", lost),
        ("privileged_over_io_uring_a_large_copy_is_made", || large_copy(&Plan::io_uring())),
        ("privileged_memory_for_the_next_server_is_given_back", || known_and_forgotten(&Plan::default())),
        ("privileged_over_io_uring_memory_for_long_requests_is_given_back", long_requests),
    ];
    let missing = !rustix::process::geteuid().is_root() || std::fs::File::open("/dev/fuse").is_err();
    let no_uring = !std::path::Path::new(uring::ENABLE_URING).exists();
    let trials = tests.map(|(name, body)| {
        let missing = missing || no_uring && name.contains("io_uring");
        let run = move || body().map_err(|error| Failed::from(format!("{error:?}")));
        Trial::test(name, run).with_ignored_flag(missing)
    });
    let mut arguments = Arguments::from_args();
    // They load the machine by themselves.
    arguments.test_threads.get_or_insert(1);
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

/// Name and body.
type Test = (&'static str, fn() -> Result<()>);

/// How many kills a long test goes for.
fn wanted_kills() -> u64 {
    std::env::var("SURVIVE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(30)
}

/// Lets clients work while the server is killed again and again: none may notice.
fn storm(plan: &Plan) -> Result<()> {
    let total = rounds(plan, wanted_kills())?;
    println!("{total}");
    ensure!(total.errors == 0, "clients saw errors:\n{}", total.messages.join("\n"));
    ensure!(total.kills >= wanted_kills(), "only {} kills", total.kills);
    ensure!(total.resent > 0, "no request was in work at any kill");
    Ok(())
}

/// The same without what is noted about requests: if no client notices that, the test is blind.
fn control() -> Result<()> {
    let plan = Plan { forgetful: true, ..Plan::default() };
    let mut total = Total::default();
    for _ in 0..10 {
        total.add(scene::run(&plan, Duration::from_secs(3))?);
        if total.errors > 0 {
            println!("{total}");
            return Ok(());
        }
    }
    anyhow::bail!("no client noticed {} kills without a journal", total.kills)
}

fn rounds(plan: &Plan, kills: u64) -> Result<Total> {
    let mut total = Total::default();
    for _ in 0..500 {
        total.add(scene::run(plan, Duration::from_secs(4))?);
        if total.kills >= kills || total.errors > 0 {
            break;
        }
    }
    Ok(total)
}

/// A request that its server dies of, however often it is tried.
fn poison(plan: &Plan) -> Result<()> {
    let scene = Scene::start(&Plan { kills: Kills::Never, deadly: Some(MKNOD), ..*plan })?;
    let path = scene.mount().join("deadly");
    let result = rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).map_err(std::io::Error::from);
    ensure!(
        result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EIO)),
        "making what kills gives {result:?}"
    );
    std::fs::create_dir(scene.mount().join("harmless"))?;
    let survived = scene.end()?;
    ensure!(survived.kills == 3 && survived.poisoned == 1, "{survived}");
    Ok(())
}

/// The server is stopped for good: the mount can still be taken away, and who waits gets an error.
fn unmounting(plan: &Plan) -> Result<()> {
    let mut scene = Scene::start(&Plan { kills: Kills::Always, ..*plan })?;
    // Every worker dies at the first request that it reads, so the keeper gives up.
    let stat = scene.client("stat");
    ensure!(scene.keeper_ends(Duration::from_secs(30)), "the keeper goes on although every worker dies");
    ensure!(stat.join().unwrap().is_err(), "a client got an answer from nobody");
    scene.unmount_within(Duration::from_secs(10))
}

/// A server loses a request that the last one had: the kernel has it still, and nobody hangs for that.
fn lost() -> Result<()> {
    let mut scene =
        Scene::start(&Plan { kills: Kills::Never, deadly: Some(MKNOD), forgetful: true, ..Plan::io_uring() })?;
    let path = scene.mount().join("lost");
    let began = Instant::now();
    let result = rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).map_err(std::io::Error::from);
    let took = began.elapsed();
    let given_up = |error: &std::io::Error| matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED));
    ensure!(result.as_ref().is_err_and(given_up), "losing it gives {result:?}");
    ensure!(took > Duration::from_secs(2), "given up after {took:?}");
    ensure!(scene.keeper_ends(Duration::from_secs(10)), "the keeper goes on");
    scene.unmount_within(Duration::from_secs(10))
}

/// The keeper itself is killed: nobody hangs.
fn orphans(plan: &Plan) -> Result<()> {
    let mut scene = Scene::start(&Plan { kills: Kills::Never, ..*plan })?;
    std::fs::read_dir(scene.mount())?.for_each(drop);
    scene.kill_keeper()?;
    // Its worker serves on until it is killed by that.
    ensure!(scene.keeper_ends(Duration::from_secs(10)), "the keeper goes on");
    let lookup = std::fs::create_dir(scene.mount().join("new"));
    ensure!(lookup.is_err(), "somebody serves without a keeper");
    scene.unmount_within(Duration::from_secs(10))
}

/// A copy-up that takes longer than a server lives at first.
fn large_copy(plan: &Plan) -> Result<()> {
    let scene = Scene::start(&Plan { kills: Kills::Never, large: 64 << 20, ..*plan })?;
    let before = std::fs::read(scene.lower().join("large"))?;
    let path = scene.mount().join("large");
    let writer = std::thread::spawn(move || -> std::io::Result<()> {
        let file = std::fs::File::options().write(true).open(path)?;
        std::os::unix::fs::FileExt::write_all_at(&file, b"changed", 1000)
    });
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(15));
        scene.kill_worker()?;
    }
    writer.join().unwrap()?;
    let after = std::fs::read(scene.mount().join("large"))?;
    ensure!(after.len() == before.len() && after[1000..1007] == *b"changed");
    ensure!(after[..1000] == before[..1000] && after[1007..] == before[1007..], "the copy is not the file");
    ensure!(std::fs::read(scene.lower().join("large"))? == before, "the lower was written to");
    ensure!(std::fs::read_dir(scene.work_folder())?.count() == 0, "something is left in the staging folder");
    scene.end().map(drop)
}

/// Memory that the servers of a mount share is no larger than what the kernel knows takes.
fn known_and_forgotten(plan: &Plan) -> Result<()> {
    const FILES: usize = 5_000;
    let scene = Scene::start(&Plan { kills: Kills::Never, ..*plan })?;
    let many = scene.mount().join("many");
    std::fs::create_dir(&many)?;
    let known = |path: &std::path::Path| path.join("file").metadata().map(|found| found.len());
    let mut sizes = Vec::new();
    for round in 0..2 {
        for number in 0..FILES {
            std::fs::File::create(many.join(number.to_string()))?;
        }
        let peak = scene.shared_memory()?;
        std::fs::remove_dir_all(&many)?;
        std::fs::create_dir(&many)?;
        std::fs::write(many.join("file"), "content")?;
        let left = scene.shared_memory_settles(|left| left * 3 < peak)?;
        println!("round {round}: {peak} KiB with {FILES} files, {left} KiB without");
        ensure!(left * 3 < peak, "{left} of {peak} KiB are left");
        // What is left is what the next server needs.
        scene.kill_worker()?;
        ensure!(known(&many)? == 7, "the next server does not know what is left");
        sizes.push(left);
    }
    ensure!(sizes[1] <= sizes[0] + 1024, "it grows: {sizes:?}");
    scene.end().map(drop)
}

/// Slots in which much was written or read take as little as the others after some time.
fn long_requests() -> Result<()> {
    let scene = Scene::start(&Plan { kills: Kills::Never, passthrough: false, ..Plan::io_uring() })?;
    let path = scene.mount().join("long");
    std::fs::write(&path, "short")?;
    let before = scene.shared_memory()?;
    let content: Vec<u8> = (0..8_u32 << 18).flat_map(|number| number.to_le_bytes()).collect();
    for _ in 0..2 {
        std::fs::write(&path, &content)?;
        let peak = scene.shared_memory()?;
        ensure!(peak > before + 900, "only {peak} KiB in use, {before} before");
        let left = scene.shared_memory_settles(|left| left < before + 300)?;
        println!("{before} KiB, with long requests {peak} KiB, after a pause {left} KiB");
        ensure!(left < before + 300, "{left} of {peak} KiB are left");
        ensure!(std::fs::read(&path)? == content, "what was written");
        scene.kill_worker()?;
        ensure!(std::fs::metadata(&path)?.len() == content.len() as u64);
    }
    scene.end().map(drop)
}

/// The filesystem gives the number of a removed file to the next one at once.
fn reuse() -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let scene = Scene::start(&Plan { kills: Kills::Never, ..Plan::default() })?;
    let mut held = Vec::new();
    for number in 0..200_u32 {
        let path = scene.mount().join("again");
        std::fs::write(&path, number.to_string())?;
        if number % 20 == 0 {
            held.push((number, std::fs::File::open(&path)?));
        }
        if number % 50 == 25 {
            scene.kill_worker()?;
        }
        ensure!(std::fs::read_to_string(&path)? == number.to_string(), "content of file {number}");
        std::fs::remove_file(&path)?;
    }
    for (number, file) in &held {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut &*file, &mut text)?;
        ensure!(text == number.to_string() && file.metadata()?.nlink() == 0, "held file {number} is {text:?}");
    }
    drop(held);
    scene.end().map(drop)
}

/// The next server finds the layer and not the mount that lies over it.
fn over_its_lower() -> Result<()> {
    let scene = Scene::start(&Plan { kills: Kills::Never, over_lower: true, ..Plan::default() })?;
    let path = scene.mount().join("c0/f0");
    let before = std::fs::symlink_metadata(&path)?.len();
    std::fs::write(scene.mount().join("c0/new"), "new")?;
    for name in ["f5", "f10", "f15"] {
        scene.kill_worker()?;
        // Not asked for before, so that somebody has to answer.
        let looked_at = scene.client(&format!("c0/{name}"));
        for _ in 0..500 {
            if looked_at.is_finished() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        ensure!(looked_at.is_finished(), "the next server waits for itself");
        looked_at.join().unwrap()?;
    }
    ensure!(std::fs::read(&path)?.len() as u64 == before && std::fs::read(scene.mount().join("c0/new"))? == *b"new");
    scene.end().map(drop)
}

/// `FUSE_MKNOD`.
const MKNOD: u32 = 8;
