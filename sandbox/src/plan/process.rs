//! The part of the plan that is about the process: ids, capabilities, limits, program.

use std::ffi::CString;
use std::ops::Range;
use std::os::fd::{BorrowedFd, RawFd};

use oci_spec::runtime::{LinuxPersonalityDomain, PosixRlimitType, Spec};
use rustix::process::{Gid, Resource, Rlimit, Uid};
use strata_sys::process::CStringList;

use super::labels::Labels;
use super::tuning::Tuning;
use super::{TargetPlan, target};
use crate::capabilities::CapabilitySet;
use crate::user::ContainerUser;
use crate::{Inherited, SpawnError, user};

/// The process from its working directory to `execve`.
#[derive(Debug)]
pub(crate) struct ProcessPlan {
    pub(crate) cwd: TargetPlan,
    pub(crate) umask: u32,
    pub(crate) rlimits: Vec<(Resource, Rlimit)>,
    pub(crate) personality: Option<u32>,
    pub(crate) tuning: Tuning,
    pub(crate) labels: Labels,
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    /// `None` where the user namespace forbids `setgroups`.
    pub(crate) groups: Option<Vec<Gid>>,
    wants_groups: bool,
    pub(crate) capabilities: CapabilityPlan,
    pub(crate) no_new_privileges: bool,
    pub(crate) oom_score: Option<i32>,
    /// The name of the session keyring to make; without one the caller's is kept.
    pub(crate) session_keyring: Option<CString>,
    /// Descriptors that go along into the program.
    pub(crate) preserved: Range<RawFd>,
    pub(crate) program: ProgramPlan,
}

/// What is executed.
#[derive(Debug)]
pub(crate) struct ProgramPlan {
    /// The paths to try, in order; the first that exists and can be executed wins.
    pub(crate) candidates: Vec<CString>,
    /// Whether the candidates came from `PATH`.
    pub(crate) searched: bool,
    pub(crate) arguments: CStringList,
    pub(crate) environment: CStringList,
}

/// The five sets.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CapabilityPlan {
    pub(crate) bounding: CapabilitySet,
    pub(crate) effective: CapabilitySet,
    pub(crate) permitted: CapabilitySet,
    pub(crate) inheritable: CapabilitySet,
    pub(crate) ambient: CapabilitySet,
}

impl ProcessPlan {
    /// Plans the process of `spec`; `root` is where the account files are.
    pub(crate) fn new(
        spec: &Spec,
        root: BorrowedFd<'_>,
        wanted_user: Option<&str>,
        extra_groups: &[String],
        may_set_groups: bool,
    ) -> Result<Self, SpawnError> {
        let process = spec.process().as_ref().ok_or_else(|| SpawnError::Invalid("process is missing".into()))?;
        let user = resolve_user(process.user(), root, wanted_user, extra_groups)?;
        if !process.cwd().is_absolute() {
            return Err(SpawnError::Invalid(format!("cwd {:?} is not an absolute path", process.cwd())));
        }
        let mut environment = process.env().clone().unwrap_or_default();
        if !environment.iter().any(|entry| entry.starts_with("HOME=")) {
            environment.push(format!("HOME={}", user.home));
        }
        let arguments = process.args().clone().unwrap_or_default();
        let Some(name) = arguments.first().filter(|name| !name.is_empty()) else {
            return Err(SpawnError::Invalid("no command specified".into()));
        };
        let (candidates, searched) = candidates(name, &environment)?;
        let sets = process.capabilities().as_ref();
        let set = |of: fn(&oci_spec::runtime::LinuxCapabilities) -> &Option<oci_spec::runtime::Capabilities>| {
            CapabilitySet::from_oci(sets.and_then(|sets| of(sets).as_ref()))
        };
        let capabilities = CapabilityPlan {
            bounding: set(|sets| sets.bounding()),
            effective: set(|sets| sets.effective()),
            permitted: set(|sets| sets.permitted()),
            inheritable: set(|sets| sets.inheritable()),
            ambient: set(|sets| sets.ambient()),
        };
        Ok(Self {
            cwd: target(process.cwd(), false)?,
            umask: process.user().umask().unwrap_or(0o022),
            rlimits: rlimits(process.rlimits().as_deref().unwrap_or_default())?,
            personality: personality(spec)?,
            tuning: Tuning::new(spec)?,
            labels: Labels::new(spec)?,
            uid: Uid::from_raw(user.uid),
            gid: Gid::from_raw(user.gid),
            wants_groups: !user.groups.is_empty(),
            groups: may_set_groups.then(|| user.groups.iter().copied().map(Gid::from_raw).collect()),
            capabilities,
            no_new_privileges: process.no_new_privileges() == Some(true),
            oom_score: process.oom_score_adj(),
            session_keyring: Some(CString::new("_ses.strata").expect("no NUL")),
            preserved: 3..3,
            program: ProgramPlan {
                candidates,
                searched,
                arguments: strings(&arguments, "argument")?,
                environment: strings(&environment, "environment")?,
            },
        })
    }

    /// Takes what the caller says about keys and descriptors, which the spec has no words for.
    pub(crate) fn inherit(&mut self, inherited: Inherited) {
        if inherited.keyring {
            self.session_keyring = None;
        }
        self.preserved = 3..RawFd::try_from(inherited.descriptors).map_or(RawFd::MAX, |count| count.saturating_add(3));
    }
}

