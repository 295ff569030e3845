//! Mounts folders: `mount_folders LOWER[:LOWER...] UPPER WORK DIR [off]`. Serves until unmounted.
//!
//! With `-` for UPPER the mount is read-only; `off` switches passthrough off.
#![allow(clippy::print_stdout, reason = "a program to try things with")]

use std::path::PathBuf;

use strata_unionfs::{Lower, MountSpec, Options, Passthrough, Target, Upper, mount};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [lower, upper, work, dir, rest @ ..] = arguments.as_slice() else {
        return Err("usage: mount_folders LOWER[:LOWER...] UPPER WORK DIR [off]".into());
    };
    let passthrough = if rest.iter().any(|word| word == "off") { Passthrough::Off } else { Passthrough::Auto };
    let spec = MountSpec {
        lower: Lower::Folders(lower.split(':').map(PathBuf::from).collect()),
        upper: (upper != "-").then(|| Upper { dir: upper.into(), work: work.into() }),
        options: Options { passthrough, ..Options::default() },
    };
    let mounted = mount(&spec, &Target::Directory(dir.into()))?;
    println!("{:?}", mounted.report());
    mounted.serve()?;
    Ok(())
}
