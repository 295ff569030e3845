//! `cp` in both directions, and hostile containers that would have it reach the host.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use strata_tests::image::busybox::REFERENCE;
use strata_tests::plain_user;
use strata_tests::strata::{Strata, User};
use strata_tests::tier::{Need, Suite};

pub(crate) fn register(suite: &mut Suite) {
    let needs = &[Need::Fuse, Need::Busybox];
    suite.add("copying::privileged_both_ways", needs, || both_ways(User::Caller));
    suite.add("copying::rootless_both_ways", needs, || both_ways(User::Plain));
    suite.add("copying::privileged_streams", needs, streams);
    suite.add("copying::privileged_owners_and_volumes", needs, owners_and_volumes);
    suite.add("copying::privileged_refusals", needs, refusals);
    suite.add("copying::privileged_sizes", needs, sizes);
    suite.add("copying::privileged_cve_2018_15664_swapped_links_never_reach_the_host", needs, swapped_links);
    suite.add(
        "copying::privileged_cve_2019_14271_and_2026_41567_nothing_of_the_container_is_run",
        needs,
        nothing_is_run,
    );
    suite.add("copying::privileged_cve_2026_41568_swapped_mount_points", needs, swapped_mount_points);
}

/// A path of the host, as an argument.
fn host(path: &Path) -> String {
    path.display().to_string()
}

fn both_ways(user: User) -> Result<()> {
    let strata = Strata::with_busybox(user)?;
    let files = strata.make_folder("files")?;
    fs::create_dir(files.join("dir"))?;
    fs::write(files.join("dir/one"), "first")?;
    fs::set_permissions(files.join("dir/one"), fs::Permissions::from_mode(0o751))?;
    std::os::unix::fs::symlink("/nowhere", files.join("dir/link"))?;
    if user == User::Plain {
        for path in ["dir", "dir/one"] {
            plain_user::own(&files.join(path))?;
        }
    }
    let out = strata.make_folder("out")?;
    // Never started, running, paused and ended: all the same.
    strata.ok(["create", "--name", "box", REFERENCE, "sh", "-c", "trap exit TERM; while :; do sleep 0.05; done"])?;
    for (round, step) in [None, Some("start"), Some("pause"), Some("stop")].into_iter().enumerate() {
        match step {
            // A plain user has no cgroup that could be frozen.
            Some("pause") if user == User::Plain => continue,
            Some("stop") if user == User::Caller => drop(strata.ok(["unpause", "box"])?),
            _ => {}
        }
        if let Some(verb) = step {
            strata.ok([verb, "box"])?;
        }
        let copied = strata.run(["cp".to_owned(), host(&files.join("dir")), format!("box:/in-{round}")])?;
        ensure!(copied.status.success() && copied.stdout.is_empty(), "{copied}");
        ensure!(
            copied.stderr.starts_with("Successfully copied ") && copied.stderr.contains(" to box:/in-"),
            "{copied}"
        );
        let target = out.join(round.to_string());
        strata.ok(["cp".to_owned(), "-q".to_owned(), format!("box:/in-{round}/."), host(&target)])?;
        ensure!(fs::read_to_string(target.join("one"))? == "first");
        ensure!(fs::metadata(target.join("one"))?.mode() & 0o7777 == 0o751);
        ensure!(fs::read_link(target.join("link"))? == Path::new("/nowhere"));
        ensure!(fs::metadata(target.join("one"))?.uid() == fs::metadata(&files)?.uid(), "files belong to the user");
    }
    strata.ok(["start", "box"])?;
    ensure!(strata.ok(["exec", "box", "cat", "/in-0/one", "/in-1/one"])? == "firstfirst");
    ensure!(strata.ok(["exec", "box", "stat", "-c", "%a %u", "/in-1/one"])?.starts_with("751 0"));
    // What the container writes is there at once, and the other way round.
    strata.ok(["exec", "box", "sh", "-c", "echo later > /in-0/one"])?;
    strata.ok(["cp", "box:in-0/one", &host(&out.join("later"))])?;
    ensure!(fs::read_to_string(out.join("later"))? == "later\n");
    let changes = strata.ok(["diff", "box"])?;
    ensure!(changes.contains("A /in-0\n") && !changes.contains(".strata-cp"), "{changes}");
    strata.ok(["rm", "-f", "box"])?;
    Ok(())
}

