//! On a filesystem with fs-verity, no damaged block of a layer is ever read.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use strata_tests::image::archive::Form;
use strata_tests::image::busybox;
use strata_tests::tier::{Need, Suite};

use crate::power_cut::{EXT4, Mounted, ok, strata};

pub(crate) fn register(suite: &mut Suite) {
    let needs = [Need::Fuse, Need::Busybox, Need::Verity, Need::Program("losetup"), Need::Program("mkfs.ext4")];
    suite.add("verity::privileged_damaged_blocks_are_not_served", &needs, damaged_blocks);
}

fn damaged_blocks() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("strata-test-").tempdir_in("/var/tmp")?;
    let (image, point) = (folder.path().join("disk"), folder.path().join("mounted"));
    std::fs::create_dir(&point)?;
    File::create(&image)?.set_len(EXT4.size)?;
    let mounted = Mounted::new(&image, &point, &EXT4, true)?;
    let archive = busybox::folder()?.join(Form::DockerNew.file_name());
    ok(&point, &["load", "-q", "-i", archive.to_str().context("a path in UTF-8")?])?;
    let report: serde_json::Value = serde_json::from_str(&ok(&point, &["fsck", "--quick", "--format", "json"])?)?;
    ensure!(report["layers"] == report["layers_verified_by_kernel"], "{report}");
    drop(mounted);

    // The start of the program itself, which is somewhere in the tar.
    let disk = std::fs::read(&image)?;
    let program = std::fs::read("/bin/busybox").context("a static busybox")?;
    let found: Vec<usize> =
        disk.windows(4096).enumerate().step_by(512).filter(|(_, w)| *w == &program[..4096]).map(|(at, _)| at).collect();
    ensure!(!found.is_empty(), "the program is not on the disk");
    let file = File::options().write(true).open(&image)?;
    for at in found {
        file.write_all_at(&[!program[100]], at as u64 + 100)?;
    }

    let _mounted = Mounted::new(&image, &point, &EXT4, false)?;
    let run = strata(&point, &["run", "--rm", busybox::REFERENCE, "true"])?;
    ensure!(run.code() != 0, "a damaged program was executed: {run}");
    let checked = strata(&point, &["fsck"])?;
    ensure!(checked.code() == 4 && checked.stdout.contains("Input/output error"), "{checked}");
    Ok(())
}
