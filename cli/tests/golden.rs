//! What the command prints, word for word: exit code, standard output and standard error together.
//!
//! `UPDATE_GOLDEN=1` writes the files anew; look at the difference before committing it.

#![expect(clippy::unwrap_used, reason = "all of it is tests")]

use std::fs;
use std::path::PathBuf;

use strata_tests::image::archive::Form;
use strata_tests::image::busybox;
use strata_tests::strata::Strata;

/// Compares one command's output with `golden/<name>.txt`.
fn check(strata: &Strata, name: &str, arguments: &[&str]) {
    let finished = strata.run(arguments).unwrap();
    let line = arguments.join(" ");
    let text = format!("$ strata {line}\n{}{}exit {}\n", finished.stdout, finished.stderr, finished.code());
    let text = filter(&text, strata);
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "{name} differs from {path:?}\n--- expected\n{expected}--- found\n{text}");
}

/// Replaces what differs from run to run: identifiers, generated names, ages, times and sizes of this machine's busybox.
fn filter(text: &str, strata: &Strata) -> String {
    let text = text.replace(&strata.folder().to_string_lossy().into_owned(), "FOLDER");
    let mut out = String::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let word = rest.find(|letter: char| !letter.is_ascii_alphanumeric()).unwrap_or(rest.len());
        let (head, tail) = rest.split_at(word.max(rest.chars().next().map_or(1, char::len_utf8)));
        let hexadecimal = head.len() >= 12 && head.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        out.push_str(match (hexadecimal, head.len()) {
            (true, 64) => "<64 digits>",
            (true, 12) => "<12 digits>",
            _ => head,
        });
        rest = tail;
    }
    out
}

fn with_image() -> Strata {
    let strata = Strata::new().unwrap();
    strata.load(&busybox::folder().unwrap().join(Form::DockerNew.file_name())).unwrap();
    strata
}

#[test]
fn unprivileged_help() {
    let strata = Strata::new().unwrap();
    for verb in [
        "run",
        "create",
        "start",
        "stop",
        "restart",
        "kill",
        "pause",
        "unpause",
        "wait",
        "exec",
        "attach",
        "logs",
        "top",
        "stats",
        "system",
        "ps",
        "rename",
        "update",
        "rm",
        "cp",
        "diff",
        "commit",
        "export",
        "images",
        "save",
        "load",
        "pull",
        "push",
        "login",
        "logout",
        "registry",
        "search",
        "manifest",
        "import",
        "tag",
        "rmi",
        "history",
        "inspect",
        "image",
        "container",
        "mount",
        "umount",
        "fsck",
        "events",
        "info",
        "bench",
    ] {
        check(&strata, &format!("help-{verb}"), &[verb, "--help"]);
    }
    check(&strata, "help-system-df", &["system", "df", "--help"]);
    check(&strata, "help-system-prune", &["system", "prune", "--help"]);
    check(&strata, "help-image-prune", &["image", "prune", "--help"]);
    check(&strata, "help", &["--help"]);
    check(&strata, "help-short", &["-h"]);
    check(&strata, "help-bench-lookup", &["bench", "lookup", "--help"]);
    check(&strata, "version", &["--version"]);
}

#[test]
fn unprivileged_mistakes() {
    let strata = Strata::new().unwrap();
    for (name, arguments) in [
        ("no-verb", &[][..]),
        ("unknown-verb", &["nope"]),
        ("unknown-flag", &["ps", "--nope"]),
        ("run-without-image", &["run", "--rm"]),
        ("run-unknown-flag", &["run", "--nope", "image"]),
        ("run-background-attached", &["run", "-d", "-a", "stdout", "image"]),
        ("run-removed-restarted", &["run", "--rm", "--restart", "always", "image"]),
        ("run-bad-restart", &["run", "--restart", "always:3", "image"]),
        ("run-bad-log-driver", &["run", "--log-driver", "nope", "image"]),
        ("run-bad-stop-signal", &["run", "--stop-signal", "NOPE", "image"]),
        ("kill-bad-signal", &["kill", "-s", "NOPE", "x"]),
        ("start-missing", &["start", "nosuch"]),
        ("stop-missing", &["stop", "nosuch"]),
        ("kill-missing", &["kill", "nosuch"]),
        ("exec-missing", &["exec", "nosuch", "true"]),
        ("cp-missing", &["cp", "nosuch:/x", "/tmp"]),
        ("cp-between-containers", &["cp", "one:/x", "other:/y"]),
        ("cp-no-container", &["cp", "/x", "/y"]),
        ("logs-missing", &["logs", "nosuch"]),
        ("attach-missing", &["attach", "nosuch"]),
        ("rename-missing", &["rename", "nosuch", "other"]),
        ("ps-bad-status", &["ps", "--filter", "status=odd"]),
        ("logs-bad-time", &["logs", "--since", "yesterday", "x"]),
        ("attach-bad-keys", &["attach", "--detach-keys", "ctrl-", "x"]),
        ("run-without-terminal", &["run", "-it", "image"]),
        ("run-bridge", &["run", "--network", "bridge", "image"]),
        ("run-named-volume", &["run", "-v", "data:/data", "image"]),
        ("run-little-memory", &["run", "-m", "1m", "image"]),
        ("run-bad-name", &["run", "--name", "a b", "image"]),
        ("host-is-reserved", &["-H", "tcp://127.0.0.1:2375", "ps"]),
        ("bad-template", &["images", "--format", "{{.ID"]),
        ("bad-filter", &["images", "--filter", "colour=red"]),
        ("mount-one-operand", &["mount", "image"]),
        ("mount-upper-alone", &["mount", "--upper", "/x", "image", "/mnt"]),
        ("umount-nothing", &["umount", "/"]),
    ] {
        check(&strata, name, arguments);
    }
}

