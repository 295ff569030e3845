//! Modes and policies of `run`, as a user meets them.

use anyhow::{Result, ensure};
use strata_tests::image::busybox::REFERENCE;
use strata_tests::plain_user;
use strata_tests::strata::{Strata, User};
use strata_tests::tier::{Need, Suite};

pub(crate) fn register(suite: &mut Suite) {
    let needs = &[Need::Fuse, Need::Busybox];
    suite.add("walls::privileged_hardened", needs, || hardened(User::Caller));
    suite.add("walls::rootless_hardened", needs, || hardened(User::Plain));
    suite.add("walls::privileged_policy", needs, policy);
    suite.add("walls::privileged_audit", needs, || audit(User::Caller));
    suite.add("walls::rootless_audit", needs, || audit(User::Plain));
    suite.add("walls::privileged_our_program_is_read_only_for_containers", needs, || {
        our_program_is_read_only(User::Caller)
    });
    suite.add("walls::rootless_our_program_is_read_only_for_containers", needs, || {
        our_program_is_read_only(User::Plain)
    });
    suite.add("walls::privileged_exec_sees_the_first_process", needs, exec_sees_the_first_process);
}

/// An ordinary image works, with less around it.
fn hardened(user: User) -> Result<()> {
    let strata = Strata::with_busybox(user)?;
    let script = "id -u; grep -E 'NoNewPrivs|Seccomp:' /proc/self/status; ls -d /proc/sys /proc/meminfo 2>/dev/null; \
                  echo x > /file && cat /file && mkdir -p /a/b && mv /a/b /c && chown 33 /file && stat -c %u /file";
    let text = strata.ok(["run", "--rm", "--security-opt", "hardened", REFERENCE, "sh", "-c", script])?;
    ensure!(text == "0\nNoNewPrivs:\t1\nSeccomp:\t2\nx\n33\n", "{text}");
    strata.ok(["run", "-d", "--name", "hard", "--security-opt", "hardened", REFERENCE, "sleep", "1000"])?;
    let added =
        strata.ok(["exec", "hard", "sh", "-c", "grep NoNewPrivs /proc/self/status; kill -0 1 && echo reached"])?;
    ensure!(added == "NoNewPrivs:\t1\nreached\n", "{added}");
    let options = strata.ok(["inspect", "--format", "{{json .HostConfig.SecurityOpt}}", "hard"])?;
    ensure!(options.trim() == "[\"hardened\"]", "{options}");
    strata.ok(["rm", "-f", "hard"])?;
    Ok(())
}

fn policy() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    let file = strata.folder().join("policy.toml");
    let write = |text: &str| std::fs::write(&file, text);
    let path = file.to_string_lossy().into_owned();
    write(
        "[files]\nexecute = [\"/bin\", \"/lib\", \"/lib64\", \"/usr\"]\nwrite = [\"/tmp\"]\n[syscalls]\ndeny = [\"symlink\", \"symlinkat\"]\n",
    )?;
    let script = "echo x > /tmp/f; cat /tmp/f; cat /etc/passwd 2>&1; ln -s a /tmp/l 2>&1; true";
    let text = strata.ok(["run", "--rm", "--policy", &path, REFERENCE, "sh", "-c", script])?;
    ensure!(text.starts_with("x\n") && text.contains("Permission denied") && text.contains("not permitted"), "{text}");
    write("[files]\nread = [\"etc\"]\n")?;
    let refused = strata.exits(125, ["run", "--rm", "--policy", &path, REFERENCE, "true"])?;
    ensure!(refused.stderr.contains("line 2, files.read: \"etc\" is no absolute path"), "{refused}");
    Ok(())
}

