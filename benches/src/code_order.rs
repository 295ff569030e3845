//! The order in which the program's functions are first used, as a script for the linker.
//!
//! A start of a container runs some thousand of the program's thirty thousand functions, once each, in processes that end at once or
//! wait for a long time. Spread over the whole program, each of them brings sixteen pages into the memory of its process, and a fault
//! or two of its own. So the linker is told to put them side by side. The order is found by running the program with a
//! breakpoint at the beginning of each function, and written without what changes from build to build: a function that is not found again merely lies elsewhere.

#![cfg(target_arch = "x86_64")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use strata_tests::image::archive::Form;
use strata_tests::image::busybox;

use crate::sandbox::bundle::{self, Kind};
use crate::walk;

/// The functions of a program, and which were used so far, in order.
#[derive(Debug)]
pub struct CodeOrder {
    /// The file's.
    inode: u64,
    /// By address.
    functions: BTreeMap<u64, Function>,
    /// From the first function to the last.
    code: Vec<u8>,
    /// Where they begin.
    used: Vec<u64>,
    known: HashSet<u64>,
}

impl CodeOrder {
    /// Reads what the linker has put where, for a program that is linked to fixed addresses.
    ///
    /// # Errors
    /// When it is not, or the map cannot be read.
    pub fn of(program: &Path, map: &Path) -> Result<Self> {
        let mut header = [0; 18];
        File::open(program)?.read_exact(&mut header)?;
        ensure!(
            header[16] == ELF_EXECUTABLE,
            "{program:?} is not linked to fixed addresses: made by `cargo dist`, it is"
        );
        let text = fs::read_to_string(map).with_context(|| format!("{map:?}"))?;
        let functions = functions(&text);
        ensure!(!functions.is_empty(), "{map:?} is no map as LLD writes it");
        let inode = fs::metadata(program)?.ino();
        Ok(Self { inode, functions, code: Vec::new(), used: Vec::new(), known: HashSet::new() })
    }

    /// Observes the starts that matter: of a container of the runtime, of a process in it, and of a container of the engine.
    ///
    /// # Errors
    /// As [`observe`](Self::observe), and when there are no images to start.
    pub fn observe_starts(&mut self, program: &Path, work: &Path) -> Result<()> {
        let root = bundle::root(work)?;
        let id = format!("code-order-{}", std::process::id());
        let runtime = |words: &[&str]| {
            let mut command = Command::new(program);
            command.args(["runtime", "--root"]).arg(work.join("state")).args(words).stdin(Stdio::null());
            command
        };
        let (full, sleeping) = (bundle::write(work, &root, Kind::Full)?, bundle::write(work, &root, Kind::Sleeping)?);
        let (full, sleeping) = (full.to_string_lossy(), sleeping.to_string_lossy());
        self.observe(&runtime(&["run", "--bundle", &full, &id]))?;
        walk::run(runtime(&["run", "--detach", "--bundle", &sleeping, &id]).stdout(Stdio::null()))?;
        let added = self.observe(&runtime(&["exec", &id, "true"]));
        walk::run(&mut runtime(&["delete", "--force", &id]))?;
        added?;
        let engine = |words: &[&str]| {
            let mut command = Command::new(program);
            command.arg("--root").arg(work.join("root")).args(words);
            command
        };
        let archive = busybox::folder()?.join(Form::DockerNew.file_name());
        walk::run(engine(&["load", "-i", &archive.to_string_lossy()]).stdout(Stdio::null()))?;
        let run = engine(&["run", "--rm", busybox::REFERENCE, "true"]);
        // What is made at the first start is none of the order's.
        walk::run(engine(&["run", "--rm", busybox::REFERENCE, "true"]).stdout(Stdio::null()))?;
        self.observe(&run)
    }

