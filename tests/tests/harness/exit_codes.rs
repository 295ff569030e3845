//! Exit codes and the words that clients and scripts look for, as Docker has them.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use strata_tests::image::archive::{Form, Image, Layer};
use strata_tests::image::busybox;
use strata_tests::image::layer::{LayerWriter, Meta};
use strata_tests::plain_user;
use strata_tests::strata::{Strata, User, finish};
use strata_tests::tier::{Need, Suite};

pub(crate) fn register(suite: &mut Suite) {
    let run = &[Need::Fuse, Need::Busybox];
    suite.add("exit_codes::privileged_run_table", run, || run_table(User::Caller));
    suite.add("exit_codes::rootless_run_table", run, || run_table(User::Plain));
    suite.add("exit_codes::privileged_image_settings_are_used", run, || image_settings(User::Caller));
    suite.add("exit_codes::rootless_image_settings_are_used", run, || image_settings(User::Plain));
    suite.add("exit_codes::privileged_terminal", run, || terminal(User::Caller));
    suite.add("exit_codes::rootless_terminal", run, || terminal(User::Plain));
    suite.add("exit_codes::unprivileged_refusals", &[Need::Busybox], refusals);
    suite.add("exit_codes::privileged_used_images_are_not_removed", run, used_images);
    suite.add("exit_codes::unprivileged_image_without_command", &[], image_without_command);
}

/// Code, word in the message, command.
const RUN: &[(i32, &str, &[&str])] = &[
    (0, "", &["true"]),
    (1, "", &["false"]),
    (7, "", &["sh", "-c", "exit 7"]),
    (127, "executable file not found in $PATH", &["nosuchprogram"]),
    (127, "no such file or directory", &["/no/such/program"]),
    (126, "permission denied", &["/home/not-executable"]),
    (126, "is a directory", &["/etc"]),
    // The CPU limit ends the container's first process, which no signal from inside can.
    (137, "", &["sh", "-c", "ulimit -t 1; while :; do :; done"]),
];

fn run_table(user: User) -> Result<()> {
    let strata = Strata::with_busybox(user)?;
    for (code, word, command) in RUN {
        let arguments = ["run", "--rm", busybox::REFERENCE].iter().chain(command.iter());
        let finished = strata.exits(*code, arguments)?;
        ensure!(finished.stderr.contains(word), "the message does not say {word:?}:\n{finished}");
    }
    for (arguments, word) in [
        (&["run", "--rm", "no/such:image", "true"][..], "no/such:image"),
        (&["run", "--no-such-flag", busybox::REFERENCE], "--no-such-flag"),
        (&["run", "--rm", "--memory", "lots", busybox::REFERENCE, "true"], "lots"),
        (&["run", "--rm", "-w", "relative", busybox::REFERENCE, "true"], "relative"),
        (&["run", "--rm", "-u", "nosuchuser", busybox::REFERENCE, "true"], "nosuchuser"),
        (&["run", "--rm", "-v", "/no/such/source:/x:bad-option", busybox::REFERENCE, "true"], "bad-option"),
    ] {
        let finished = strata.exits(125, arguments)?;
        ensure!(finished.stderr.contains(word), "the message does not say {word:?}:\n{finished}");
    }
    let left = strata.ok(["ps", "-a", "-q"])?;
    ensure!(left.is_empty(), "containers left by --rm: {left}");
    Ok(())
}

fn image_settings(user: User) -> Result<()> {
    let strata = Strata::of(user)?;
    strata.load(&busybox::folder()?.join(Form::DockerOld.file_name()))?;
    let shell = |flags: &[&str], script: &str| -> Result<String> {
        let image = [busybox::REFERENCE, "sh", "-c", script];
        strata.ok(["run", "--rm"].iter().chain(flags).chain(&image))
    };
    let expect = |found: String, expected: &str| {
        ensure!(found.trim_end() == expected, "expected {expected:?}, found {found:?}");
        Ok(())
    };
    expect(shell(&[], "pwd; echo $FROM_IMAGE; id -u")?, "/home\nyes\n0")?;
    expect(shell(&["-e", "FROM_IMAGE=no", "-e", "X=1 2"], "echo $FROM_IMAGE $X")?, "no 1 2")?;
    expect(shell(&["-w", "/tmp/made"], "pwd")?, "/tmp/made")?;
    expect(shell(&["-u", "plain"], "id -u; id -g; id -G")?, "1000\n1000\n1000 2000")?;
    expect(shell(&["-u", "7:8"], "id -u; id -g")?, "7\n8")?;
    expect(shell(&["--hostname", "here"], "hostname")?, "here")?;
    expect(shell(&["--read-only"], "touch /x 2>/dev/null || echo refused")?, "refused")?;
    expect(shell(&[], "cat /etc/motd; ls /var 2>/dev/null || echo hidden")?, "hello from a layer\nhidden")?;
    expect(shell(&[], "echo $$; cat /proc/self/status | grep -c '^NoNewPrivs'")?, "1\n1")?;
    expect(shell(&["--network", "none"], "ls /sys/class/net")?, "lo")?;
    expect(shell(&["--cap-drop", "ALL"], "chown 1:1 /etc/motd 2>/dev/null || echo refused")?, "refused")?;
    let shared = strata.make_folder("shared")?;
    let (writable, read_only) = (format!("{}:/data", shared.display()), format!("{}:/data:ro", shared.display()));
    expect(shell(&["-v", &writable], "echo seen > /data/file")?, "")?;
    expect(shell(&["-v", &read_only], "cat /data/file; touch /data/x 2>/dev/null || echo refused")?, "seen\nrefused")?;

    let mut child = strata
        .command(["run", "--rm", "-i", busybox::REFERENCE, "sh", "-c", "read line; echo got $line; exit 3"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    std::io::Write::write_all(&mut child.stdin.take().context("a pipe")?, b"a line\n")?;
    let output = child.wait_with_output()?;
    ensure!(output.status.code() == Some(3) && output.stdout == b"got a line\n", "{output:?}");
    Ok(())
}

/// A terminal of its own with the size of ours, and the code of the process; `script` gives us a terminal to start from.
fn terminal(user: User) -> Result<()> {
    let strata = Strata::with_busybox(user)?;
    let inside = strata.command(["run", "--rm", "-it", busybox::REFERENCE, "sh", "-c", "tty; stty size; exit 5"]);
    // `timeout` would take the terminal away.
    let words = inside.get_args().skip(2).map(|word| format!("'{}'", word.to_string_lossy())).collect::<Vec<_>>();
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &format!("stty rows 33 cols 77; exec {}", words.join(" "))]);
    command.arg("/dev/null").current_dir(strata.folder()).stdin(std::process::Stdio::null());
    if user == User::Plain {
        plain_user::demote(&mut command);
        command.env("HOME", strata.folder());
    }
    let finished = finish(&mut command)?;
    ensure!(finished.code() == 5, "{finished}");
    ensure!(finished.stdout.contains("/dev/pts/0") && finished.stdout.contains("33 77"), "{finished}");
    Ok(())
}

