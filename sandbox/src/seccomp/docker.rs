//! Docker's default profile: what an ordinary container may call.
//!
//! Everything else fails with `EPERM`. The names are grouped by what decides about them.

use std::sync::OnceLock;

use super::{Action, Architecture, Comparison, Condition, Profile, Rule};
use crate::capabilities::CapabilitySet;

impl Profile {
    /// Returns Docker's default profile. Which rules count depends on the capabilities it is compiled for.
    #[must_use]
    pub fn docker_default() -> &'static Self {
        static PROFILE: OnceLock<Profile> = OnceLock::new();
        PROFILE.get_or_init(|| build(&[family_denied(AF_ALG), family_denied(AF_VSOCK), allow("socket")]))
    }

    /// Returns a profile that allows every call, of this machine and of those whose programs it runs.
    #[must_use]
    pub fn everything() -> Self {
        Self { default_action: Action::Allow, rules: Vec::new(), ..build(&[]) }
    }

    /// Returns the profile of a hardened container: the default, for programs of this machine's own architecture alone, and
    /// without raw packets (`AF_PACKET`, `AF_KEY`, `AF_XDP`). `socketcall` of 32-bit programs could not be kept from them.
    #[must_use]
    pub fn hardened() -> Self {
        const FAMILIES: [u64; 5] = [AF_ALG, AF_VSOCK, AF_PACKET, AF_KEY, AF_XDP];
        let sockets: Vec<Rule> = FAMILIES.into_iter().map(family_denied).chain([allow("socket")]).collect();
        Self { architectures: Architecture::native().into_iter().collect(), ..build(&sockets) }
    }

    /// Returns the default profile in rules that any OCI runtime takes, for a bundle.
    ///
    /// The spec knows no order between rules, so that the address family is compared as a whole, as in Docker: a
    /// process can get past that with bits that the kernel ignores.
    #[must_use]
    pub fn docker_default_portable() -> Self {
        let family = |comparison, value| Rule {
            conditions: vec![Condition { argument: 0, comparison, value }],
            ..allow("socket")
        };
        build(&[family(Comparison::Less, AF_ALG), family(Comparison::Equal, 39), family(Comparison::Greater, AF_VSOCK)])
    }
}

/// AF_ALG reaches kernel code with a history of page cache overwrites, AF_VSOCK the hypervisor. The kernel looks at the
/// low 32 bits of the family only, and so does this.
fn family_denied(family: u64) -> Rule {
    let low = Condition { argument: 0, comparison: Comparison::MaskedEqual(0xffff_ffff), value: family };
    Rule { conditions: vec![low], ..Rule::new(["socket"], Action::Errno(EPERM)) }
}

fn build(sockets: &[Rule]) -> Profile {
    let mut rules = vec![allow(ALWAYS)];
    // Before 4.8 a tracer could get around the filter.
    rules.push(Rule { minimum_kernel: Some((4, 8)), ..allow("process_vm_readv process_vm_writev ptrace") });
    rules.extend_from_slice(sockets);
    // Linux, Linux on 32 bits, each with UNAME26, and the question which it is.
    for persona in [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        let condition = Condition { argument: 0, comparison: Comparison::Equal, value: persona };
        rules.push(Rule { conditions: vec![condition], ..allow("personality") });
    }

    let on =
        |architectures: &[Architecture], names| Rule { with_architectures: architectures.to_vec(), ..allow(names) };
    rules.push(on(&[Architecture::Ppc64le], "sync_file_range2 swapcontext"));
    rules.push(on(
        &[Architecture::Arm, Architecture::Aarch64],
        "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    ));
    rules.push(on(&[Architecture::X86_64, Architecture::X32], "arch_prctl"));
    rules.push(on(&[Architecture::X86_64, Architecture::X32, Architecture::X86], "modify_ldt"));
    rules.push(on(&[Architecture::S390x], "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"));
    rules.push(on(&[Architecture::Riscv64], "riscv_flush_icache"));

    for (capability, names) in BY_CAPABILITY {
        rules.push(Rule { with_capabilities: set(capability), ..allow(names) });
    }

    // Without CAP_SYS_ADMIN no new namespaces. clone3 has its flags in memory, out of a filter's sight: it is said
    // not to exist, and libc falls back to clone.
    let no_namespaces = |argument| Condition { argument, comparison: Comparison::MaskedEqual(NAMESPACES), value: 0 };
    rules.push(Rule {
        conditions: vec![no_namespaces(0)],
        without_capabilities: set("SYS_ADMIN"),
        without_architectures: vec![Architecture::S390x],
        ..allow("clone")
    });
    rules.push(Rule {
        conditions: vec![no_namespaces(1)],
        without_capabilities: set("SYS_ADMIN"),
        with_architectures: vec![Architecture::S390x],
        ..allow("clone")
    });
    rules.push(Rule { without_capabilities: set("SYS_ADMIN"), ..Rule::new(["clone3"], Action::Errno(ENOSYS)) });

    let native = Architecture::native();
    let architectures =
        native.into_iter().chain(native.into_iter().flat_map(|native| native.companions().iter().copied()));
    Profile { default_action: Action::Errno(EPERM), architectures: architectures.collect(), rules, flags: 0 }
}

fn allow(names: &'static str) -> Rule {
    Rule::new(names.split_whitespace(), Action::Allow)
}

fn set(capability: &str) -> CapabilitySet {
    CapabilitySet::parse(capability).unwrap_or_default()
}

const EPERM: u16 = 1;
const ENOSYS: u16 = 38;
const AF_KEY: u64 = 15;
const AF_PACKET: u64 = 17;
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
const AF_XDP: u64 = 44;
/// `CLONE_NEWNS`, `NEWCGROUP`, `NEWUTS`, `NEWIPC`, `NEWUSER`, `NEWPID`, `NEWNET`.
const NAMESPACES: u64 = 0x7e02_0000;

/// Calls that only do harm with a capability, and that capability.
const BY_CAPABILITY: [(&str, &str); 14] = [
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules \
         lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname \
         sethostname setns syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    ("SYS_RAWIO", "ioperm iopl"),
    ("SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
    ("PERFMON", "perf_event_open"),
];

/// Calls that every container may make.
const ALWAYS: &str = "
    accept accept4 access adjtimex alarm
    bind brk
    cachestat capget capset chdir chmod chown chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64
    clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat
    dup dup2 dup3
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
    eventfd2 execve execveat exit exit_group
    faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32
    fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64
    fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake
    futimesat
    get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32
    getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
    getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid
    getuid32 getxattr getxattrat
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents
    io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc
    kill
    landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen
    listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64
    madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2
    mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
    mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap
    name_to_handle_at nanosleep newfstatat _newselect
    open openat openat2
    pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl
    pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2
    read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr
    removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler
    sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg
    sendto set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32
    setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32
    setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget
    shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs
    statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo
    tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
    timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill
    truncate truncate64
    ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes
    vfork vmsplice
    wait4 waitid waitpid write writev
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_exists_somewhere() {
        for name in Profile::docker_default().rules.iter().flat_map(|rule| &rule.names) {
            let known = Architecture::ALL.iter().any(|architecture| architecture.number(name).is_some());
            assert!(known, "{name}");
        }
    }

    #[test]
    fn dangerous_calls_need_their_capability() {
        let always: Vec<_> = Profile::docker_default().rules[0].names.iter().map(AsRef::as_ref).collect();
        for name in
            ["mount", "unshare", "setns", "bpf", "keyctl", "add_key", "io_uring_setup", "userfaultfd", "kexec_load"]
        {
            assert!(!always.contains(&name), "{name}");
        }
    }
}
