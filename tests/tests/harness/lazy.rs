//! Images that run before they are here, with the binary on both sides.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use strata_tests::image::archive::Form;
use strata_tests::image::busybox;
use strata_tests::strata::{Strata, User};
use strata_tests::tier::{Need, Suite};

use crate::registry::Serving;

pub(crate) fn register(suite: &mut Suite) {
    let run = &[Need::Fuse, Need::Busybox];
    suite.add("lazy::privileged_run_before_the_data_is_there", run, || runs_early(User::Caller));
    suite.add("lazy::rootless_run_before_the_data_is_there", run, || runs_early(User::Plain));
    suite.add("lazy::privileged_mount_outlives_its_fetcher_and_then_the_registry", run, outlives);
    suite.add("lazy::privileged_read_of_what_cannot_be_had_is_an_error_in_time", run, fails_in_time);
}

/// How many bytes the file has that nobody reads at first.
const LARGE: u64 = 12_000_000;

/// Pushes an image with a large file and our index beside it; returns its name.
fn pushed(source: &Strata, serving: &Serving) -> Result<String> {
    source.load(&busybox::folder()?.join(Form::DockerNew.file_name()))?;
    let name = format!("{}/team/large:1", serving.address);
    let script = format!("head -c {LARGE} /dev/urandom > /large; sha256sum /large > /sum");
    source.ok(["run", "--name", "made", busybox::REFERENCE, "sh", "-c", &script])?;
    source.ok(["commit", "made", &name])?;
    source.ok(["push", "--compression-format", "gzip", "--with-index", &name])?;
    Ok(name)
}

fn runs_early(user: User) -> Result<()> {
    let source = Strata::of(user)?;
    // Ten seconds for the large file alone.
    let serving = Serving::start(&source, &["GET /v2/*/blobs/* trickle=1200000"])?;
    let name = pushed(&source, &serving)?;
    let strata = source.another()?;
    let begun = Instant::now();
    let run = strata.run(["run", "--rm", &name, "sh", "-c", "echo hello"])?;
    ensure!(run.code() == 0 && run.stdout == "hello\n", "{run}");
    ensure!(run.stderr.contains("Fetched when it is read"), "{run}");
    let state = strata.ok(["images", "--format", "{{.State}}"])?;
    ensure!(state.starts_with("fetching "), "{state} after {:?}", begun.elapsed());
    let table = strata.ok(["images"])?;
    ensure!(table.lines().next().is_some_and(|header| header.trim_end().ends_with("STATE")), "{table}");
    let inspected = strata.ok(["inspect", "--format", "{{.State.Status}}", &name])?;
    ensure!(inspected == "fetching\n", "{inspected}");
    // What has not come yet is waited for.
    let run = strata.run(["run", "--rm", &name, "sha256sum", "-c", "/sum"])?;
    ensure!(run.code() == 0 && run.stdout == "/large: OK\n", "{run}");
    strata.ok(["pull", "-q", &name])?;
    let whole = strata.ok(["images", "--format", "{{.State}}"])?;
    ensure!(whole == "whole\n", "{whole}");
    drop(serving);
    let run = strata.run(["run", "--rm", &name, "sha256sum", "-c", "/sum"])?;
    ensure!(run.code() == 0 && run.stdout == "/large: OK\n", "{run}");
    let saved = strata.folder().join("saved.tar");
    strata.ok(["save", "-o", "saved.tar", &name])?;
    ensure!(fs::metadata(&saved)?.len() > LARGE, "what was saved is not whole");
    Ok(())
}

fn outlives() -> Result<()> {
    let source = Strata::new()?;
    let serving = Serving::start(&source, &["GET /v2/*/blobs/* trickle=3000000"])?;
    let name = pushed(&source, &serving)?;
    let strata = source.another()?;
    let point = strata.make_folder("point")?;
    strata.ok(["mount", &name, "point"])?;
    let sum = |point: &Path| -> Result<String> { Ok(sha256(&fs::read(point.join("large"))?)) };
    let expected = fs::read_to_string(point.join("sum"))?;
    for _ in 0..3 {
        for pid in fetchers(&strata)? {
            let _ = kill_process(pid, Signal::KILL);
        }
        // The next read starts another.
        let mut start = [0; 4096];
        std::os::unix::fs::FileExt::read_exact_at(&fs::File::open(point.join("large"))?, &mut start, LARGE / 2)?;
    }
    ensure!(expected.starts_with(&sum(&point)?), "other content");
    let layers = strata.state().join("layers");
    let lazy = || -> Result<Vec<PathBuf>> {
        let folders = fs::read_dir(&layers)?.collect::<Result<Vec<_>, _>>()?;
        Ok(folders.into_iter().map(|folder| folder.path().join("lazy")).filter(|path| path.exists()).collect())
    };
    let end = Instant::now() + Duration::from_secs(30);
    while !lazy()?.is_empty() {
        ensure!(Instant::now() < end, "not whole: {:?}", lazy()?);
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(serving);
    drop_caches(&point)?;
    ensure!(expected.starts_with(&sum(&point)?), "other content from the disk");
    strata.ok(["umount", "point"])?;
    strata.ok(["mount", &name, "point"])?;
    ensure!(expected.starts_with(&sum(&point)?), "other content after another mount");
    strata.ok(["umount", "point"])?;
    let end = Instant::now() + Duration::from_secs(10);
    while !fetchers(&strata)?.is_empty() {
        ensure!(Instant::now() < end, "the process that fetches stays for nothing");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn fails_in_time() -> Result<()> {
    let source = Strata::new()?;
    let serving = Serving::start(&source, &["GET /v2/*/blobs/* trickle=200000"])?;
    let name = pushed(&source, &serving)?;
    let strata = source.another()?;
    let point = strata.make_folder("point")?;
    let config = strata.make_folder("config")?.join("daemon.json");
    fs::write(&config, r#"{"fetch-deadline": 2}"#)?;
    let mounted = strata.command(["mount", &name, "point"]).env("STRATA_CONFIG", &config).output()?;
    ensure!(mounted.status.success(), "{mounted:?}");
    drop(serving);
    let begun = Instant::now();
    let file = fs::File::open(point.join("large"))?;
    let error = std::os::unix::fs::FileExt::read_exact_at(&file, &mut [0; 4096], LARGE - 8192);
    let errno = error.err().context("a byte that nobody has was read")?.raw_os_error();
    ensure!(errno == Some(rustix::io::Errno::IO.raw_os_error()), "{errno:?}");
    ensure!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    drop(file);
    let state = strata.ok(["image", "inspect", "--format", "{{.State.Failure}}", &name])?;
    ensure!(state.trim().len() > 10, "nothing is said about the failure: {state}");
    ensure!(fs::read_to_string(strata.state().join("fetcher/log"))?.contains("layer sha256:"), "no log");
    for pid in fetchers(&strata)? {
        let _ = kill_process(pid, Signal::KILL);
    }
    strata.ok(["umount", "point"])?;
    Ok(())
}

/// The processes that fetch for a store.
fn fetchers(strata: &Strata) -> Result<Vec<Pid>> {
    let root = strata.state().canonicalize()?.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        if words.contains(&"--stay".into()) && words.iter().any(|word| *word == root) {
            found.extend(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes the next read ask the filesystem.
fn drop_caches(point: &Path) -> Result<()> {
    let file = fs::File::open(point.join("large"))?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}