fn streams() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    strata.ok(["create", "--name", "box", REFERENCE, "true"])?;
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o600);
    header.set_uid(12);
    header.set_gid(34);
    archive.append_data(&mut header, "made/deep/file", &b"bytes"[..])?;
    let plain = archive.into_inner()?;
    let zipped = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&plain)?;
        encoder.finish()?
    };
    for (round, bytes) in [plain, zipped].into_iter().enumerate() {
        let path = strata.folder().join("stream");
        fs::write(&path, bytes)?;
        let name = format!("box:/tmp-{round}");
        fs::create_dir_all(strata.folder().join("empty"))?;
        strata.ok(["cp", "-q", &host(&strata.folder().join("empty")), &name])?;
        let copied = strata.run_with_input(["cp", "-", &name], File::open(&path)?)?;
        ensure!(copied.status.success(), "{copied}");
        let read = strata.command(["cp", &format!("{name}/made"), "-"]).output()?;
        let mut entries = Vec::new();
        for entry in tar::Archive::new(read.stdout.as_slice()).entries()? {
            let entry = entry?;
            let header = entry.header();
            entries.push(format!(
                "{} {}:{} {:o}",
                entry.path()?.display(),
                header.uid()?,
                header.gid()?,
                header.mode()?
            ));
        }
        ensure!(entries == ["made/ 0:0 755", "made/deep/ 0:0 755", "made/deep/file 12:34 600"], "{entries:?}");
    }
    let refused = strata.run_with_input(["cp", "-", "box:/nowhere"], File::open("/dev/null")?)?;
    ensure!(refused.stderr == "strata: destination \"box:/nowhere\" must be a directory\n", "{refused}");
    // What no part of this program can decompress is no tar, and no other program is asked.
    let path = strata.folder().join("xz");
    fs::write(&path, b"\xfd7zXZ\0 and more of the same, to the end of the first block".repeat(40))?;
    let refused = strata.run_with_input(["cp", "-", "box:/"], File::open(&path)?)?;
    ensure!(refused.code() == 1 && refused.stderr.contains("read the archive"), "{refused}");
    Ok(())
}

fn owners_and_volumes() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    let volume = strata.make_folder("volume")?;
    let file = strata.folder().join("file");
    fs::write(&file, "content")?;
    std::os::unix::fs::chown(&file, Some(71), Some(72))?;
    let mount = format!("{}:/made/for/it", volume.display());
    let reading = format!("{}:/fixed:ro", volume.display());
    strata.ok(["create", "--name", "box", "-u", "77:78", "-v", &mount, "-v", &reading, REFERENCE, "sleep", "1000"])?;
    for round in 0..2 {
        strata.ok(["cp", "-q", &host(&file), "box:/made/for/it/kept"])?;
        strata.ok(["cp", "-q", "-a", &host(&file), "box:/made/for/it/given"])?;
        let owner = |name: &str| fs::metadata(volume.join(name)).map(|stat| (stat.uid(), stat.gid()));
        ensure!(owner("kept")? == (71, 72) && owner("given")? == (77, 78), "round {round}");
        let refused = strata.exits(1, ["cp", &host(&file), "box:/fixed/x"])?;
        ensure!(refused.stderr == "strata: mounted volume is marked read-only\n", "{refused}");
        // Without -a, what comes out is the user's, and no program gets the powers of another.
        fs::set_permissions(volume.join("given"), fs::Permissions::from_mode(0o6755))?;
        let out = strata.folder().join(format!("out-{round}"));
        strata.ok(["cp", "-q", "box:/made/for/it/given", &host(&out)])?;
        let stat = fs::metadata(&out)?;
        ensure!((stat.uid(), stat.mode() & 0o7777) == (0, 0o755), "{:o}", stat.mode());
        strata.ok(["cp", "-q", "-a", "box:/made/for/it/given", &host(&out)])?;
        let stat = fs::metadata(&out)?;
        ensure!((stat.uid(), stat.mode() & 0o7777) == (77, 0o6755), "{:o}", stat.mode());
        if round == 0 {
            strata.ok(["start", "box"])?;
        }
    }
    // Owners are those that the container knows, whatever they are outside.
    fs::write(volume.join("mine"), "")?;
    std::os::unix::fs::chown(volume.join("mine"), Some(71), Some(72))?;
    let data = format!("{}:/data", volume.display());
    let script = "stat -c %u:%g /data/mine > /data/seen; sleep 1000";
    strata.ok(["run", "-d", "--name", "mapped", "--userns", "auto", "-v", &data, REFERENCE, "sh", "-c", script])?;
    // A volume too: its owners are those inside, and what the container's root makes is root's.
    let deadline = Instant::now() + Duration::from_secs(20);
    while fs::read_to_string(volume.join("seen")).unwrap_or_default().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    ensure!(fs::read_to_string(volume.join("seen"))? == "71:72\n");
    ensure!(fs::metadata(volume.join("seen"))?.uid() == 0);
    for round in 0..2 {
        strata.ok(["cp", "-q", &host(&file), "mapped:/tmp-file"])?;
        let read = strata.command(["cp", "mapped:/tmp-file", "-"]).output()?;
        let uid = tar::Archive::new(read.stdout.as_slice()).entries()?.next().context("an entry")??.header().uid()?;
        ensure!(uid == 71, "{uid}");
        if round == 0 {
            strata.ok(["kill", "mapped"])?;
            strata.ok(["wait", "mapped"])?;
        }
    }
    strata.ok(["rm", "-f", "box", "mapped"])?;
    Ok(())
}