/// An audit changes nothing, and the policy that it ends with allows just what was done.
fn audit(user: User) -> Result<()> {
    let strata = Strata::with_busybox(user)?;
    let file = strata.folder().join("policy.toml");
    let path = file.to_string_lossy().into_owned();
    std::fs::write(
        &file,
        "[files]\nexecute = [\"/lib\"]\n[network]\nconnect = [80]\n[syscalls]\ndeny = [\"symlink\", \"symlinkat\", \"ptrace\"]\n",
    )?;
    let script = "cat /etc/passwd | wc -l; mkdir /made && echo x > /made/file && cat /made/file; ln -s a /link; \
                  nc 127.0.0.1 81 < /dev/null 2> /dev/null; nc 127.0.0.1 80 < /dev/null 2> /dev/null; exit 7";
    let run = |options: &[&str]| {
        strata.exits(7, [&["run", "--rm", "--policy", &path], options, &[REFERENCE, "sh", "-c", script]].concat())
    };
    let observed = run(&["--audit"])?;
    ensure!(observed.stdout.ends_with("\nx\n"), "{observed}");
    for line in [
        "audit: the policy would have refused",
        "  read \"/etc/passwd\"",
        "  make or remove names in \"/\"",
        "  make or remove names in \"/made\"",
        "  read \"/made/file\"",
        "  execute \"/bin/",
        "  connect to TCP port 81",
        "  call symlink",
    ] {
        ensure!(observed.stderr.contains(line), "{line}: {observed}");
    }
    ensure!(!observed.stderr.contains("port 80") && !observed.stderr.contains("ptrace\n"), "{observed}");
    let (_, pasted) = observed.stderr.split_once("would have refused none of these\n").unwrap_or_default();
    std::fs::write(&file, pasted)?;
    let enforced = run(&[])?;
    ensure!(enforced.stdout == observed.stdout && enforced.stderr.is_empty(), "{pasted}{enforced}");
    let nothing = run(&["--audit"])?;
    ensure!(nothing.stderr == "audit: the policy would have refused nothing\n", "{nothing}");

    // Also of what is added. A terminal is the user's again when the findings come.
    std::fs::write(&file, "[files]\n")?;
    strata.ok(["create", "--name", "watched", "--policy", &path, "--audit", REFERENCE, "sleep", "1000"])?;
    strata.ok(["start", "watched"])?;
    strata.ok(["exec", "watched", "cat", "/etc/passwd"])?;
    strata.ok(["kill", "watched"])?;
    strata.ok(["wait", "watched"])?;
    // Nobody was there to be told.
    let kept = strata.run(["logs", "watched"])?;
    ensure!(kept.stderr.contains("  read \"/etc/passwd\""), "{kept}");
    strata.ok(["rm", "watched"])?;
    for refused in [&["-d", "--policy", &path, "--audit"][..], &["--audit"]] {
        strata.exits(125, [&["run"], refused, &[REFERENCE, "true"]].concat())?;
    }
    Ok(())
}

/// An image that names `/proc/self/exe` as an interpreter runs our file (CVE-2019-5736): from where nobody can write to it.
fn our_program_is_read_only(user: User) -> Result<()> {
    let strata = Strata::with_busybox(user)?;
    let program = match user {
        User::Caller => strata_tests::strata::program().unwrap_or_default(),
        User::Plain => {
            // As one that is installed below a home directory: his own, and so of root of his containers.
            let own = strata.folder().join("strata");
            plain_user::own(&own)?;
            own
        }
    };
    let wait = "printf '#!/proc/self/exe\n' > /entry; chmod 755 /entry; while :; do for p in /proc/[0-9]*; do \
                case $(readlink $p/exe) in */busybox) ;; ?*) exec 9< $p/exe && sleep 1 && (echo evil >> /proc/self/fd/9) 2>> /said; \
                echo tried >> /tried;; esac; done; done";
    strata.ok(["run", "-d", "--name", "bad", "--privileged", REFERENCE, "sh", "-c", wait])?;
    let pid = strata.ok(["inspect", "--format", "{{.State.Pid}}", "bad"])?;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))?;
    let monitor = stat.rsplit(' ').nth(48).unwrap_or_default();
    let place = rustix::fs::statvfs(format!("/proc/{monitor}/exe"))?;
    let flags = place.f_flag;
    ensure!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY), "the monitor {monitor}: {flags:?}");
    let before = std::fs::read(&program)?;
    for _ in 0..20 {
        // Ends at once, with an error of ours or the kernel's.
        let _ = strata.run(["exec", "bad", "/entry"])?;
    }
    ensure!(before == std::fs::read(&program)?, "our file has changed");
    strata.ok(["rm", "-f", "bad"])?;
    Ok(())
}

/// As with Docker: somebody who was added to look at a program can.
fn exec_sees_the_first_process() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    strata.ok(["run", "-d", "--name", "seen", REFERENCE, "sleep", "1000"])?;
    let look = "readlink /proc/1/exe && ls /proc/1/fd | wc -l && tr '\\0' '\\n' < /proc/1/environ | grep -c PATH";
    let text = strata.ok(["exec", "seen", "sh", "-c", look])?;
    ensure!(text.lines().count() == 3, "{text}");
    strata.ok(["rm", "-f", "seen"])?;
    Ok(())
}
