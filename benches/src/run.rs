//! Starting a process that ends at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use strata_tests::image::archive::Form;
use strata_tests::image::busybox;
use strata_tests::oracle;

use crate::load::{first_line, remove_engine_folder};
use crate::measure::{self, Cost, median};
use crate::report::{Report, millis, row};

/// Prints the table.
pub fn figures(strata: &Path, work: &Path, rounds: usize, report: &mut Report) -> Result<()> {
    report.say(format!(
        "start to exit of `true` in a busybox image; Docker's capabilities and seccomp profile, network namespace without\n\
         interfaces; {rounds} times after one unmeasured; strata and podman mount the image and keep state, the two runtimes get a\n\
         folder that is ready"
    ));
    let archive = busybox::folder()?.join(Form::DockerNew.file_name());
    let mut rows = vec![row(["", "median ms", "min ms", "max ms", "CPU ms", "peak MiB"])];
    let mut add = |name: &str, costs: Result<Vec<Cost>>| match costs {
        Ok(costs) => {
            let cost = median(&costs);
            let walls = || costs.iter().map(|cost| cost.wall);
            let (min, max) = (walls().min().unwrap_or_default(), walls().max().unwrap_or_default());
            rows.push(row([
                name,
                &millis(cost.wall),
                &millis(min),
                &millis(max),
                &millis(cost.cpu),
                &format!("{:.1}", cost.peak as f64 / 1024.0),
            ]));
        }
        Err(error) => rows.push(vec![name.to_owned(), format!("not measured: {}", first_line(&error))]),
    };
    add("strata run --rm", by_strata(strata, work, &archive, rounds));
    for (name, costs) in by_runtimes(strata, work, rounds)? {
        add(&name, costs);
    }
    add("podman run --rm", by_podman(work, &archive, rounds));
    report.table(&rows);
    Ok(())
}

fn repeat(rounds: usize, mut once: impl FnMut(usize) -> Result<Cost>) -> Result<Vec<Cost>> {
    once(rounds)?;
    (0..rounds).map(once).collect()
}

fn by_strata(strata: &Path, work: &Path, archive: &Path, rounds: usize) -> Result<Vec<Cost>> {
    let root = work.join("run-strata");
    let command = || {
        let mut command = Command::new(strata);
        command.arg("--root").arg(&root);
        command
    };
    crate::walk::run(command().arg("load").arg("-i").arg(archive))?;
    let costs = repeat(rounds, |_| measure::time(command().args(["run", "--rm", busybox::REFERENCE, "true"])));
    fs::remove_dir_all(&root)?;
    costs
}