fn refusals() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    let file = strata.folder().join("file");
    fs::write(&file, "content")?;
    let file = host(&file);
    strata.ok(["create", "--name", "box", REFERENCE, "true"])?;
    strata.ok(["run", "-d", "--name", "fixed", "--read-only", REFERENCE, "sleep", "1000"])?;
    let absent = host(&strata.folder().join("absent/x"));
    let parent = host(&strata.folder().join("absent"));
    for (source, target, message) in [
        ("box:/x", "box:/y", "copying between containers is not supported".to_owned()),
        (&file, &file, "must specify at least one container source".to_owned()),
        ("box:/none", ".", "Could not find the file /none in container box".to_owned()),
        ("none:/x", ".", "No such container: none".to_owned()),
        (&absent, "box:/", format!("lstat {absent}: no such file or directory")),
        ("box:/bin", &file, "cannot copy directory".to_owned()),
        (&file, "box:/none/", "no such directory".to_owned()),
        (&file, "box:/none/x", "Could not find the file /none in container box".to_owned()),
        ("box:/bin", &absent, format!("invalid output path: directory \"{parent}\" does not exist")),
        (&file, "fixed:/x", "container rootfs is marked read-only".to_owned()),
        (
            "fixed:/proc/1/environ",
            ".",
            "\"/proc/1/environ\" is in a filesystem of the kernel, which holds no files to copy".to_owned(),
        ),
    ] {
        let refused = strata.exits(1, ["cp", source, target])?;
        ensure!(refused.stderr.trim_end() == format!("strata: {message}"), "{source} {target}: {refused}");
    }
    // A whole container is its files, not those of the kernel.
    let out = strata.make_folder("whole")?;
    strata.ok(["cp", "-q", "fixed:/", &host(&out)])?;
    for empty in ["proc", "sys", "dev"] {
        ensure!(fs::read_dir(out.join(empty))?.next().is_none(), "{empty}");
    }
    ensure!(out.join("bin/busybox").exists() || out.join("bin/sh").exists());
    strata.ok(["rm", "-f", "box", "fixed"])?;
    Ok(())
}

