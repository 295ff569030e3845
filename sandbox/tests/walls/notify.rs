//! Filters that ask: the listener reaches the agent, and the agent's answers reach the process.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, Spec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;
use strata_sandbox::capabilities::CapabilitySet;
use strata_sandbox::seccomp::{Architecture, Profile};
use strata_sandbox::spec_default::{Defaults, spec_default};
use strata_sandbox::{Exec, Identity, Landlock, Launch, Listener, Root, Seccomp, SpawnError, Stdio, exec, spawn};
use strata_sys::seccomp_notify::{self, Answer};

use super::Case;
use crate::support::rootfs;

pub(super) fn cases() -> Vec<Case> {
    vec![
        ("an_agent_answers_for_the_filter", an_agent_answers_for_the_filter, None),
        ("an_agent_that_is_not_there_is_named", an_agent_that_is_not_there_is_named, None),
        ("nobody_to_ask_is_an_error_before_the_start", nobody_to_ask_is_an_error_before_the_start, None),
    ]
}

/// Docker's default, but these calls are asked about.
fn asking(names: &[&str], agent: &Path) -> LinuxSeccomp {
    let mut seccomp = Profile::docker_default_portable().to_oci(CapabilitySet::DOCKER);
    let mut rules = seccomp.syscalls().clone().unwrap();
    for rule in &mut rules {
        rule.set_names(rule.names().iter().filter(|name| !names.contains(&name.as_str())).cloned().collect());
    }
    let mut asked = rules[0].clone();
    asked.set_names(names.iter().map(|name| (*name).to_owned()).collect());
    asked.set_action(LinuxSeccompAction::ScmpActNotify);
    rules.push(asked);
    seccomp.set_syscalls(Some(rules));
    seccomp.set_listener_path(Some(agent.to_owned())).set_listener_metadata(Some("about it".into()));
    seccomp
}

fn spec(script: &str, seccomp: LinuxSeccomp) -> Spec {
    let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let mut spec = spec_default(Defaults { args, ..Defaults::default() }).unwrap();
    let mut linux = spec.linux().clone().unwrap();
    linux.set_seccomp(Some(seccomp));
    spec.set_linux(Some(linux));
    spec
}

/// Accepts `containers` listeners, one after the other, and answers each until its processes are gone. Returns what it
/// was told, and how many calls it answered.
fn agent(path: &Path, containers: usize) -> JoinHandle<(Vec<Value>, usize)> {
    let socket = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let mut told = Vec::new();
        let answering: Vec<_> = (0..containers)
            .map(|_| {
                let (state, listener) = accept(&socket);
                told.push(state);
                std::thread::spawn(move || answer_all(&listener))
            })
            .collect();
        let answered = answering.into_iter().map(|thread| thread.join().unwrap()).sum();
        (told, answered)
    })
}

fn accept(socket: &UnixListener) -> (Value, OwnedFd) {
    let (stream, _) = socket.accept().unwrap();
    let mut bytes = vec![0; 65536];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let length =
        recvmsg(&stream, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
    let mut fds = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let listener = fds.next().unwrap();
    assert!(fds.next().is_none());
    (serde_json::from_slice(&bytes[..length]).unwrap(), listener)
}

/// `chmod` of the container fails in a way no kernel would, `getpriority` has an odd result, everything else goes on.
fn answer_all(listener: &OwnedFd) -> usize {
    let native = Architecture::native().unwrap();
    let is = |number: i32, name: &str| native.number(name).map(i64::from) == Some(number.into());
    let mut answered = 0;
    loop {
        let mut fds = [rustix::event::PollFd::new(listener, rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result.unwrap(),
        };
        if !fds[0].revents().contains(rustix::event::PollFlags::IN) {
            return answered;
        }
        let Ok(call) = seccomp_notify::receive(listener.as_fd()) else { continue };
        assert!(seccomp_notify::is_waiting(listener.as_fd(), call.id));
        let answer = match call.number {
            number if is(number, "chmod") || is(number, "fchmodat") => Answer::Errno(libc::EDQUOT),
            number if is(number, "umask") => Answer::Value(0o123),
            _ => Answer::Continue,
        };
        let _ = seccomp_notify::answer(listener.as_fd(), call.id, answer);
        answered += 1;
    }
}

fn an_agent_answers_for_the_filter() {
    let root = rootfs();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent");
    let agent = agent(&path, 2);
    // The exec is asked about too, so that the start cannot end before the agent is there.
    let asked = ["chmod", "fchmodat", "umask", "mkdir", "mkdirat", "execve"];
    let script = "chmod 700 /tmp 2>&1; umask; mkdir -p /tmp/made && ls -d /tmp/made; read line";
    let spec = spec(script, asking(&asked, &path));
    let (stdio, pipes) = Stdio::pipes().unwrap();
    let identity = Identity { id: "asked", bundle: Path::new("/srv/bundle") };
    let running = spawn(Launch { stdio, identity, ..Launch::new(&spec, Root::Path(root.path().to_owned())) }).unwrap();

    let (exec_stdio, exec_pipes) = Stdio::pipes().unwrap();
    let second = exec(Exec {
        spec: &spec,
        init: &running,
        user: None,
        groups: &[],
        stdio: exec_stdio,
        seccomp: Seccomp::FromSpec,
        landlock: Landlock::Auto,
        listener: Listener::Agent,
        identity,
        inherited: strata_sandbox::Inherited::default(),
        cgroup: None,
    })
    .unwrap();
    let (init, joined) = (running.pid(), second.pid());
    // The second ends with the first, so it goes before.
    drop(exec_pipes.stdin);
    assert_eq!(second.wait().unwrap().code(), 1);
    drop(pipes.stdin);
    assert_eq!(running.wait().unwrap().code(), 1);
    let text = std::io::read_to_string(std::fs::File::from(pipes.stdout)).unwrap();
    assert!(text.contains("/tmp: Disk quota exceeded") && text.contains("0123\n/tmp/made\n"), "{text}");

    let (told, answered) = agent.join().unwrap();
    assert!(answered >= 8, "{answered}");
    for (state, pid, status) in [(&told[0], init, "creating"), (&told[1], joined, "running")] {
        assert_eq!(state["pid"], pid);
        assert_eq!(state["fds"], serde_json::json!(["seccompFd"]));
        assert_eq!(state["metadata"], "about it");
        assert_eq!(state["state"]["status"], status);
        assert_eq!(state["state"]["pid"], init);
        assert_eq!(state["state"]["id"], "asked");
        assert_eq!(state["state"]["bundle"], "/srv/bundle");
    }
}

fn an_agent_that_is_not_there_is_named() {
    let root = rootfs();
    let spec = spec("true", asking(&["mkdir"], Path::new("/no/such/agent")));
    let error = spawn(Launch::new(&spec, Root::Path(root.path().to_owned()))).unwrap_err();
    assert!(
        matches!(&error, SpawnError::SeccompAgent { path, .. } if path == Path::new("/no/such/agent")),
        "{error:?}"
    );
}

fn nobody_to_ask_is_an_error_before_the_start() {
    let root = rootfs();
    let start = |seccomp| spawn(Launch::new(&spec("true", seccomp), Root::Path(root.path().to_owned()))).unwrap_err();
    let mut seccomp = asking(&["mkdir"], Path::new("/agent"));
    seccomp.set_listener_path(None);
    assert!(start(seccomp).to_string().contains("listenerPath"));
    // It could not be handed out.
    let error = start(asking(&["sendmsg"], Path::new("/agent")));
    assert!(format!("{:#}", std::error::Error::source(&error).unwrap()).contains("sendmsg"), "{error:?}");
}