    /// Runs a command of the program, and all of the program that it starts, and notes what is used for the first time.
    ///
    /// Each function begins with a breakpoint, which goes when it has been reached.
    ///
    /// # Errors
    /// When it does not succeed, or cannot be traced.
    pub fn observe(&mut self, command: &Command) -> Result<()> {
        // It stops itself, so that it can be taken hold of before it is the program.
        let mut stopped = Command::new("/bin/sh");
        stopped.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]);
        stopped.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null()).stdout(Stdio::null());
        let first = Pid::from_raw(i32::try_from(stopped.spawn()?.id())?);
        waitpid(first, Some(WaitPidFlag::WUNTRACED))?;
        let options = [
            Options::PTRACE_O_TRACEFORK,
            Options::PTRACE_O_TRACEVFORK,
            Options::PTRACE_O_TRACECLONE,
            Options::PTRACE_O_TRACEEXEC,
            Options::PTRACE_O_EXITKILL,
        ];
        ptrace::seize(first, options.into_iter().collect())?;
        nix::sys::signal::kill(first, Signal::SIGCONT)?;
        let mut ended = None;
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::__WALL)) {
                Err(Errno::ECHILD) => break,
                status => status?,
            };
            let (pid, signal) = match status {
                WaitStatus::Exited(pid, code) if pid == first => {
                    ended = Some(ExitStatus::from_raw(code << 8));
                    continue;
                }
                WaitStatus::PtraceEvent(pid, _, libc::PTRACE_EVENT_EXEC) => {
                    if self.is_run_by(pid) {
                        self.set_breakpoints(pid)?;
                    }
                    (pid, None)
                }
                WaitStatus::Stopped(pid, Signal::SIGTRAP) if self.reach(pid)? => (pid, None),
                WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
                WaitStatus::PtraceEvent(pid, ..) => (pid, None),
                _ => continue,
            };
            gone(ptrace::cont(pid, signal))?;
        }
        let ended = ended.context("the command's end was not seen")?;
        ensure!(ended.success(), "{command:?}: {ended}");
        Ok(())
    }

    /// By the list of mappings: to look at the file itself could need a filesystem that one of the traced processes serves.
    fn is_run_by(&self, pid: Pid) -> bool {
        let inode = self.inode.to_string();
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        maps.lines().next().is_some_and(|first| first.split_whitespace().nth(4) == Some(inode.as_str()))
    }

    fn set_breakpoints(&mut self, pid: Pid) -> Result<()> {
        let (Some((&first, _)), Some((&last, _))) = (self.functions.first_key_value(), self.functions.last_key_value())
        else {
            bail!("the program has no functions of Rust");
        };
        let memory = memory(pid)?;
        let mut code = vec![0; usize::try_from(last - first + 1)?];
        memory.read_exact_at(&mut code, first)?;
        self.code.clone_from(&code);
        for address in self.functions.keys() {
            code[usize::try_from(address - first)?] = BREAKPOINT;
        }
        Ok(memory.write_all_at(&code, first)?)
    }

    /// Notes the function at whose beginning a process stands, and has it go on there. Tells whether it stands at one.
    fn reach(&mut self, pid: Pid) -> Result<bool> {
        let mut registers = ptrace::getregs(pid)?;
        let address = registers.rip - 1;
        let Some((first, _)) = self.functions.first_key_value().filter(|_| self.functions.contains_key(&address))
        else {
            return Ok(false);
        };
        if self.known.insert(address) {
            self.used.push(address);
        }
        memory(pid)?.write_all_at(&self.code[usize::try_from(address - first)?..][..1], address)?;
        registers.rip = address;
        ptrace::setregs(pid, registers)?;
        Ok(true)
    }

    /// Returns the script.
    #[must_use]
    pub fn script(&self) -> String {
        let mut bearers: HashMap<&str, usize> = HashMap::new();
        for function in self.functions.values() {
            *bearers.entry(&function.section).or_default() += 1;
        }
        let mut written = HashSet::new();
        let mut script = HEAD.to_owned();
        for Function { file, section } in self.used.iter().filter_map(|address| self.functions.get(address)) {
            // A generic function is there once for each type, and those that a crate uses lie in that crate.
            let is_rare = bearers.get(section.as_str()).is_none_or(|count| *count <= FEW);
            let file = if is_rare { "*" } else { file };
            let line = format!("        {file}({section})\n");
            if written.insert(line.clone()) {
                script.push_str(&line);
            }
        }
        script.push_str(TAIL);
        script
    }
}

/// A function, and what is said to the linker of it: without what changes from build to build.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Function {
    file: String,
    section: String,
}

