//! Says where figures were taken.

use std::fs;
use std::process::Command;

/// A few lines: date, kernel, processor, memory, file system, load, versions.
pub fn describe(work: &std::path::Path) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<12} {}\n", value.trim()));
    line("date", output("date", &["-u", "+%Y-%m-%d %H:%M UTC"]));
    line("system", field("/etc/os-release", "PRETTY_NAME=").replace('"', ""));
    line("kernel", output("uname", &["-rm"]));
    line("processor", format!("{} x {}", output("nproc", &[]), field("/proc/cpuinfo", "model name").replace(": ", "")));
    line("memory", field("/proc/meminfo", "MemTotal:"));
    line("file system", output("stat", &["-f", "-c", "%T", &work.to_string_lossy()]));
    line("load", fs::read_to_string("/proc/loadavg").unwrap_or_default());
    line(
        "io_uring",
        format!("fuse {}", fs::read_to_string("/sys/module/fuse/parameters/enable_uring").unwrap_or_default()),
    );
    for (program, arguments) in [
        ("fuse-overlayfs", ["--version"]),
        ("crun", ["--version"]),
        ("runc", ["--version"]),
        ("podman", ["--version"]),
        ("dockerd", ["--version"]),
        ("containerd", ["--version"]),
        ("skopeo", ["--version"]),
        ("umoci", ["--version"]),
    ] {
        let version = output(program, &arguments);
        let shown = version.lines().find(|line| line.starts_with(program) || line.contains("Docker"));
        line(program, shown.unwrap_or("not installed").to_owned());
    }
    text
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

fn field(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
}
