//! Measures a container from start to exit, beside crun and runc with the same root filesystem and namespaces.
//!
//! ```console
//! $ cargo run --release -p strata-sandbox --example start_to_exit -- ROOTFS [COUNT]
//! ```
//!
//! ROOTFS needs a `/bin/true`. Ours is measured as a library call, as the engine makes it; the peers as commands, as
//! they are used, with a bundle of the same mounts, limits, namespaces and seccomp profile.
#![expect(clippy::print_stdout, reason = "a program for people")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as ProcessStdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::{LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResourcesBuilder, RootBuilder, Spec};
use strata_sandbox::capabilities::CapabilitySet;
use strata_sandbox::cgroup::CgroupName;
use strata_sandbox::spec_default::{Defaults, Namespace, spec_default};
use strata_sandbox::{Launch, Root, Seccomp, Stdio, spawn};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let root = PathBuf::from(arguments.next().ok_or("usage: start_to_exit ROOTFS [COUNT]")?);
    let count: usize = arguments.next().map_or(Ok(200), |count| count.to_string_lossy().parse())?;

    let full = spec(Namespace::Own)?;
    let host = spec(Namespace::Callers)?;
    println!("start to exit of true, {count} times each, interleaved; wall ms min / median / p90");
    let started = Instant::now();
    let program = strata_sandbox::seccomp::Profile::docker_default().compile(CapabilitySet::DOCKER)?;
    println!("seccomp profile compiled in {:?}, {} instructions", started.elapsed(), program.instructions.len());

    let bundle = tempfile::tempdir()?;
    let mut peers: Vec<&str> = ["crun", "runc"].into_iter().filter(|name| on_path(name)).collect();
    if !peers.is_empty() {
        write_bundle(bundle.path(), &root, &full)?;
    }
    let mut rows: Vec<(String, Vec<Duration>)> = Vec::new();
    let mut record = |name: &str, time: Duration| match rows.iter_mut().find(|(known, _)| known == name) {
        Some((_, times)) => times.push(time),
        None => rows.push((name.to_owned(), vec![time])),
    };
    for number in 0..count {
        record("strata, all namespaces, seccomp, landlock, limits", ours(&root, &full, Seccomp::Default, number)?);
        record("strata, host network", ours(&root, &host, Seccomp::Default, number)?);
        record("strata, no filter", ours(&root, &full, Seccomp::Unconfined, number)?);
        if number % 4 == 0 {
            // crun refuses hosts where version 2 of cgroups has a controller beside version 1.
            peers.retain(|peer| match theirs(peer, bundle.path(), number) {
                Ok(time) => {
                    record(peer, time);
                    true
                }
                Err(error) => {
                    println!("{peer} left out: {error}");
                    false
                }
            });
        }
    }
    for (name, mut times) in rows {
        times.sort_unstable();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let at = |share: usize| ms(times[(times.len() - 1) * share / 100]);
        println!("{name:<52} {:6.2} / {:6.2} / {:6.2}   (n = {})", at(0), at(50), at(90), times.len());
    }
    Ok(())
}

fn spec(network: Namespace) -> Result<Spec, Box<dyn Error>> {
    let memory = LinuxMemoryBuilder::default().limit(256 << 20).build()?;
    let pids = LinuxPidsBuilder::default().limit(100).build()?;
    let defaults = Defaults {
        args: vec!["/bin/true".into()],
        hostname: Some("bench".into()),
        network,
        resources: LinuxResourcesBuilder::default().memory(memory).pids(pids).build()?,
        ..Defaults::default()
    };
    Ok(spec_default(defaults)?)
}

fn ours(root: &Path, spec: &Spec, seccomp: Seccomp, number: usize) -> Result<Duration, Box<dyn Error>> {
    let started = Instant::now();
    let running = spawn(Launch {
        cgroup: Some(CgroupName::new(&format!("strata-bench/{}-{number}", std::process::id()))?),
        seccomp,
        stdio: Stdio::Inherit,
        ..Launch::new(spec, Root::Path(root.to_owned()))
    })?;
    let status = running.wait()?;
    let time = started.elapsed();
    if status.code() == 0 { Ok(time) } else { Err(format!("true ended with {status}").into()) }
}

fn theirs(runtime: &str, bundle: &Path, number: usize) -> Result<Duration, Box<dyn Error>> {
    let started = Instant::now();
    let status = Command::new(runtime)
        .args(["run", "--bundle"])
        .arg(bundle)
        .arg(format!("strata-bench-{}-{number}", std::process::id()))
        .stdin(ProcessStdio::null())
        .status()?;
    let time = started.elapsed();
    if status.success() { Ok(time) } else { Err(format!("{runtime} ended with {status}").into()) }
}

fn write_bundle(bundle: &Path, root: &Path, spec: &Spec) -> Result<(), Box<dyn Error>> {
    let mut spec = spec.clone();
    spec.set_version("1.0.2".into());
    spec.set_root(Some(RootBuilder::default().path(root.canonicalize()?).readonly(false).build()?));
    if let Some(linux) = spec.linux_mut() {
        linux.set_seccomp(Some(
            strata_sandbox::seccomp::Profile::docker_default_portable().to_oci(CapabilitySet::DOCKER),
        ));
    }
    std::fs::write(bundle.join("config.json"), serde_json::to_vec(&spec)?)?;
    Ok(())
}

fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}