#[test]
fn unprivileged_image_tables() {
    let strata = with_image();
    strata.ok(["tag", busybox::REFERENCE, "second:2"]).unwrap();
    for (name, arguments) in [
        ("images-quiet", &["images", "-q"][..]),
        ("images-quiet-whole", &["images", "-q", "--no-trunc"]),
        ("images-template", &["images", "--format", "{{.Repository}}|{{.Tag}}|{{.ID}}|{{.Digest}}"]),
        ("images-table-template", &["images", "--format", r"table {{.Tag}}\t{{.Repository}}"]),
        ("images-of-repository", &["images", "--format", "{{.Repository}}", "second"]),
        ("images-by-pattern", &["images", "--format", "{{.Repository}}", "--filter", "reference=*/busybox"]),
        ("images-dangling", &["images", "--filter", "dangling=true"]),
        ("image-inspect-template", &["image", "inspect", "--format", "{{json .Config}}", "second:2"]),
        ("inspect-missing", &["inspect", "nosuch"]),
        ("image-inspect-missing", &["image", "inspect", "nosuch"]),
        ("tag-missing", &["tag", "nosuch", "other"]),
        ("tag-bad-name", &["tag", "second:2", "UPPER:x"]),
        ("rmi-by-id-needs-force", &["rmi", strata.ok(["images", "-q"]).unwrap().lines().next().unwrap()]),
        ("rmi-name", &["rmi", "second:2"]),
        ("system-df-counts", &["system", "df", "--format", "{{.Type}}|{{.TotalCount}}|{{.Active}}"]),
        ("fsck-whole", &["fsck"]),
        ("fsck-bad-time", &["fsck", "--older-than", "soon"]),
        ("system-prune-asks", &["system", "prune", "-a", "--volumes", "--filter", "label=a"]),
        ("image-prune-none", &["image", "prune", "-f"]),
        ("image-prune-bad-filter", &["image", "prune", "-f", "--filter", "color=red"]),
        ("rmi-last", &["rmi", busybox::REFERENCE]),
        ("images-none", &["images"]),
        ("events-until", &["events", "--until", "0s", "--format", "{{.Type}} {{.Action}} {{.Actor.Attributes.name}}"]),
        ("events-since", &["events", "--since", "1h", "--until", "0s", "-f", "event=tag", "--format", "{{.Action}}"]),
        ("events-backwards", &["events", "--since", "2024-01-02", "--until", "2024-01-01"]),
    ] {
        check(&strata, name, arguments);
    }
}

#[test]
fn privileged_container_tables() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let strata = with_image();
    let script = "echo out; echo error >&2; touch /new; rm /etc/motd; exit 3";
    check(&strata, "run", &["run", "--name", "first", busybox::REFERENCE, "sh", "-c", script]);
    let template = "{{.Names}}|{{.Image}}|{{.Command}}|{{.State}}|{{.Networks}}";
    for (name, arguments) in [
        ("ps-running", &["ps"][..]),
        ("ps-all-template", &["ps", "-a", "--format", template]),
        ("ps-quiet", &["ps", "-aq"]),
        ("ps-filter", &["ps", "--filter", "exited=3", "--format", "{{.Names}}"]),
        ("ps-filter-none", &["ps", "-q", "--filter", "name=second"]),
        (
            "inspect-container",
            &["inspect", "--format", "{{.Name}} {{.Path}} {{.State.Status}} {{.State.ExitCode}}", "first"],
        ),
        ("diff", &["diff", "first"]),
        ("run-name-taken", &["run", "--name", "first", busybox::REFERENCE, "true"]),
        ("rmi-used", &["rmi", busybox::REFERENCE]),
        ("run-not-found", &["run", "--rm", busybox::REFERENCE, "nosuch"]),
        ("run-no-such-file", &["run", "--rm", busybox::REFERENCE, "/no/such"]),
        ("run-not-executable", &["run", "--rm", busybox::REFERENCE, "/home/not-executable"]),
        ("run-no-image", &["run", "--rm", "--pull", "never", "no/such:image", "true"]),
        ("run-no-registry", &["run", "--rm", "127.0.0.1:1/no/such:image", "true"]),
        ("pull-no-registry", &["pull", "127.0.0.1:1/no/such"]),
        ("pull-bad-name", &["pull", "No/Such"]),
        ("push-missing", &["push", "127.0.0.1:1/no/such:1"]),
        ("run-no-source", &["run", "--rm", "--mount", "type=bind,src=/no/such,dst=/x", busybox::REFERENCE, "true"]),
        ("commit", &["commit", "-m", "a message", "first", "made:1"]),
        ("mount-missing", &["mount", "--pull", "never", "nosuch", "/mnt"]),
        ("rm", &["rm", "first"]),
        ("rm-missing", &["rm", "first"]),
        ("rm-force-missing", &["rm", "-f", "first"]),
    ] {
        check(&strata, name, arguments);
    }
}
