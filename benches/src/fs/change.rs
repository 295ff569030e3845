//! Rows that write, one system call after the other.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

use anyhow::{Context as _, Result};

use super::data::Noise;
use super::samples::Stopwatch;

/// Small writes into a file of the upper.
pub fn writes(watch: &mut Stopwatch<'_>, count: u64) -> Result<()> {
    let block = Noise::new(10).bytes(4096);
    let path = watch.point.join("written");
    let open = || {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("open {path:?}"))
    };
    let mut file = open()?;
    watch.time("write 100 bytes", count * 5, || {
        for _ in 0..count * 5 {
            file.write_all(&block[..100])?;
        }
        Ok(())
    })?;
    drop(file);
    let file = open()?;
    let size = 16 << 20;
    for offset in (0..size).step_by(4096) {
        file.write_all_at(&block, offset)?;
    }
    let mut noise = Noise::new(11);
    watch.time("write 4k at random", count, || {
        for _ in 0..count {
            file.write_all_at(&block, noise.next() % (size >> 12) * 4096)?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Appends, on the disk each hundred times.
pub fn synced(watch: &mut Stopwatch<'_>, count: u64) -> Result<()> {
    let block = Noise::new(10).bytes(4096);
    for (name, length) in [("append 100 bytes, fsync each 100", 100), ("append 4k, fsync each 100", 4096)] {
        let path = watch.point.join(format!("synced-{length}"));
        let mut file = File::create(&path).with_context(|| format!("create {path:?}"))?;
        watch.time(name, count, || {
            for number in 1..=count {
                file.write_all(&block[..length])?;
                if number % 100 == 0 {
                    file.sync_all()?;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Names made, moved and removed in a folder that a layer has too.
pub fn names(watch: &mut Stopwatch<'_>, count: u64) -> Result<()> {
    let place = watch.point.join("old");
    let path = |kind: &str, number: u64| place.join(format!("{kind}-{number}"));
    watch.time("create + close", count, || {
        for number in 0..count {
            File::create(path("new", number))?;
        }
        Ok(())
    })?;
    watch.time("create + write 4k + close", count, || {
        let block = [7; 4096];
        for number in 0..count {
            File::create(path("full", number))?.write_all(&block)?;
        }
        Ok(())
    })?;
    watch.time("mkdir", count, || {
        for number in 0..count {
            fs::create_dir(path("folder", number))?;
        }
        Ok(())
    })?;
    watch.time("rename", count, || {
        for number in 0..count {
            fs::rename(path("new", number), path("moved", number))?;
        }
        Ok(())
    })?;
    watch.time("unlink", count, || {
        for number in 0..count {
            fs::remove_file(path("moved", number))?;
        }
        Ok(())
    })?;
    watch.time("rmdir", count, || {
        for number in 0..count {
            fs::remove_dir(path("folder", number))?;
        }
        Ok(())
    })
}

/// A tree of a layer gets another mode and another owner, by the programs for it.
pub fn attributes(watch: &mut Stopwatch<'_>) -> Result<()> {
    let tree = watch.point.join("heavy");
    // A plain folder is the same one each time; there has to be something to change.
    let changed = tree.join("d00").metadata()?.permissions().mode() & 0o1000 != 0;
    let (mode, owner) = if changed { ("o-t", "0:0") } else { ("o+t", "12:34") };
    let mut command = |name, program: &str, argument: &str| {
        watch.time(name, 1, || crate::walk::run(std::process::Command::new(program).arg("-R").arg(argument).arg(&tree)))
    };
    command("chmod -R", "chmod", mode)?;
    command("chown -R", "chown", owner)
}
