//! Landlock: policies about files and ports, and what is out of reach of a hardened process.

use std::path::Path;

use strata_sandbox::Landlock;
use strata_sandbox::policy::Policy;
use strata_sandbox::seccomp::Profile;
use strata_sandbox::spec_default::Namespace;

use super::Case;
use crate::support::{Container, rootfs};

pub(super) fn cases() -> Vec<Case> {
    let abi = strata_sys::landlock::abi().unwrap_or(0);
    let needs = |wanted| (abi < wanted).then(|| format!("needs landlock ABI {wanted}"));
    let no_python = (!Path::new("/usr/bin/python3").exists()).then(|| "needs Python".to_owned());
    vec![
        ("a_policy_about_files_holds", a_policy_about_files_holds, needs(3)),
        ("a_policy_about_ports_holds", a_policy_about_ports_holds, needs(4).or_else(|| no_python.clone())),
        ("a_policy_about_calls_holds", a_policy_about_calls_holds, None),
        (
            "a_hardened_process_reaches_no_abstract_socket_of_the_host",
            a_hardened_process_reaches_no_abstract_socket_of_the_host,
            needs(6).or(no_python),
        ),
    ]
}

fn policy(text: &str) -> Landlock {
    Landlock::Policy(Policy::parse(text).unwrap())
}

fn a_policy_about_files_holds() {
    let root = rootfs();
    std::fs::write(root.path().join("etc/secret"), "secret").unwrap();
    std::fs::write(root.path().join("home/web/page"), "page").unwrap();
    let script = "cat /home/web/page; echo; echo x > /tmp/file && mv /tmp/file /tmp/other && cat /tmp/other; \
        cat /etc/secret 2>&1; echo x 2>&1 > /home/web/new; ls /root 2>&1; echo x > /dev/null && cat /proc/self/comm; \
        cp /bin/busybox /tmp/sh && /tmp/sh true 2>&1; mkdir /elsewhere 2>&1; true";
    let container = Container {
        landlock: policy("[files]\nexecute = [\"/bin\"]\nread = [\"/home\", \"/no/such\"]\nwrite = [\"/tmp\"]\n"),
        ..Container::shell(root.path(), script)
    };
    let output = container.run().unwrap();
    let text = output.stdout;
    for expected in
        ["page\nx\n", "cat: can't open '/etc/secret': Permission denied", "'/root': Permission denied", "cat\n"]
    {
        assert!(text.contains(expected), "{expected:?} in {text}");
    }
    assert!(text.contains("/tmp/sh: Permission denied") && text.contains("'/elsewhere': Permission denied"), "{text}");
    assert!(!root.path().join("home/web/new").exists() && !root.path().join("elsewhere").exists());
}

const PORTS: &str = r#"
import errno, socket
def attempt(what):
    try:
        what()
        return "OK"
    except OSError as error:
        return errno.errorcode[error.errno]
def bind(port):
    s = socket.socket(); s.bind(("127.0.0.1", port)); s.listen(); held.append(s)
def connect(port):
    socket.socket().connect(("127.0.0.1", port))
held = []
print(attempt(lambda: bind(8080)), attempt(lambda: bind(8081)), attempt(lambda: connect(8080)), attempt(lambda: connect(8082)))
"#;

fn a_policy_about_ports_holds() {
    let run = |landlock| {
        let mut container = Container::new(Path::new("/"), &["/usr/bin/python3", "-I", "-c", PORTS]);
        container.defaults.read_only_root = true;
        Container { landlock, ..container }.text()
    };
    assert_eq!(run(Landlock::Auto), "OK OK OK ECONNREFUSED");
    assert_eq!(run(policy("[network]\nbind = [8080]\nconnect = [8082]")), "OK EACCES EACCES ECONNREFUSED");
    assert_eq!(run(policy("[network]")), "EACCES EACCES EACCES EACCES");
}

fn a_policy_about_calls_holds() {
    let root = rootfs();
    let run = |text| {
        let restricted = Policy::parse(text).unwrap().restrict(Profile::docker_default());
        let mut container = Container::shell(root.path(), "mkdir /tmp/x 2>&1; rm -rf /tmp/x; echo end");
        container.defaults.no_new_privileges = true;
        container.seccomp = strata_sandbox::Seccomp::Profile(restricted);
        container.text()
    };
    assert_eq!(run("[syscalls]\ndeny = [\"ptrace\"]"), "end");
    assert_eq!(
        run("[syscalls]\ndeny = [\"mkdir\", \"mkdirat\"]"),
        "mkdir: can't create directory '/tmp/x': Operation not permitted\nend"
    );
}

fn a_hardened_process_reaches_no_abstract_socket_of_the_host() {
    // As the socket of a runtime's helper once was for containers in the host's network (CVE-2020-15257).
    use std::os::linux::net::SocketAddrExt;
    let name = format!("strata-test-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let _listening = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let script = format!(
        "import socket\ntry:\n  socket.socket(socket.AF_UNIX).connect('\\0{name}'); print('reached')\n\
         except PermissionError: print('denied')"
    );
    let run = |landlock, network| {
        let mut container = Container::new(Path::new("/"), &["/usr/bin/python3", "-I", "-c", &script]);
        container.defaults.read_only_root = true;
        container.defaults.network = network;
        Container { landlock, ..container }.text()
    };
    // As in Docker.
    assert_eq!(run(Landlock::Auto, Namespace::Callers), "reached");
    assert_eq!(run(Landlock::Hardened, Namespace::Callers), "denied");
}