fn refusals() -> Result<()> {
    let strata = Strata::new()?;
    let archive = busybox::folder()?.join(Form::OciGzip.file_name());
    strata.load(&archive)?;
    let folder = strata.make_folder("point")?;
    let folder = folder.to_string_lossy();
    for (code, word, arguments) in [
        (1, "No such image: nosuch", &["rmi", "nosuch"][..]),
        (1, "No such image: nosuch", &["image", "inspect", "nosuch"]),
        (1, "No such image: nosuch", &["history", "nosuch"]),
        (1, "No such image: nosuch", &["tag", "nosuch", "other"]),
        (1, "invalid reference format", &["tag", busybox::REFERENCE, "UPPER:case"]),
        (1, "No such container: nosuch", &["rm", "nosuch"]),
        (1, "No such container: nosuch", &["diff", "nosuch"]),
        (1, "No such container: nosuch", &["commit", "nosuch", "new:1"]),
        (1, "No such container: nosuch", &["export", "nosuch"]),
        (1, "nosuch", &["mount", "nosuch", &folder]),
        (1, "not mounted", &["umount", &folder]),
        (1, "/no/such/folder", &["mount", busybox::REFERENCE, "/no/such/folder"]),
        (125, "--no-such-flag", &["images", "--no-such-flag"]),
        (1, "'strata run' requires at least 1 argument", &["run"]),
        (1, "'strata tag' requires 2 arguments", &["tag", "one"]),
        (1, "'strata image ls' requires at most 1 argument", &["image", "ls", "one", "two"]),
        (1, "nosuch", &["nosuch"]),
    ] {
        let finished = strata.exits(code, arguments)?;
        let message = finished.stderr.to_lowercase();
        ensure!(message.contains(&word.to_lowercase()), "the message does not say {word:?}:\n{finished}");
    }
    // By unique prefix of the ID, with and without the algorithm.
    let id = strata.ok(["images", "-q", "--no-trunc"])?;
    let id = id.trim().trim_start_matches("sha256:");
    strata.ok(["image", "inspect", &id[..12]])?;
    strata.ok(["tag", &format!("sha256:{id}"), "second:name"])?;
    strata.ok(["rmi", "second:name"])?;
    strata.ok(["rmi", &id[..10]])?;
    ensure!(strata.ok(["images", "-q"])?.is_empty());
    Ok(())
}

fn used_images() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    strata.ok(["run", "--name", "user", busybox::REFERENCE, "true"])?;
    let finished = strata.exits(1, ["rmi", busybox::REFERENCE])?;
    ensure!(finished.stderr.contains("conflict") && finished.stderr.contains("force"), "{finished}");
    let finished = strata.exits(125, ["run", "--name", "user", busybox::REFERENCE, "true"])?;
    ensure!(finished.stderr.contains("already in use"), "{finished}");
    strata.ok(["rm", "user"])?;
    strata.ok(["rmi", busybox::REFERENCE])?;
    Ok(())
}

fn image_without_command() -> Result<()> {
    let strata = Strata::new()?;
    let path = strata.folder().join("layer.tar");
    let mut out = LayerWriter::new(std::fs::File::create(&path)?);
    out.file("only", &Meta::mode(0o644), b"a file")?;
    out.finish()?;
    let image =
        Image { reference: "test/empty:1".to_owned(), layers: vec![Layer::of(&path, "test")?], config: json!({}) };
    let archive = strata.folder().join("empty.tar");
    image.write(Form::DockerNew, &archive)?;
    strata.load(&archive)?;
    let finished = strata.exits(125, ["run", "--rm", "test/empty:1"])?;
    ensure!(finished.stderr.to_lowercase().contains("no command specified"), "{finished}");
    Ok(())
}
