//! `--userns`, as root and as a plain user.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Result, ensure};
use strata_tests::image::busybox::{REFERENCE, shell};
use strata_tests::plain_user;
use strata_tests::strata::{Strata, User};
use strata_tests::tier::{Need, Suite};

pub(crate) fn register(suite: &mut Suite) {
    let needs = &[Need::Fuse, Need::Busybox];
    suite.add("user_namespaces::rootless_keep_id", needs, keep_id);
    suite.add("user_namespaces::rootless_nomap", needs, nomap);
    suite.add("user_namespaces::rootless_joined", needs, || joined(User::Plain, &["host", "keep-id", "nomap"]));
    suite.add("user_namespaces::privileged_joined", needs, || joined(User::Caller, &["host", "keep-id", "auto"]));
    suite.add("user_namespaces::privileged_modes", needs, of_root);
}

/// Who runs the command; for root's tests that is the plain user that they make.
fn own_id() -> u32 {
    let own = rustix::process::geteuid();
    if own.is_root() { plain_user::ID } else { own.as_raw() }
}

/// The name of that user.
fn own_name() -> Result<String> {
    let passwd = fs::read_to_string("/etc/passwd")?;
    let id = own_id().to_string();
    let entry = passwd.lines().find(|line| line.split(':').nth(2) == Some(&id));
    Ok(entry.and_then(|entry| entry.split(':').next()).map_or_else(|| format!("user{id}"), str::to_owned))
}

fn keep_id() -> Result<()> {
    let strata = Strata::with_busybox(User::Plain)?;
    let folder = strata.make_folder("volume")?;
    let volume = format!("{}:/v", folder.display());
    let id = own_id();
    let ids = "id -u; id -g; stat -c %u:%g /v /bin; echo y > /v/made && echo out > /dev/stdout";
    let text = strata.ok(shell(&["--userns", "keep-id", "-v", &volume], ids))?;
    let group = fs::metadata(&folder)?.gid();
    ensure!(text == format!("{id}\n{group}\n{id}:{group}\n0:0\nout\n"), "{text}");
    ensure!(fs::metadata(folder.join("made"))?.uid() == id);

    let text = strata.ok(shell(&["--userns=keep-id:uid=1000,gid=1001", "-v", &volume], ids))?;
    ensure!(text == "1000\n1001\n1000:1001\n0:0\nout\n", "{text}");

    // Who has no name in the image has the one he has outside, and the changes of the container do not show it.
    let name = own_name()?;
    let names = "whoami; id -gn; grep -c . /etc/passwd";
    let plain = strata.ok(shell(&[], "grep -c . /etc/passwd"))?;
    let text = strata.ok(shell(&["--userns", "keep-id"], names))?;
    let lines: Vec<&str> = text.lines().collect();
    ensure!(lines.first() == Some(&name.as_str()) && lines.len() == 3, "{text}");
    ensure!(lines[2].parse::<u32>()? == plain.trim().parse::<u32>()? + 1, "{text}{plain}");
    let text = strata.ok(shell(&["--userns", "keep-id", "--read-only"], "whoami"))?;
    ensure!(text.trim() == name, "{text}");
    // Programs that add accounts replace the files.
    let add = "sed -i s/x/x/ /etc/passwd && sed -i s/x/x/ /etc/group && whoami; id -u";
    let text = strata.ok(shell(&["--userns", "keep-id", "--user", "0"], add))?;
    ensure!(text == "root\n0\n", "{text}");
    let text = strata.ok(shell(&["--userns", "keep-id:uid=0"], "whoami"))?;
    ensure!(text == "root\n", "{text}");

    // The container has a root all the same, whose files are root's in the image that is made of it.
    let root =
        format!("id -u; echo x > /file; stat -c %u /file; chown {id} /file; stat -c %u /file; echo x >> /etc/hosts");
    strata.ok(["run", "--name", "kept", "--userns", "keep-id", "--user", "0", REFERENCE, "sh", "-c", &root])?;
    let logs = strata.ok(["logs", "kept"])?;
    ensure!(logs == format!("0\n0\n{id}\n"), "{logs}");
    let mode = strata.ok(["inspect", "--format", "{{.HostConfig.UsernsMode}}", "kept"])?;
    ensure!(mode == "keep-id\n", "{mode}");
    strata.ok(["commit", "kept", "kept:made"])?;
    let owner = strata.ok(["run", "--rm", "kept:made", "stat", "-c", "%u", "/file"])?;
    ensure!(owner == format!("{id}\n"), "{owner}");
    strata.ok(["rm", "kept"])?;
    Ok(())
}

