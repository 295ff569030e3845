//! Runs a command that nobody has looked at, with a view of one folder.
//!
//! ```console
//! $ cargo run -p strata-sandbox --example untrusted_command -- ROOTFS FOLDER COMMAND [ARGUMENT...]
//! ```
//!
//! The command sees the root filesystem and, in `/data`, the folder; it can change neither. It has an empty `/tmp`, no
//! network, no capability, 256 MiB, one processor and ten seconds.
#![expect(clippy::print_stderr, reason = "a program for people")]

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use strata_sandbox::{Access, Sandbox, Stdio};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [root, folder, command @ ..] = words.as_slice() else {
        return Err("usage: untrusted_command ROOTFS FOLDER COMMAND [ARGUMENT...]".into());
    };
    let sandboxed = Sandbox::new(root)
        .folder(folder, "/data", Access::ReadOnly)
        .scratch("/tmp", 64 << 20)
        .directory("/data")
        .user("65534:65534")
        .memory(256 << 20)
        .cpus(1.0)
        .processes(64)
        .spawn(command, Stdio::Inherit)?;
    let Some(status) = sandboxed.wait_timeout(Duration::from_secs(10))? else {
        let used = sandboxed.usage();
        eprintln!("it takes too long; CPU time {:?} ns, memory {:?} bytes", used.cpu, used.memory);
        return Ok(ExitCode::from(124));
    };
    if status.out_of_memory() {
        eprintln!("it wanted more memory than it may have");
    }
    Ok(ExitCode::from(status.code()))
}