fn sizes() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    strata.ok(["create", "--name", "box", REFERENCE, "true"])?;
    let sizes = |name: &str| -> Result<(u64, u64)> {
        let text = strata.ok(["inspect", "--size", "--format", "{{.SizeRw}} {{.SizeRootFs}}", name])?;
        let (writable, root) = text.trim().split_once(' ').context("two numbers")?;
        Ok((writable.parse()?, root.parse()?))
    };
    let (writable, image) = sizes("box")?;
    ensure!(writable == 0 && image > 0, "{writable} {image}");
    let file = strata.folder().join("file");
    fs::write(&file, vec![7; 1_000_000])?;
    strata.ok(["cp", "-q", &host(&file), "box:/file"])?;
    let (writable, root) = sizes("box")?;
    ensure!((1_000_000..1_010_000).contains(&writable) && root == image + writable, "{writable} {root}");
    ensure!(!strata.ok(["inspect", "box"])?.contains("SizeRw"));
    let table = strata.ok(["ps", "-a", "-s"])?;
    ensure!(table.contains("SIZE") && table.contains("1MB (virtual "), "{table}");
    ensure!(strata.ok(["ps", "-a", "--format", "{{.Size}}"])?.starts_with("1MB (virtual "));
    ensure!(!strata.ok(["ps", "-a"])?.contains("SIZE"));
    let pruned = strata.ok(["container", "prune", "-f"])?;
    // With as many digits as Docker has there.
    let reclaimed = pruned.lines().last().and_then(|line| line.strip_prefix("Total reclaimed space: "));
    ensure!(reclaimed.is_some_and(|size| size.starts_with("1.00") || size == "1MB"), "{pruned}");
    Ok(())
}

/// A file of the host that nothing may change or read through a container.
struct Canary<'a> {
    path: &'a Path,
    before: (u64, u64, u32, i64),
}

impl Canary<'_> {
    fn new(path: &Path) -> Result<Canary<'_>> {
        fs::write(path, SECRET)?;
        Ok(Canary { path, before: Self::look(path)? })
    }

    fn look(path: &Path) -> Result<(u64, u64, u32, i64)> {
        let stat = fs::metadata(path)?;
        Ok((stat.ino(), stat.size(), stat.mode(), stat.ctime_nsec()))
    }

    fn ensure_whole(&self) -> Result<()> {
        ensure!(
            Self::look(self.path)? == self.before && fs::read_to_string(self.path)? == SECRET,
            "the canary changed"
        );
        Ok(())
    }
}

const SECRET: &str = "of the host";

/// Runs a script in the container that swaps something without pause, and `step` against it for a while.
fn race(strata: &Strata, script: &str, mut step: impl FnMut() -> Result<()>) -> Result<()> {
    strata.ok(["run", "-d", "--name", "racer", REFERENCE, "sh", "-c", script])?;
    let long = std::env::var_os("STRATA_LONG_TESTS").is_some();
    let deadline = Instant::now() + Duration::from_secs(if long { 120 } else { 2 });
    while Instant::now() < deadline {
        step()?;
    }
    strata.ok(["rm", "-f", "racer"])?;
    Ok(())
}

fn swapped_links() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    let outside = strata.make_folder("outside")?;
    let path = outside.join("canary");
    let canary = Canary::new(&path)?;
    let own = strata.folder().join("canary");
    fs::write(&own, "of the container")?;
    let out = strata.make_folder("out")?;
    // The folder is by turns one of the container and a link to where the canary is on the host.
    let script = format!(
        "mkdir /real; echo inside > /real/canary; ln -s {} /evil; mv /real /way; \
         while :; do mv /way /real; mv /evil /way; mv /way /evil; mv /real /way; done",
        outside.display()
    );
    let mut arrived = 0;
    race(&strata, &script, || {
        let written = strata.run(["cp", "-q", &host(&own), "racer:/way/canary"])?;
        arrived += usize::from(written.status.success());
        let read = out.join("read");
        if strata.run(["cp", "-q", "racer:/way/canary", &host(&read)])?.status.success() {
            ensure!(fs::read_to_string(&read)? != SECRET, "a file of the host was read");
        }
        canary.ensure_whole()
    })?;
    ensure!(arrived > 0, "no copy ever succeeded");
    let names: Vec<_> = fs::read_dir(&outside)?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(names == ["canary"], "made outside: {names:?}");
    Ok(())
}

