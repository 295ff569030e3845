//! What a container does to another when it takes all it can get: the time of a small request in the one, alone and beside
//! each attack. The container that attacks has limits of memory, processes and CPU, as anybody has who runs what he does not trust.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use strata_tests::image::archive::Form;
use strata_tests::image::debian;

use super::podman_options;
use crate::load::{first_line, remove_engine_folder};
use crate::report::{Report, row};
use crate::walk::run;

/// Prints the table: for each engine the median and the 99th percentile, and how many times that alone the latter is.
///
/// As [`super::figures`], it puts this program into a mount namespace of its own: podman's crun refuses hybrid layouts.
pub fn figures(strata: &Path, work: &Path, seconds: u32, report: &mut Report) -> Result<()> {
    super::enter_view().context("get a mount namespace without the v2 tree")?;
    let archive = debian::folder()?.join(Form::DockerNew.file_name());
    report.say(format!(
        "microseconds of a request (a file written, read, and deleted; another looked at) in a container, one each millisecond\n\
         for {seconds} s, alone and beside one that attacks with {}",
        LIMITS.join(" ")
    ));
    let (own, others) = (work.join("neighbours-strata"), work.join("neighbours-podman"));
    std::fs::create_dir_all(&others)?;
    let engines = [
        Engine {
            name: "strata",
            program: strata.into(),
            options: vec!["--root".into(), own.to_string_lossy().into()],
            root: &own,
        },
        Engine { name: "podman", program: "podman".into(), options: podman_options(&others), root: &others },
    ];
    for engine in engines {
        match engine.all(&archive, seconds) {
            Ok(rows) => report.table(&rows),
            Err(error) => report.say(format!("{}: not measured: {}\n", engine.name, first_line(&error))),
        }
        engine.remove()?;
    }
    Ok(())
}

struct Engine<'a> {
    name: &'static str,
    program: std::path::PathBuf,
    /// Before every verb.
    options: Vec<String>,
    root: &'a Path,
}

impl Engine<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.options).args(arguments).stdin(Stdio::null());
        command
    }

    /// Starts a container in the background.
    fn start(&self, name: &str, options: &[&str], command: &[&str]) -> Result<()> {
        let mut arguments = vec!["run", "-d", "--name", name, "--network=none"];
        // The same for both, and no more than a root without CAP_SYS_RESOURCE may set.
        arguments.extend(["--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--log-opt=max-size=20m"]);
        arguments.extend(options);
        arguments.push(debian::REFERENCE);
        arguments.extend(command);
        run(self.command(&arguments).stdout(Stdio::null()))
    }

    fn all(&self, archive: &Path, seconds: u32) -> Result<Vec<Vec<String>>> {
        run(self.command(&["load", "-i"]).arg(archive).stdout(Stdio::null()))?;
        self.start("neighbour", &[], &["sleep", "1000000"])?;
        // The first looks at everything for the first time.
        self.request(1)?;
        let alone = self.request(seconds)?;
        let mut rows = vec![row([self.name, "median", "p99", "p99 to alone"])];
        rows.push(alone.row("alone", alone));
        for (name, program) in ATTACKS {
            self.start("attack", &LIMITS, &["python3", "-c", program])?;
            std::thread::sleep(Duration::from_secs(1));
            let beside = self.request(seconds).and_then(|times| {
                let state = self.command(&["inspect", "--format", "{{.State.Running}}", "attack"]).output()?;
                ensure!(state.stdout.starts_with(b"true"), "it has ended by itself");
                Ok(times)
            });
            run(self.command(&["rm", "-f", "attack"]).stdout(Stdio::null()))?;
            rows.push(beside.with_context(|| format!("beside {name}"))?.row(name, alone));
        }
        rows.push(self.request(seconds)?.row("alone, at the end", alone));
        Ok(rows)
    }

    fn request(&self, seconds: u32) -> Result<Times> {
        let output = self.command(&["exec", "neighbour", "python3", "-c", REQUEST, &seconds.to_string()]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        let mut numbers = text.split_whitespace().map(str::parse);
        let mut next = || anyhow::Ok(numbers.next().context("two numbers")??);
        Ok(Times { median: next()?, slow: next()? })
    }

    fn remove(&self) -> Result<()> {
        for name in ["attack", "neighbour"] {
            // Most of the time one or both are gone already.
            let _ = self.command(&["rm", "-f", name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        remove_engine_folder(self.root)
    }
}

/// In microseconds.
#[derive(Clone, Copy, Debug)]
struct Times {
    median: u64,
    /// Of which one in a hundred is slower.
    slow: u64,
}

impl Times {
    fn row(self, name: &str, alone: Times) -> Vec<String> {
        let ratio = self.slow as f64 / alone.slow as f64;
        row([name, &self.median.to_string(), &self.slow.to_string(), &format!("{ratio:.1}")])
    }
}

const LIMITS: [&str; 6] = ["-m", "256m", "--pids-limit", "256", "--cpus", "1"];

const REQUEST: &str = r#"
import os, sys, time
took = []
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    start = time.perf_counter()
    file = os.open("/tmp/request", os.O_CREAT | os.O_RDWR | os.O_TRUNC)
    os.write(file, b"x" * 4096)
    os.pread(file, 4096, 0)
    os.close(file)
    os.stat("/etc/passwd")
    os.unlink("/tmp/request")
    took.append(time.perf_counter() - start)
    time.sleep(0.001)
took.sort()
print(*(round(took[int(len(took) * part)] * 1e6) for part in (0.5, 0.99)))
"#;

const ATTACKS: [(&str, &str); 9] = [
    (
        "a fork bomb",
        r"
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
",
    ),
    (
        "memory",
        r#"
import os
while True:
    if os.fork() == 0:
        held = []
        while True:
            held.append(bytearray(b"x" * (1 << 20)))
    os.wait()
"#,
    ),
    (
        "descriptors",
        r#"
import os
held = []
while True:
    try:
        held.append(os.open("/etc/passwd", os.O_RDONLY))
    except OSError:
        for file in held:
            os.close(file)
        held = []
"#,
    ),
    (
        "pseudo-terminals",
        r"
import os, time
held = []
while True:
    try:
        held.append(os.openpty())
    except OSError:
        time.sleep(0.01)
",
    ),
    (
        "inotify",
        r"
import ctypes, time
libc = ctypes.CDLL(None)
while True:
    if libc.inotify_init() < 0:
        time.sleep(0.01)
",
    ),
    (
        "dirty pages",
        r#"
import os
file = os.open("/tmp/large", os.O_CREAT | os.O_WRONLY)
block = b"x" * (1 << 20)
while True:
    for number in range(512):
        os.pwrite(file, block, number << 20)
"#,
    ),
    (
        "a log",
        r#"
import os
lines = (b"x" * 1000 + b"\n") * 60
while True:
    os.write(1, lines)
"#,
    ),
    (
        "names of files",
        r#"
import os
os.mkdir("/tmp/many")
number = 0
while True:
    os.close(os.open(f"/tmp/many/{number}", os.O_CREAT | os.O_WRONLY))
    number = (number + 1) % 100000
"#,
    ),
    (
        "computing",
        r"
while True:
    pass
",
    ),
];
