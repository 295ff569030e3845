//! A hardened container: what it has not, beside an ordinary one.

use strata_sandbox::capabilities::CapabilitySet;
use strata_sandbox::seccomp::Profile;
use strata_sandbox::spec_default::UserNamespace;
use strata_sandbox::userns::IdMaps;
use strata_sandbox::{Landlock, Seccomp};

use super::Case;
use crate::support::{Container, rootfs};

pub(super) fn cases() -> Vec<Case> {
    vec![("a_hardened_container_has_less", a_hardened_container_has_less, None)]
}

fn a_hardened_container_has_less() {
    let root = rootfs();
    let script = "id -u; cat /proc/self/uid_map | awk '{print $2}'; grep -E 'CapBnd|NoNewPrivs' /proc/self/status | cut -f 2; \
        ls /proc | grep -v -E '^[0-9]+$' | tr '\\n' ' '; cat /proc/sys/net/ipv4/ip_forward 2>/dev/null; \
        (: >> /sys/kernel/mm/ksm/run) 2>/dev/null && echo writable; ping -c 1 -W 1 127.0.0.1 2>&1 | grep -c -i permi; \
        touch /tmp/mine && stat -c %u /tmp/mine; mount -t tmpfs x /tmp 2>/dev/null && echo mounted; kill -0 1 && echo reached";
    let mut container = Container::shell(root.path(), script);
    container.defaults.capabilities = CapabilitySet::HARDENED;
    container.defaults.no_new_privileges = true;
    container.defaults.private_proc = true;
    // Written through a procfs that shows it, which the container's does not.
    container.defaults.sysctls = [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into();
    container.defaults.user_namespace = UserNamespace::Own(IdMaps::block(300_000, 65_536));
    container.seccomp = Seccomp::Profile(Profile::hardened());
    container.landlock = Landlock::Hardened;
    // The folder's owner is mapped; its content is the caller's.
    assert_eq!(
        container.text(),
        "0\n300000\n00000000000005fb\n1\nself thread-self 1\n0\nreached"
            .replace("00000000000005fb", &format!("{:016x}", CapabilitySet::HARDENED.bits()))
    );
}