fn resolve_user(
    spec: &oci_spec::runtime::User,
    root: BorrowedFd<'_>,
    wanted: Option<&str>,
    extra_groups: &[String],
) -> Result<ContainerUser, SpawnError> {
    if let Some(wanted) = wanted {
        return Ok(user::look_up(root, wanted, extra_groups)?);
    }
    // The ids are given; the account files are asked for the home alone.
    let known = user::look_up(root, &spec.uid().to_string(), extra_groups);
    let home = known.as_ref().map_or_else(|_| "/".to_owned(), |known| known.home.clone());
    let mut groups = spec.additional_gids().clone().unwrap_or_default();
    if !extra_groups.is_empty() {
        groups.extend(known?.groups);
    }
    for id in [spec.uid(), spec.gid()].into_iter().chain(groups.iter().copied()) {
        if id > i32::MAX.unsigned_abs() {
            return Err(user::UserError::OutOfRange(id.to_string()).into());
        }
    }
    Ok(ContainerUser { uid: spec.uid(), gid: spec.gid(), groups, home })
}

/// As Go's `exec.LookPath`, which Docker uses: a name with a slash is a path, anything else is looked for.
fn candidates(name: &str, environment: &[String]) -> Result<(Vec<CString>, bool), SpawnError> {
    let text = |text: String| CString::new(text).map_err(|_| SpawnError::Invalid("NUL in the command".into()));
    if name.contains('/') {
        return Ok((vec![text(name.to_owned())?], false));
    }
    let path = environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let folders = path.split(':').filter(|folder| folder.starts_with('/'));
    let candidates = folders.map(|folder| text(format!("{folder}/{name}"))).collect::<Result<_, _>>()?;
    Ok((candidates, true))
}

pub(super) fn strings(list: &[String], what: &str) -> Result<CStringList, SpawnError> {
    let strings = list.iter().map(|entry| CString::new(entry.as_str())).collect::<Result<_, _>>();
    Ok(CStringList::new(strings.map_err(|_| SpawnError::Invalid(format!("NUL in an {what} string")))?))
}

fn rlimits(limits: &[oci_spec::runtime::PosixRlimit]) -> Result<Vec<(Resource, Rlimit)>, SpawnError> {
    let mut planned = Vec::new();
    for limit in limits {
        let resource = match limit.typ() {
            PosixRlimitType::RlimitCpu => Resource::Cpu,
            PosixRlimitType::RlimitFsize => Resource::Fsize,
            PosixRlimitType::RlimitData => Resource::Data,
            PosixRlimitType::RlimitStack => Resource::Stack,
            PosixRlimitType::RlimitCore => Resource::Core,
            PosixRlimitType::RlimitRss => Resource::Rss,
            PosixRlimitType::RlimitNproc => Resource::Nproc,
            PosixRlimitType::RlimitNofile => Resource::Nofile,
            PosixRlimitType::RlimitMemlock => Resource::Memlock,
            PosixRlimitType::RlimitAs => Resource::As,
            PosixRlimitType::RlimitLocks => Resource::Locks,
            PosixRlimitType::RlimitSigpending => Resource::Sigpending,
            PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
            PosixRlimitType::RlimitNice => Resource::Nice,
            PosixRlimitType::RlimitRtprio => Resource::Rtprio,
            PosixRlimitType::RlimitRttime => Resource::Rttime,
        };
        if limit.soft() > limit.hard() {
            return Err(SpawnError::Invalid(format!(
                "ulimit soft limit {} above hard limit {}",
                limit.soft(),
                limit.hard()
            )));
        }
        let value = |value: u64| (value != u64::MAX).then_some(value);
        if planned.iter().any(|(other, _)| *other == resource) {
            return Err(SpawnError::Invalid(format!("process.rlimits: {} is listed twice", limit.typ())));
        }
        planned.push((resource, Rlimit { current: value(limit.soft()), maximum: value(limit.hard()) }));
    }
    Ok(planned)
}

fn personality(spec: &Spec) -> Result<Option<u32>, SpawnError> {
    let Some(personality) = spec.linux().as_ref().and_then(|linux| linux.personality().as_ref()) else {
        return Ok(None);
    };
    let mut value = match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    };
    for flag in personality.flags().iter().flatten() {
        let known = PERSONALITY_FLAGS.iter().find(|(name, _)| name == flag);
        let (_, bit) = known.ok_or_else(|| {
            SpawnError::Unsupported(format!("linux.personality.flags: {flag:?} is none of personality(2)"))
        })?;
        value |= bit;
    }
    Ok(Some(value.cast_unsigned()))
}

/// The flags of personality(2), by the names they have there. The specification has none so far.
const PERSONALITY_FLAGS: [(&str, libc::c_int); 11] = [
    ("ADDR_COMPAT_LAYOUT", libc::ADDR_COMPAT_LAYOUT),
    ("ADDR_LIMIT_32BIT", libc::ADDR_LIMIT_32BIT),
    ("ADDR_LIMIT_3GB", libc::ADDR_LIMIT_3GB),
    ("ADDR_NO_RANDOMIZE", libc::ADDR_NO_RANDOMIZE),
    ("FDPIC_FUNCPTRS", libc::FDPIC_FUNCPTRS),
    ("MMAP_PAGE_ZERO", libc::MMAP_PAGE_ZERO),
    ("READ_IMPLIES_EXEC", libc::READ_IMPLIES_EXEC),
    ("SHORT_INODE", libc::SHORT_INODE),
    ("STICKY_TIMEOUTS", libc::STICKY_TIMEOUTS),
    ("UNAME26", libc::UNAME26),
    ("WHOLE_SECONDS", libc::WHOLE_SECONDS),
];

impl ProcessPlan {
    /// Tells whether supplementary groups were asked for.
    pub(crate) fn has_groups(&self) -> bool {
        self.wants_groups
    }

    /// Returns the name of the program as the user wrote it.
    pub(crate) fn name(&self) -> String {
        self.program.arguments.strings().first().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }
}
