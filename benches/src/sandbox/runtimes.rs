//! OCI runtimes, each given the same bundle, in turn, so that whatever else the machine does meets all of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::bundle::{self, Kind};
use crate::load::first_line;
use crate::measure::{self, Cost};
use crate::report::{Report, row, spread};
use crate::walk::run;

/// Prints the tables.
pub(super) fn figures(strata: &Path, work: &Path, rounds: usize, report: &mut Report) -> Result<()> {
    let bench = Bench { strata, work, root: bundle::root(work)?, rounds };
    report.say(format!(
        "the root is a folder that is ready; {rounds} times after one unmeasured, interleaved; CPU time and peak memory (of the\n\
         largest process) with everything that was waited for; bubblewrap makes no cgroup and has no filter\n"
    ));
    for (title, kind, programs) in [
        ("start to exit of `true`: six namespaces, Docker's filter and capabilities, limits", Kind::Full, &ALL[..]),
        ("the same on the host's network", Kind::HostNetwork, &ALL[..3]),
        ("five namespaces, no filter, no limits", Kind::Minimal, &ALL[..]),
    ] {
        let folder = bundle::write(work, &bench.root, kind)?;
        bench.table(report, title, programs, |program| {
            let folder = &folder;
            Ok(move |bench: &Bench<'_>, number| measure::time(&bench.run(program, folder, number, &[])))
        })?;
    }
    let folder = bundle::write(work, &bench.root, Kind::Sleeping)?;
    bench.table(report, "`exec true` in a running container", &ALL[..3], |program| {
        let container = Sleeping::start(&bench, program, &folder)?;
        Ok(move |bench: &Bench<'_>, _| {
            let mut command = bench.program(program);
            command.args(["exec", &container.id, "true"]);
            measure::time(&command)
        })
    })?;
    bench.at_once(report)?;
    bench.sizes(report)
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Strata,
    Crun,
    Runc,
    Bubblewrap,
}

const ALL: [Program; 4] = [Program::Strata, Program::Crun, Program::Runc, Program::Bubblewrap];

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Strata => "strata runtime",
            Self::Crun => "crun",
            Self::Runc => "runc",
            Self::Bubblewrap => "bwrap --unshare-all",
        }
    }
}

struct Bench<'a> {
    strata: &'a Path,
    work: &'a Path,
    root: PathBuf,
    rounds: usize,
}