fn nothing_is_run() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    let path = strata.folder().join("canary");
    let canary = Canary::new(&path)?;
    let file = strata.folder().join("file");
    fs::write(&file, "content")?;
    // Everything that a helper might load or run says so where the test can see it.
    let script = "#!/bin/sh\ntouch /ran\n";
    let evil = strata.make_folder("evil")?;
    for folder in ["bin", "sbin", "usr", "usr/bin", "usr/local", "usr/local/bin", "lib", "etc"] {
        fs::create_dir_all(evil.join(folder))?;
    }
    for name in ["tar", "gzip", "unpigz", "xz", "zstd", "docker-untar", "sh-helper"] {
        for folder in ["bin", "sbin", "usr/bin", "usr/local/bin"] {
            fs::write(evil.join(folder).join(name), script)?;
            fs::set_permissions(evil.join(folder).join(name), fs::Permissions::from_mode(0o755))?;
        }
    }
    for name in ["libnss_files.so.2", "libnss_compat.so.2", "libnss_dns.so.2", "libc.so.6"] {
        fs::write(evil.join("lib").join(name), "not a library")?;
    }
    fs::write(evil.join("etc/nsswitch.conf"), "passwd: evil files\n")?;
    fs::write(evil.join("etc/passwd"), "me:x:5:6::/:/bin/sh\n")?;
    strata.ok(["create", "--name", "box", "-u", "me", REFERENCE, "sleep", "1000"])?;
    strata.ok(["cp", "-q", &format!("{}/.", evil.display()), "box:/"])?;
    let zipped = strata.folder().join("zipped");
    let mut encoder = flate2::write::GzEncoder::new(File::create(&zipped)?, flate2::Compression::fast());
    encoder.write_all(&[0; 1024])?;
    encoder.finish()?;
    for _ in 0..2 {
        strata.ok(["cp", "-q", "-a", &host(&file), "box:/file"])?;
        let copied = strata.run_with_input(["cp", "-q", "-", "box:/"], File::open(&zipped)?)?;
        ensure!(copied.status.success(), "{copied}");
        strata.exits(1, ["cp", "-q", "box:/ran", "-"])?;
        // The user was found in the container's own file, by us.
        let read = strata.command(["cp", "box:/file", "-"]).output()?;
        let mut archive = tar::Archive::new(read.stdout.as_slice());
        let entry = archive.entries()?.next().context("an entry")??;
        ensure!((entry.header().uid()?, entry.header().gid()?) == (5, 6));
        if strata.ok(["inspect", "-f", "{{.State.Status}}", "box"])? == "created\n" {
            strata.ok(["start", "box"])?;
        }
    }
    canary.ensure_whole()?;
    strata.ok(["rm", "-f", "box"])?;
    Ok(())
}

/// The place of a volume is a link out of the container when that is not running, and is swapped while it is.
fn swapped_mount_points() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    let outside = strata.make_folder("outside")?;
    let path = outside.join("canary");
    let canary = Canary::new(&path)?;
    let volume = strata.make_folder("volume")?;
    let file = strata.folder().join("file");
    fs::write(&file, "content")?;
    let mounts = || fs::read_to_string("/proc/self/mountinfo").map(|text| text.lines().count());
    let before = mounts()?;
    let out = strata.make_folder("out")?;
    let mount = format!("{}:/a/b/data", volume.display());
    strata.ok(["create", "--name", "box", "-v", &mount, REFERENCE, "true"])?;
    // As a container that ran before may have left it.
    let id = strata.ok(["inspect", "-f", "{{.Id}}", "box"])?;
    let upper = strata.state().join("containers").join(id.trim()).join("upper");
    for target in [outside.clone(), "../../../../../../../../../../../..".into(), "/proc/self/root".into()] {
        let _ = fs::remove_dir_all(upper.join("a"));
        fs::create_dir_all(upper.join("a"))?;
        std::os::unix::fs::symlink(&target, upper.join("a/b"))?;
        // Either it is refused, or it lands in the container.
        strata.run(["cp", "-q", &host(&file), "box:/a/b/data/file"])?;
        strata.run(["cp", "-q", "box:/a/b/data/.", &host(&out)])?;
        canary.ensure_whole()?;
        ensure!(fs::read_dir(&outside)?.count() == 1, "something was made outside");
        ensure!(!Path::new("/data").exists());
    }
    ensure!(mounts()? == before, "a mount stayed on the host");
    Ok(())
}
