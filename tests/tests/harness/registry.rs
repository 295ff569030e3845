//! Images to and from a registry, with the binary on both sides.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use strata_tests::image::archive::Form;
use strata_tests::image::busybox;
use strata_tests::strata::{Strata, User};
use strata_tests::tier::{Need, Suite};

pub(crate) fn register(suite: &mut Suite) {
    let run = &[Need::Fuse, Need::Busybox];
    suite.add("registry::privileged_run_pulls_what_is_not_here", run, || run_pulls(User::Caller));
    suite.add("registry::rootless_run_pulls_what_is_not_here", run, || run_pulls(User::Plain));
    suite.add("registry::privileged_mount_pulls_what_is_not_here", run, || mount_pulls(User::Caller));
    suite.add("registry::rootless_mount_pulls_what_is_not_here", run, || mount_pulls(User::Plain));
    suite.add("registry::unprivileged_killed_pull_goes_on", &[Need::Busybox], killed_pull);
}

/// A `registry serve` that ends with this.
pub(crate) struct Serving {
    child: Child,
    pub(crate) address: String,
}

impl Serving {
    pub(crate) fn start(strata: &Strata, faults: &[&str]) -> Result<Serving> {
        let arguments: Vec<&str> = faults.iter().flat_map(|fault| ["--fault", *fault]).collect();
        Serving::with(strata, "registry", "127.0.0.1:0", &arguments)
    }

    /// Serves a folder at an address, with further options.
    pub(crate) fn with(strata: &Strata, folder: &str, address: &str, arguments: &[&str]) -> Result<Serving> {
        let mut all = vec!["registry", "serve", "--folder", folder, "--address", address];
        all.extend(arguments);
        let mut child = strata.command(all).stderr(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stderr.take().context("no standard error")?).read_line(&mut line)?;
        let address = line.trim().rsplit_once("://").with_context(|| format!("not serving: {line}"))?.1.to_owned();
        Ok(Serving { child, address })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // `timeout`, which it runs below, passes it on.
        if let Some(pid) = Pid::from_raw(self.child.id().try_into().unwrap_or(0)) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

/// Pushes the busybox image and forgets it; returns its name in the registry.
pub(crate) fn pushed(strata: &Strata, serving: &Serving) -> Result<String> {
    strata.load(&busybox::folder()?.join(Form::DockerNew.file_name()))?;
    let name = format!("{}/team/busybox:1", serving.address);
    strata.ok(["tag", busybox::REFERENCE, &name])?;
    let output = strata.ok(["push", &name])?;
    ensure!(output.contains("1: digest: sha256:"), "{output}");
    strata.ok(["rmi", &name, busybox::REFERENCE])?;
    Ok(name)
}

fn run_pulls(user: User) -> Result<()> {
    let strata = Strata::of(user)?;
    let serving = Serving::start(&strata, &[])?;
    let name = pushed(&strata, &serving)?;
    strata.exits(125, ["run", "--rm", "--pull", "never", &name, "true"])?;
    let run = strata.run(["run", "--rm", &name, "echo", "hello"])?;
    ensure!(run.code() == 0 && run.stdout == "hello\n", "{run}");
    ensure!(run.stderr.starts_with(&format!("Unable to find image '{name}' locally\n")), "{run}");
    ensure!(run.stderr.contains(&format!("Status: Downloaded newer image for {name}\n")), "{run}");
    let again = strata.run(["run", "--rm", &name, "echo", "hello"])?;
    ensure!(again.stderr.is_empty(), "{again}");
    let pull = strata.ok(["pull", &name])?;
    ensure!(pull.contains(&format!("Status: Image is up to date for {name}\n")), "{pull}");
    Ok(())
}

fn mount_pulls(user: User) -> Result<()> {
    let strata = Strata::of(user)?;
    let serving = Serving::start(&strata, &[])?;
    let name = pushed(&strata, &serving)?;
    strata.make_folder("point")?;
    let refused = strata.exits(1, ["mount", "--pull", "never", &name, "point"])?;
    ensure!(refused.stderr.contains("No such image or container"), "{refused}");
    let mounted = strata.run(["mount", &name, "point"])?;
    ensure!(mounted.code() == 0 && mounted.stdout.is_empty(), "{mounted}");
    ensure!(mounted.stderr.contains(&format!("Status: Downloaded newer image for {name}\n")), "{mounted}");
    // A plain user's mount shows nothing to others, not even to root.
    let found = user == User::Plain || strata.folder().join("point/bin/busybox").exists();
    ensure!(found, "the image is not what is mounted");
    strata.ok(["umount", "point"])?;
    let again = strata.run(["mount", &name, "point"])?;
    ensure!(again.code() == 0 && again.stderr.is_empty(), "{again}");
    strata.ok(["umount", "point"])?;
    Ok(())
}

fn killed_pull() -> Result<()> {
    let strata = Strata::new()?;
    let serving = Serving::start(&strata, &["GET /v2/*/blobs/* skip=1 times=2 trickle=100000"])?;
    let name = pushed(&strata, &serving)?;
    let mut child = strata.command(["pull", "-q", &name]).spawn()?;
    let downloads = strata.state().join("downloads");
    let started = Instant::now();
    // Until a good part of the layer is there; the whole would take ten seconds.
    while bytes_below(&downloads) < 200_000 {
        ensure!(child.try_wait()?.is_none() && started.elapsed() < Duration::from_secs(60), "nothing was downloaded");
        std::thread::sleep(Duration::from_millis(20));
    }
    let task = format!("/proc/{0}/task/{0}/children", child.id());
    for pid in std::fs::read_to_string(task)?.split_whitespace() {
        let _ = kill_process(Pid::from_raw(pid.parse()?).context("a process number")?, Signal::KILL);
    }
    child.wait()?;
    ensure!(strata.ok(["images", "-q"])?.is_empty(), "a killed pull made an image");
    let kept = bytes_below(&downloads);
    ensure!(kept >= 200_000, "only {kept} bytes were kept");
    strata.ok(["pull", "-q", &name])?;
    ensure!(bytes_below(&downloads) == 0, "parts were left behind");
    ensure!(strata.ok(["images", "-q"])?.lines().count() == 1, "there is no image");
    Ok(())
}

/// The bytes of all files two levels below a folder.
fn bytes_below(folder: &std::path::Path) -> u64 {
    let list = |path: &std::path::Path| std::fs::read_dir(path).into_iter().flatten().flatten().collect::<Vec<_>>();
    let parts = list(folder).into_iter().flat_map(|blob| list(&blob.path()));
    parts.filter_map(|part| part.metadata().ok()).map(|metadata| metadata.len()).sum()
}
