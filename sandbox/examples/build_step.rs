//! A build step: sources that cannot be changed, a folder for what is made, and a second command in the same sandbox.
//!
//! ```console
//! $ cargo run -p strata-sandbox --example build_step -- ROOTFS SOURCES OUTPUT SCRIPT
//! ```
//!
//! The script runs by `sh` in `/src`, and writes to `/out`. What it prints is passed on line by line; when it has ended,
//! the time and memory that it has used are told.
#![expect(clippy::print_stdout, reason = "a program for people")]

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::ExitCode;

use strata_sandbox::{Access, Policy, Sandbox, Stdio};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [root, sources, output, script] = words.as_slice() else {
        return Err("usage: build_step ROOTFS SOURCES OUTPUT SCRIPT".into());
    };
    // Builds install packages and change owners: what Docker allows, and still no network.
    let sandbox = Sandbox::new(root)
        .policy(Policy::docker())
        .folder(sources, "/src", Access::ReadOnly)
        .folder(output, "/out", Access::ReadWrite)
        .scratch("/tmp", 1 << 30)
        .directory("/src")
        .env("SOURCE_DATE_EPOCH", "0")
        .memory(2 << 30)
        .processes(512);
    let (stdio, pipes) = Stdio::pipes()?;
    drop(pipes.stdin);
    let step = sandbox.spawn(&["sh", "-e", "-c", script], stdio)?;

    // Something to look at while it works: the processes that are in there, unless all has been done already.
    if let Ok(listing) = step.exec(&["ls", "/proc"], Stdio::Inherit) {
        listing.wait()?;
    }

    let errors = std::thread::spawn(move || pass_on("err", File::from(pipes.stderr)));
    pass_on("out", File::from(pipes.stdout))?;
    errors.join().map_err(|_| "the thread for errors panicked")??;
    let used = step.usage();
    let status = step.wait()?;
    println!("{status}; CPU time {:?} ns, memory {:?} bytes", used.cpu, used.memory);
    Ok(ExitCode::from(status.code()))
}

fn pass_on(name: &str, stream: File) -> std::io::Result<()> {
    for line in BufReader::new(stream).lines() {
        println!("{name}: {}", line?);
    }
    Ok(())
}