fn by_podman(work: &Path, archive: &Path, rounds: usize) -> Result<Vec<Cost>> {
    let root = work.join("run-podman");
    fs::create_dir_all(&root)?;
    let command = || {
        let mut command = Command::new("podman");
        command.args(podman_options(&root));
        command
    };
    let costs = crate::walk::run(command().arg("load").arg("-i").arg(archive)).and_then(|()| {
        let image = format!("docker.io/library/{}", busybox::REFERENCE);
        let image = if command().args(["image", "exists", &image]).status()?.success() {
            image
        } else {
            busybox::REFERENCE.to_owned()
        };
        repeat(rounds, |_| {
            let mut run = command();
            // Its default limits are higher than a root without CAP_SYS_RESOURCE may set.
            run.args(["run", "--rm", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"]);
            time_with_v1_cgroups(run.args([&image, "true"]))
        })
    });
    remove_engine_folder(&root)?;
    costs
}

/// Options that keep a podman to itself.
pub(crate) fn podman_options(root: &Path) -> Vec<String> {
    let at = |name: &str| root.join(name).to_string_lossy().into_owned();
    ["--root", &at("root"), "--runroot", &at("run"), "--tmpdir", &at("tmp")]
        .map(str::to_owned)
        .into_iter()
        .chain(["--storage-driver=overlay", "--cgroup-manager=cgroupfs", "--events-backend=none"].map(str::to_owned))
        .collect()
}

/// The runtimes in turn, so that whatever else the machine does meets all of them.
fn by_runtimes(strata: &Path, work: &Path, rounds: usize) -> Result<Vec<(String, Result<Vec<Cost>>)>> {
    let bundle = work.join("bundle");
    let rootfs = bundle.join("rootfs");
    fs::create_dir_all(&rootfs)?;
    let folder = busybox::folder()?;
    oracle::extract(&[folder.join("0.tar"), folder.join("1.tar")], &rootfs)?;
    fs::write(bundle.join("config.json"), configuration(&rootfs)?.to_string())?;
    let once = |name: &str, number: usize| {
        let id = format!("strata-figures-{}-{number}", std::process::id());
        let mut command = match name {
            "strata runtime" => {
                let mut command = Command::new(strata);
                command.arg("runtime");
                command
            }
            peer => Command::new(peer),
        };
        let state = work.join(format!("state-{name}"));
        command.arg("--root").arg(&state).args(["run", "--bundle"]).arg(&bundle).arg(&id);
        time_with_v1_cgroups(&command)
    };
    let mut rows: Vec<(&str, Result<Vec<Cost>>)> = ["strata runtime", "crun", "runc"]
        .into_iter()
        .map(|name| (name, once(name, rounds).map(|_| Vec::new())))
        .collect();
    for number in 0..rounds {
        for (name, costs) in &mut rows {
            let Ok(known) = costs else { continue };
            match once(name, number) {
                Ok(cost) => known.push(cost),
                Err(error) => *costs = Err(error),
            }
        }
    }
    fs::remove_dir_all(&bundle)?;
    Ok(rows.into_iter().map(|(name, costs)| (format!("{name} run"), costs)).collect())
}

/// Measures a command that sees no v2 cgroup tree beside the v1 ones: crun 1.8 refuses such a layout.
fn time_with_v1_cgroups(command: &Command) -> Result<Cost> {
    let report = tempfile::NamedTempFile::new()?;
    let script = r#"if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec "$@""#;
    let mut enter = Command::new("unshare");
    enter.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]).arg(std::env::current_exe()?);
    enter.arg(measure::WRAP).arg(report.path()).arg(command.get_program()).args(command.get_args());
    crate::walk::run(&mut enter)?;
    measure::read(report.path())
}

/// `runc spec` with Docker's capabilities and seccomp profile.
fn configuration(rootfs: &Path) -> Result<Value> {
    let folder = tempfile::tempdir()?;
    crate::walk::run(Command::new("runc").arg("spec").arg("--bundle").arg(folder.path()))?;
    let mut spec: Value = serde_json::from_slice(&fs::read(folder.path().join("config.json"))?)?;
    spec["process"]["args"] = json!(["true"]);
    spec["process"]["terminal"] = json!(false);
    spec["process"]["noNewPrivileges"] = json!(false);
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(CAPABILITIES);
    }
    spec["root"] = json!({"path": rootfs, "readonly": false});
    spec["linux"]["seccomp"] = seccomp()?;
    spec["linux"]["resources"] = json!({"pids": {"limit": 2048}, "memory": {"limit": 512 << 20}});
    Ok(spec)
}

/// The profile that Docker and podman share, as podman's package installs it, resolved for the default capabilities.
fn seccomp() -> Result<Value> {
    let path = PathBuf::from("/usr/share/containers/seccomp.json");
    let text = fs::read(&path).with_context(|| format!("{path:?} (package golang-github-containers-common)"))?;
    let profile: Value = serde_json::from_slice(&text)?;
    let applies = |rule: &Value, key: &str| -> bool {
        let list = |name: &str| rule[key][name].as_array().into_iter().flatten().filter_map(Value::as_str);
        let capable = list("caps").any(|capability| CAPABILITIES.contains(&capability));
        let here = list("arches").any(|name| name == "amd64" || name == "x86" || name == "x32");
        if key == "includes" {
            (list("caps").count() == 0 || capable) && (list("arches").count() == 0 || here)
        } else {
            capable || here
        }
    };
    let rules = profile["syscalls"].as_array().context("the profile has rules")?;
    let kept: Vec<Value> = rules
        .iter()
        .filter(|rule| applies(rule, "includes") && !applies(rule, "excludes"))
        .map(|rule| {
            let mut kept = json!({"names": rule["names"], "action": rule["action"]});
            for key in ["args", "errnoRet"] {
                if !rule[key].is_null() {
                    kept[key] = rule[key].clone();
                }
            }
            kept
        })
        .collect();
    ensure!(kept.len() > 3, "the profile has hardly any rule");
    Ok(json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": kept,
    }))
}

const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
