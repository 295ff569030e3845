//! What tells a process from a later one that has the same number.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::OnceLock;
use std::time::Duration;

/// What `/proc/PID/stat` says of a process (proc(5)).
///
/// A number, the start time and [`boot_id`] together belong to one process only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessStat {
    /// The letter of its state.
    pub state: char,
    /// Clock ticks from the start of the machine to that of the process.
    pub start_time: u64,
}

impl ProcessStat {
    /// Reads what is said of the process that has the number now.
    ///
    /// # Errors
    /// `NotFound` where there is none, `InvalidData` for a text of another form, and other errors of reading `/proc`.
    pub fn of(pid: u32) -> io::Result<ProcessStat> {
        // One read: this is asked of every container in a list. The text has 52 numbers and a name of 64 bytes at most.
        let mut text = [0; 2048];
        let length = fs::File::open(format!("/proc/{pid}/stat"))?.read(&mut text)?;
        parse(&text[..length]).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Returns whether it has not ended. A zombie has.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X' | 'x')
    }
}

fn parse(stat: &[u8]) -> Option<ProcessStat> {
    let mut fields = fields(stat)?;
    let state = fields.next()?.chars().next()?;
    Some(ProcessStat { state, start_time: fields.nth(18)?.parse().ok()? })
}

/// Returns the fields from the third on.
fn fields(stat: &[u8]) -> Option<std::str::SplitAsciiWhitespace<'_>> {
    // The command name is in parentheses and may hold any byte, also blanks and parentheses: the last one ends it.
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    Some(std::str::from_utf8(&stat[after_name..]).ok()?.split_ascii_whitespace())
}

/// Returns the CPU that a thread runs on, or ran on last.
///
/// # Errors
/// `NotFound` where there is none, `InvalidData` for a text of another form, and other errors of reading `/proc`.
pub fn last_cpu(thread: u32) -> io::Result<usize> {
    let stat = fs::read(format!("/proc/{thread}/stat"))?;
    let cpu = fields(&stat).and_then(|mut fields| fields.nth(36)?.parse().ok());
    cpu.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Returns for how long a thread of this process could have run and did not, as others had its CPU. Allocates nothing: the
/// thread may have stopped in the middle of that.
///
/// # Errors
/// `NotFound` where there is none or the kernel does not count that, `InvalidData` for a text of another form, and other
/// errors of reading `/proc`.
pub fn time_in_line(thread: u32) -> io::Result<Duration> {
    let mut path = [0; 64];
    let mut rest = &mut path[..];
    write!(rest, "/proc/self/task/{thread}/schedstat")?;
    let unused = rest.len();
    let mut file = File::open(OsStr::from_bytes(&path[..path.len() - unused]))?;
    let mut text = [0; 128];
    let length = file.read(&mut text)?;
    let text = std::str::from_utf8(&text[..length]).unwrap_or_default();
    let nanoseconds = text.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok());
    nanoseconds.map(Duration::from_nanos).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Returns the kernel's identifier of this start of the machine, read once.
///
/// # Errors
/// Those of reading `/proc/sys/kernel/random/boot_id`.
pub fn boot_id() -> io::Result<&'static str> {
    static BOOT: OnceLock<String> = OnceLock::new();
    if let Some(boot) = BOOT.get() {
        return Ok(boot);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    Ok(BOOT.get_or_init(|| boot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_command_name_is_no_trap() {
        let fields: Vec<String> = (4..=52).map(|number| number.to_string()).collect();
        let stat = |name: &[u8], state: &str| {
            [b"77 (", name, b") ", format!("{state} {}\n", fields.join(" ")).as_bytes()].concat()
        };
        let found = parse(&stat(b"a) R (b", "S")).unwrap();
        assert_eq!(found, ProcessStat { state: 'S', start_time: 22 });
        assert!(found.is_alive());
        assert_eq!(parse(&stat(b"\xff\xfe", "R")).map(|found| found.start_time), Some(22));
        assert!(!parse(&stat(b"a", "Z")).unwrap().is_alive());
        assert_eq!(parse(b"77 (cut"), None);
        assert_eq!(parse(b"77 (cut) S 1 2"), None);
    }

    #[test]
    fn this_process_and_this_boot_are_found() {
        let own = ProcessStat::of(std::process::id()).unwrap();
        assert!(own.is_alive() && own.start_time != 0);
        assert!(!boot_id().unwrap().is_empty());
        assert!(last_cpu(std::process::id()).unwrap() < 4096);
        assert!(last_cpu(u32::MAX).is_err());
        assert!(time_in_line(u32::MAX).is_err());
        // Where the kernel counts it.
        if fs::exists("/proc/self/schedstat").unwrap() {
            time_in_line(std::process::id()).unwrap();
        }
    }
}