/// Reads the functions out of a linker's map. A line is an address, again, a size, an alignment, and `FILE:(SECTION)`, where a file may
/// be `ARCHIVE(MEMBER)`, or the name of something in that section.
fn functions(map: &str) -> BTreeMap<u64, Function> {
    let mut found = BTreeMap::new();
    // The C library's objects have several functions in a section.
    let mut libc: Option<(Range<u64>, Function)> = None;
    for line in map.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [address, _, size, _, what] = words[..] else { continue };
        let (Ok(address), Ok(size)) = (u64::from_str_radix(address, 16), u64::from_str_radix(size, 16)) else {
            continue;
        };
        if let Some((file, section)) = what.strip_suffix(')').and_then(|what| what.rsplit_once(":(")) {
            libc = of_libc(file, section).map(|function| (address..address + size, function));
            found.extend(of_rust(file, section).map(|function| (address, function)));
        } else if let Some((_, function)) = libc.as_ref().filter(|(range, _)| range.contains(&address)) {
            found.insert(address, function.clone());
        }
    }
    found
}

fn of_rust(file: &str, section: &str) -> Option<Function> {
    let name = section.strip_prefix(".text.")?;
    let object = file.trim_end_matches(')').rsplit(['/', '(']).next()?;
    let section = if name.contains("_ZN") {
        format!(".text.{}17h*", name.rsplit_once("17h")?.0)
    } else if name.contains("_R") {
        // What the optimizer has appended, and what stands for a version of a crate, up to its end.
        let (name, end) = name.split_once(".llvm.").map_or((name, ""), |(name, _)| (name, "*"));
        let mut parts = name.split("Cs");
        let first = parts.next()?.to_owned();
        format!(
            ".text.{}",
            parts.fold(first, |whole, part| match part.split_once('_') {
                Some((_, rest)) => format!("{whole}Cs*_{rest}"),
                None => format!("{whole}Cs{part}"),
            }) + end
        )
    } else {
        return None;
    };
    Some(Function { file: format!("*{}[-.]*", object.split_once('-')?.0), section })
}

fn of_libc(file: &str, section: &str) -> Option<Function> {
    let (_, member) = file.strip_suffix(')')?.rsplit_once("/libc.a(")?;
    let here = || Function { file: format!("*libc.a:{member}"), section: ".text*".to_owned() };
    section.starts_with(".text").then(here)
}

fn memory(pid: Pid) -> Result<File> {
    Ok(File::options().read(true).write(true).open(format!("/proc/{pid}/mem"))?)
}

/// A process can end at any moment.
fn gone(result: nix::Result<()>) -> Result<()> {
    match result {
        Err(Errno::ESRCH) => Ok(()),
        result => Ok(result?),
    }
}

const ELF_EXECUTABLE: u8 = 2;
/// So many of one name are kept together, whoever they are.
const FEW: usize = 3;
/// `int3`
const BREAKPOINT: u8 = 0xcc;

const HEAD: &str = "\
/* The functions that the start of a container uses, in the order of their first use: docs/design/runtime.md. Made by
 * `just code-order`; what is missing here lies behind. */
SECTIONS
{
    .text.start :
    {
        *(.text.strata_entry)
        *crt1.o(.text*)
        *(.text.main)
";
const TAIL: &str = "    }
}
INSERT BEFORE .text;
";

#[cfg(test)]
mod tests {
    use super::{Function, functions};

    #[test]
    fn names_go_without_what_changes() {
        let map = "\
             VMA              LMA     Size Align Out     In      Symbol
          634750           634750       23    16         /t/libstrata_sandbox-1.rlib(strata_sandbox-1.0a.rcgu.o):(.text._ZN14strata_sandbox5spawn4make17h646d2b77cf3bedc7E.llvm.41)
          634750           634750       23     1                 _ZN14strata_sandbox5spawn4make17h646d2b77cf3bedc7E
          634780           634780       23    16         /t/strata-2.0b.rcgu.o:(.text.unlikely._RNvCsjrHSEGnQ3l9_3std2rt.llvm.7)
          6347a0           6347a0       83    16         /usr/lib/libc.a(malloc.o):(.text)
          6347a0           6347a0       23     1                 malloc
          6347d0           6347d0       23     1                 free
          634900           634900       83    16         /usr/lib/libc.a(malloc.o):(.data)
          634900           634900       83    16                 mp_
";
        let function = |file: &str, section: &str| Function { file: file.into(), section: section.into() };
        let libc = function("*libc.a:malloc.o", ".text*");
        assert_eq!(
            functions(map).into_iter().collect::<Vec<_>>(),
            [
                (0x634750, function("*strata_sandbox[-.]*", ".text._ZN14strata_sandbox5spawn4make17h*")),
                (0x634780, function("*strata[-.]*", ".text.unlikely._RNvCs*_3std2rt*")),
                (0x6347a0, libc.clone()),
                (0x6347d0, libc),
            ]
        );
    }
}