fn nomap() -> Result<()> {
    let strata = Strata::with_busybox(User::Plain)?;
    let folder = strata.make_folder("volume")?;
    let volume = format!("{}:/v", folder.display());
    let script = "id -u; stat -c %u /v /bin; echo x > /file && stat -c %u /file; echo x >> /etc/hosts || echo closed; \
                  cat /proc/self/uid_map | tr -s ' '";
    let text = strata.ok(shell(&["--userns", "nomap", "-v", &volume], script))?;
    ensure!(text.starts_with("0\n65534\n0\n0\n 0 1 "), "{text}");
    let text = strata.ok(shell(&["--userns", "nomap", "--user", "33"], "echo out > /dev/stdout"))?;
    ensure!(text == "out\n", "{text}");
    Ok(())
}

/// A container in the user namespace of another one of each mode.
fn joined(user: User, modes: &[&str]) -> Result<()> {
    let strata = Strata::with_busybox(user)?;
    let look = "readlink /proc/self/ns/user; stat -c %u /bin; echo x > /file && stat -c %u /file";
    for mode in modes {
        strata.ok(["run", "-d", "--name", "first", "--userns", mode, REFERENCE, "sleep", "1000"])?;
        let namespace = strata.ok(["exec", "first", "readlink", "/proc/self/ns/user"])?;
        let expected = format!("{namespace}0\n0\n");
        let text = strata.ok(shell(&["--userns", "container:first"], look))?;
        ensure!(text == expected, "{mode}: {text}{expected}");
        // Made by one command, started by another; a process is added by a third.
        let id =
            strata.ok(["create", "--name", "second", "--userns", "container:first", REFERENCE, "sleep", "1000"])?;
        strata.ok(["start", "second"])?;
        let added = strata.ok(["exec", "second", "sh", "-c", look])?;
        ensure!(added == expected, "{mode}: {added}{expected}");
        let first = strata.ok(["inspect", "--format", "{{.Id}}", "first"])?;
        let shown = strata.ok(["inspect", "--format", "{{.HostConfig.UsernsMode}}", "second"])?;
        ensure!(shown == format!("container:{first}"), "{shown}");
        strata.ok(["rm", "-f", "second"])?;
        strata.ok(["create", "--name", "second", "--userns", "container:first", REFERENCE, "true"])?;
        strata.ok(["kill", "first"])?;
        strata.ok(["wait", "first"])?;
        let refused = strata.exits(1, ["start", "second"])?;
        ensure!(refused.stderr.contains("user namespace of a non running container: first"), "{refused} {id}");
        strata.ok(["rm", "first", "second"])?;
    }
    let refused = strata.exits(125, shell(&["--userns", "container:none"], "true"))?;
    ensure!(refused.stderr.contains("userns=container:none: No such container: none"), "{refused}");
    Ok(())
}

fn of_root() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    let map = "id -u; id -g; echo $(cat /proc/self/uid_map); stat -c %u /bin";
    let text = strata.ok(shell(&["--userns", "keep-id"], map))?;
    ensure!(text == "0\n0\n0 0 4294967295\n0\n", "{text}");
    let text = strata.ok(shell(&["--userns", "keep-id:uid=33,gid=34"], map))?;
    ensure!(text == "33\n34\n0 0 4294967295\n0\n", "{text}");
    let text = strata.ok(shell(&["--userns", "auto", "--user", "1000"], "echo out > /dev/stdout"))?;
    ensure!(text == "out\n", "{text}");
    let refused = strata.exits(125, shell(&["--userns", "keep-id", "--security-opt", "hardened"], "true"))?;
    ensure!(refused.stderr.contains("which a hardened container must not be"), "{refused}");
    for (mode, words) in [
        ("nomap", "userns=nomap is for plain users"),
        ("private", "invalid USER mode: private"),
        ("keep-id:uid=x", "uid=x is no id"),
    ] {
        let refused = strata.exits(125, shell(&["--userns", mode], "true"))?;
        ensure!(refused.stderr.contains(words), "{mode}: {refused}");
    }
    Ok(())
}
