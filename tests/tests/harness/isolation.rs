//! Two state folders on one machine never meet.

use std::fs;

use anyhow::{Result, ensure};
use strata_tests::image::archive::Form;
use strata_tests::image::busybox;
use strata_tests::strata::{Strata, User, mounts_below};
use strata_tests::tier::{Need, Suite};

pub(crate) fn register(suite: &mut Suite) {
    let needs = &[Need::Fuse, Need::Busybox];
    suite.add("isolation::privileged_two_roots_never_meet", needs, || two_roots(User::Caller));
    suite.add("isolation::rootless_two_roots_never_meet", needs, || two_roots(User::Plain));
    suite.add("isolation::privileged_mount_shows_image_and_ends", needs, || mount_and_end(User::Caller));
    suite.add("isolation::rootless_mount_shows_image_and_ends", needs, || mount_and_end(User::Plain));
}

fn two_roots(user: User) -> Result<()> {
    let first = Strata::of(user)?;
    let second = first.another()?;
    let archive = busybox::folder()?.join(Form::DockerNew.file_name());
    first.load(&archive)?;
    ensure!(second.ok(["images", "-q"])?.is_empty(), "the second root lists the first one's image");
    second.exits(125, ["run", "--rm", busybox::REFERENCE, "true"])?;
    second.load(&archive)?;

    // The same name, at the same time, with the same limits.
    // A plain user has no cgroup here to be limited in.
    let limits: &[&str] = if user == User::Caller { &["--pids-limit", "50", "--memory", "64m"] } else { &[] };
    let arguments = || {
        let image = [busybox::REFERENCE, "sleep", "3"];
        ["run", "--name", "same"].into_iter().chain(limits.iter().copied()).chain(image)
    };
    let (mut one, mut two) = (first.start(arguments())?, second.start(arguments())?);
    let (one, two) = (one.wait()?, two.wait()?);
    let logs = |strata: &Strata| fs::read_to_string(strata.folder().join("started.log")).unwrap_or_default();
    ensure!(one.success() && two.success(), "{one} {two}\n{}\n{}", logs(&first), logs(&second));

    first.ok(["rm", "same"])?;
    ensure!(first.ok(["ps", "-a", "-q"])?.is_empty());
    ensure!(second.ok(["ps", "-a", "-q"])?.lines().count() == 1, "the other root's container is gone");
    first.ok(["rmi", busybox::REFERENCE])?;
    second.ok(["run", "--rm", busybox::REFERENCE, "true"])?;
    second.ok(["rm", "same"])?;
    Ok(())
}

fn mount_and_end(user: User) -> Result<()> {
    let strata = Strata::of(user)?;
    strata.load(&busybox::folder()?.join(Form::OciZstd.file_name()))?;
    let point = strata.make_folder("point")?;
    let point_text = point.to_string_lossy().into_owned();
    strata.ok(["mount", busybox::REFERENCE, &point_text])?;
    ensure!(mounts_below(&point) == [point.clone()], "{:?}", mounts_below(&point));
    if user == User::Caller {
        ensure!(fs::read_to_string(point.join("etc/motd"))? == "hello from a layer\n");
        ensure!(!point.join("var").exists(), "a whiteout does not hide");
        let written = fs::write(point.join("etc/new"), "x").map_err(|error| error.raw_os_error());
        ensure!(written == Err(Some(rustix::io::Errno::ROFS.raw_os_error())), "{written:?}");
    }
    strata.ok(["umount", &point_text])?;
    ensure!(mounts_below(&point).is_empty());
    ensure!(fs::read_dir(&point)?.next().is_none());

    // The command does not keep its output open after it has returned: a pipe ends.
    let mut command = strata.command(["mount", "--rw", busybox::REFERENCE, &point_text]);
    let output = command.output()?;
    ensure!(output.status.success(), "{output:?}");
    strata.ok(["umount", &point_text])?;
    Ok(())
}