impl Bench<'_> {
    /// A command without its verb.
    fn program(&self, program: Program) -> Command {
        let mut command = match program {
            Program::Strata => {
                let mut command = Command::new(self.strata);
                command.arg("runtime");
                command
            }
            Program::Crun => Command::new("crun"),
            Program::Runc => Command::new("runc"),
            Program::Bubblewrap => return Command::new("bwrap"),
        };
        command.arg("--root").arg(self.work.join(format!("state-{program:?}")));
        command
    }

    fn run(&self, program: Program, bundle: &Path, number: usize, options: &[&str]) -> Command {
        let mut command = self.program(program);
        if program == Program::Bubblewrap {
            command.args(["--unshare-all", "--proc", "/proc", "--dev", "/dev", "--bind"]).arg(&self.root);
            command.args(["/", "true"]);
            return command;
        }
        command.args(["run", "--bundle"]).arg(bundle).args(options).arg(id(number));
        command
    }

    /// Measures what `prepare` makes for each program. One that fails is named with the reason.
    fn table<M>(
        &self,
        report: &mut Report,
        title: &str,
        programs: &[Program],
        mut prepare: impl FnMut(Program) -> Result<M>,
    ) -> Result<()>
    where
        M: FnMut(&Self, usize) -> Result<Cost>,
    {
        let mut all: Vec<(Program, Result<M>, Vec<Cost>)> =
            programs.iter().map(|&program| (program, prepare(program), Vec::new())).collect();
        for number in 0..=self.rounds {
            for (_, once, costs) in &mut all {
                match once.as_mut().map(|once| once(self, number)) {
                    // The first brings everything into memory.
                    Ok(Ok(cost)) if number > 0 => costs.push(cost),
                    Ok(Err(error)) => *once = Err(error),
                    Ok(Ok(_)) | Err(_) => {}
                }
            }
        }
        let mut rows = vec![row([title, "median ms", "min ms", "max ms", "CPU ms", "peak MiB"])];
        for (program, once, costs) in all {
            rows.push(match once {
                Ok(_) => spread(program.name(), &costs),
                Err(error) => not_measured(program, &error),
            });
        }
        report.table(&rows);
        Ok(())
    }

    /// Many starts side by side: what one costs then.
    fn at_once(&self, report: &mut Report) -> Result<()> {
        let folder = bundle::write(self.work, &self.root, Kind::Full)?;
        let title = format!("{AT_ONCE} at once, ms each");
        let mut rows = vec![row([title.as_str(), "median ms", "min ms", "max ms"])];
        let mut all: Vec<(Program, Result<Vec<f64>>)> = ALL.iter().map(|&program| (program, Ok(Vec::new()))).collect();
        for _ in 0..(self.rounds / 8).max(3) {
            for (program, state) in &mut all {
                let Ok(times) = state else { continue };
                match self.side_by_side(*program, &folder) {
                    Ok(time) => times.push(time),
                    Err(error) => *state = Err(error),
                }
            }
        }
        for (program, state) in all {
            rows.push(match state {
                Ok(mut times) => {
                    times.sort_unstable_by(f64::total_cmp);
                    let shown = [times[times.len() / 2], times[0], times[times.len() - 1]];
                    let mut cells = row([program.name()]);
                    cells.extend(shown.map(|time| format!("{time:.1}")));
                    cells
                }
                Err(error) => not_measured(program, &error),
            });
        }
        report.table(&rows);
        Ok(())
    }

    fn side_by_side(&self, program: Program, bundle: &Path) -> Result<f64> {
        let started = Instant::now();
        let children: Vec<Child> = (0..AT_ONCE)
            .map(|number| {
                let mut command = self.run(program, bundle, number, &[]);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                command.spawn().with_context(|| format!("{command:?}"))
            })
            .collect::<Result<_>>()?;
        let mut failed = 0;
        for mut child in children {
            failed += usize::from(!child.wait()?.success());
        }
        ensure!(failed == 0, "{failed} of {AT_ONCE} failed");
        Ok(started.elapsed().as_secs_f64() * 1e3 / AT_ONCE as f64)
    }

    fn sizes(&self, report: &mut Report) -> Result<()> {
        let mut rows = vec![row(["size of the program, without shared libraries", "MiB"])];
        for program in ALL {
            let name = self.program(program).get_program().to_owned();
            let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .map(|folder| folder.join(&name))
                .find_map(|path| fs::metadata(path).ok());
            let size = found.map_or_else(|| "-".to_owned(), |found| format!("{:.2}", found.len() as f64 / MIB));
            rows.push(row([program.name(), &size]));
        }
        report.table(&rows);
        Ok(())
    }
}

/// A container that stays until it is dropped.
struct Sleeping {
    id: String,
    delete: Command,
}

impl Sleeping {
    fn start(bench: &Bench<'_>, program: Program, bundle: &Path) -> Result<Self> {
        let id = id(0);
        let mut delete = bench.program(program);
        delete.args(["delete", "--force", &id]);
        run(bench.run(program, bundle, 0, &["--detach"]).stdin(Stdio::null()).stdout(Stdio::null()))?;
        Ok(Self { id, delete })
    }
}

impl Drop for Sleeping {
    fn drop(&mut self) {
        // Whatever fails here shows as what is left.
        let _ = self.delete.status();
    }
}

fn not_measured(program: Program, error: &anyhow::Error) -> Vec<String> {
    vec![program.name().to_owned(), format!("not measured: {}", first_line(error))]
}

fn id(number: usize) -> String {
    format!("strata-figures-{}-{number}", std::process::id())
}

const AT_ONCE: usize = 20;
const MIB: f64 = (1 << 20) as f64;
