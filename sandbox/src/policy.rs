//! What one program may do, said in a file: paths, TCP ports, system calls.
//!
//! ```toml
//! [files]                       # everything else cannot be opened
//! read = ["/etc", "/srv/data"]
//! write = ["/tmp"]              # and read
//! execute = ["/usr", "/bin"]    # and read
//!
//! [network]                     # other TCP ports can be neither connected to nor bound
//! connect = [443]
//! bind = [8080]
//!
//! [syscalls]                    # one of the two, within what the container's filter allows anyway
//! deny = ["ptrace"]
//! allow = ["read", "write"]
//! ```
//!
//! A table that is absent restricts nothing. Paths are those of the container, with all beneath; one that does not exist
//! allows nothing.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use crate::audit;
use crate::seccomp::{self, Action, Architecture, Profile, Rule};

/// A policy that was read and makes sense.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Which files.
    pub files: Option<Files>,
    /// Which TCP ports.
    pub network: Option<Ports>,
    /// Which system calls.
    pub syscalls: Option<Syscalls>,
}

/// Absolute paths, each with all beneath it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// May be read.
    pub read: Vec<PathBuf>,
    /// May be read and changed.
    pub write: Vec<PathBuf>,
    /// May be read and executed.
    pub execute: Vec<PathBuf>,
}

/// TCP ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// May be connected to.
    pub connect: Vec<u16>,
    /// May be bound.
    pub bind: Vec<u16>,
}

/// Names of system calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Syscalls {
    /// All but these.
    Deny(Vec<String>),
    /// None but these, and those without which no program starts and ends.
    Allow(Vec<String>),
}

/// A policy that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}{}: {reason}", key.as_ref().map_or_else(String::new, |key| format!(", {key}")))]
pub struct PolicyError {
    /// The line, from 1.
    pub line: usize,
    /// The table and key, where the file got that far.
    pub key: Option<&'static str>,
    /// What is wrong.
    pub reason: String,
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// [`PolicyError`] for what is no TOML, unknown keys, relative paths, port 0, unknown system calls.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let line = |span: Range<usize>| text.get(..span.start).map_or(1, |before| before.matches('\n').count() + 1);
        let file: Document = toml::from_str(text).map_err(|error| PolicyError {
            line: error.span().map_or(1, line),
            key: None,
            reason: error.message().to_owned(),
        })?;
        let fail = |span: Range<usize>, key, reason: String| PolicyError { line: line(span), key: Some(key), reason };
        let paths = |key: &'static str, list: Vec<Spanned<PathBuf>>| {
            let check = |path: Spanned<PathBuf>| match path.get_ref().is_absolute() {
                true => Ok(path.into_inner()),
                false => Err(fail(path.span(), key, format!("{:?} is no absolute path", path.get_ref()))),
            };
            list.into_iter().map(check).collect::<Result<Vec<_>, _>>()
        };
        let ports = |key: &'static str, list: Vec<Spanned<u16>>| {
            let check = |port: Spanned<u16>| match port.get_ref() {
                0 => Err(fail(port.span(), key, "port 0 means any port and cannot be allowed".to_owned())),
                _ => Ok(port.into_inner()),
            };
            list.into_iter().map(check).collect::<Result<Vec<_>, _>>()
        };
        let names = |key: &'static str, list: Vec<Spanned<String>>| {
            let known = |name: &str| Architecture::ALL.iter().any(|architecture| architecture.number(name).is_some());
            let check = |name: Spanned<String>| match known(name.get_ref()) {
                true => Ok(name.into_inner()),
                false => Err(fail(name.span(), key, format!("there is no system call {:?}", name.get_ref()))),
            };
            list.into_iter().map(check).collect::<Result<Vec<_>, _>>()
        };
        let files = file.files.map(|files| {
            Ok(Files {
                read: paths("files.read", files.read)?,
                write: paths("files.write", files.write)?,
                execute: paths("files.execute", files.execute)?,
            })
        });
        let network = file.network.map(|network| {
            Ok(Ports {
                connect: ports("network.connect", network.connect)?,
                bind: ports("network.bind", network.bind)?,
            })
        });
        let syscalls = file.syscalls.map(|syscalls| {
            let span = syscalls.span();
            let syscalls = syscalls.into_inner();
            match (syscalls.allow, syscalls.deny) {
                (Some(allow), None) => Ok(Syscalls::Allow(names("syscalls.allow", allow)?)),
                (None, Some(deny)) => Ok(Syscalls::Deny(names("syscalls.deny", deny)?)),
                _ => Err(fail(span, "syscalls", "either allow or deny is needed, and not both".to_owned())),
            }
        });
        Ok(Self { files: files.transpose()?, network: network.transpose()?, syscalls: syscalls.transpose()? })
    }

    /// The calls that an [`Audit`](crate::audit::Audit) of this policy is asked about.
    pub(crate) fn observed_names(&self) -> Vec<&'static str> {
        let mut names: Vec<&str> = Vec::new();
        if self.files.is_some() {
            names.extend(audit::of_files());
        }
        if self.network.is_some() {
            names.extend(audit::of_ports());
        }
        if self.syscalls.is_some() {
            names.extend(seccomp::names().filter(|name| !self.allows_call(name)));
        }
        // The listener is handed out by it.
        names.retain(|name| *name != "sendmsg");
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Tells whether the policy says nothing against the system call `name`.
    pub(crate) fn allows_call(&self, name: &str) -> bool {
        match &self.syscalls {
            None => true,
            Some(Syscalls::Deny(names)) => !names.iter().any(|denied| denied == name),
            Some(Syscalls::Allow(names)) => {
                INDISPENSABLE.contains(&name) || names.iter().any(|allowed| allowed == name)
            }
        }
    }

    /// Returns `profile` asking about what the policy has to say something about, and allowing no more than before.
    ///
    /// # Errors
    /// [`AuditError`] for a profile that asks somebody already.
    pub fn observe(&self, profile: &Profile) -> Result<Profile, AuditError> {
        let mut profile = profile.clone();
        let asks = |action: Action| action == Action::Notify;
        if asks(profile.default_action) || profile.rules.iter().any(|rule| asks(rule.action)) {
            return Err(AuditError);
        }
        let observed = self.observed_names();
        let is_observed = |name: &str| observed.binary_search(&name).is_ok();
        let lets_through = |action| matches!(action, Action::Allow | Action::Log);
        let mut rules = Vec::with_capacity(profile.rules.len());
        for mut rule in std::mem::take(&mut profile.rules) {
            if lets_through(rule.action) {
                let (asking, plain) = std::mem::take(&mut rule.names).into_iter().partition(|name| is_observed(name));
                rules.push(Rule { names: asking, action: Action::Notify, ..rule.clone() });
                rule.names = plain;
            }
            rules.push(rule);
        }
        rules.retain(|rule| !rule.names.is_empty());
        if lets_through(profile.default_action) && !observed.is_empty() {
            rules.push(Rule::new(observed, Action::Notify));
        }
        profile.rules = rules;
        if seccomp::kernel_version() >= WAITS_UNDISTURBED {
            // Else each signal would begin the call anew, and have it looked at again.
            profile.flags |= seccomp::flags::WAIT_KILLABLE_RECV;
        }
        Ok(profile)
    }

    /// Returns `profile` with what the policy refuses of it taken away.
    #[must_use]
    pub fn restrict(&self, profile: &Profile) -> Profile {
        let mut profile = profile.clone();
        let (listed, keeps) = match &self.syscalls {
            None => return profile,
            Some(Syscalls::Deny(names)) => (names, false),
            Some(Syscalls::Allow(names)) => (names, true),
        };
        let stays = |name: &str| self.allows_call(name);
        let mut refused: Vec<Cow<'static, str>> = Vec::new();
        for rule in &mut profile.rules {
            let (kept, taken) = std::mem::take(&mut rule.names).into_iter().partition(|name| stays(name));
            rule.names = kept;
            refused.extend::<Vec<_>>(taken);
        }
        profile.rules.retain(|rule| !rule.names.is_empty());
        refused.extend(listed.iter().filter(|_| !keeps).cloned().map(Cow::Owned));
        // Said with a rule of its own: without a name they could be taken for calls that the profile does not know yet.
        if keeps && profile.default_action.may_permit() {
            // What the profile lets through without a rule is refused from here on, but for what is listed. That comes
            // after the profile's own rules, of which those that refuse it still win.
            let permit = std::mem::replace(&mut profile.default_action, Action::Errno(EPERM));
            refused.extend(seccomp::names().filter(|name| !stays(name)).map(Cow::Borrowed));
            let kept = listed.iter().cloned().map(Cow::Owned).chain(INDISPENSABLE.map(Cow::Borrowed)).collect();
            profile.rules.push(Rule { names: kept, ..Rule::new([], permit) });
        }
        profile.rules.push(Rule { names: refused, ..Rule::new([], Action::Errno(EPERM)) });
        profile
    }
}

/// As the file has it.
impl fmt::Display for Policy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: Vec<String>| format!("[{}]", items.join(", "));
        let paths = |paths: &[PathBuf]| list(paths.iter().map(|path| quoted(&path.to_string_lossy())).collect());
        let ports = |ports: &[u16]| list(ports.iter().map(u16::to_string).collect());
        let names = |names: &[String]| list(names.iter().map(|name| quoted(name)).collect());
        if let Some(files) = &self.files {
            writeln!(formatter, "[files]\nread = {}", paths(&files.read))?;
            writeln!(formatter, "write = {}\nexecute = {}", paths(&files.write), paths(&files.execute))?;
        }
        if let Some(network) = &self.network {
            writeln!(formatter, "[network]\nconnect = {}\nbind = {}", ports(&network.connect), ports(&network.bind))?;
        }
        match &self.syscalls {
            None => Ok(()),
            Some(Syscalls::Deny(denied)) => writeln!(formatter, "[syscalls]\ndeny = {}", names(denied)),
            Some(Syscalls::Allow(allowed)) => writeln!(formatter, "[syscalls]\nallow = {}", names(allowed)),
        }
    }
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            letter if letter.is_control() => quoted += &format!("\\u{:04x}", u32::from(letter)),
            letter => quoted.push(letter),
        }
    }
    quoted + "\""
}

/// A filter that cannot be audited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--audit needs the filter's notifications, and the seccomp profile has an agent of its own for them (SCMP_ACT_NOTIFY)"
)]
pub struct AuditError;

/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`
const WAITS_UNDISTURBED: (u32, u32) = (5, 19);
/// To be executed, and to end.
const INDISPENSABLE: [&str; 5] = ["execve", "exit", "exit_group", "restart_syscall", "rt_sigreturn"];
const EPERM: u16 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    files: Option<FilesTable>,
    network: Option<NetworkTable>,
    syscalls: Option<Spanned<SyscallsTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct FilesTable {
    read: Vec<Spanned<PathBuf>>,
    write: Vec<Spanned<PathBuf>>,
    execute: Vec<Spanned<PathBuf>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct NetworkTable {
    connect: Vec<Spanned<u16>>,
    bind: Vec<Spanned<u16>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SyscallsTable {
    allow: Option<Vec<Spanned<String>>>,
    deny: Option<Vec<Spanned<String>>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::CapabilitySet;
    use crate::seccomp::Call;

    #[test]
    fn a_whole_policy_is_read() {
        let text = "[files]\nread = [\"/etc\"]\nwrite = [\"/tmp\", \"/var/lib\"]\nexecute = [\"/bin\"]\n\
            [network]\nconnect = [443]\nbind = [80, 8080]\n[syscalls]\ndeny = [\"ptrace\"]\n";
        let policy = Policy::parse(text).unwrap();
        let files = policy.files.unwrap();
        assert_eq!((files.read.len(), files.write.len(), files.execute.len()), (1, 2, 1));
        assert_eq!(policy.network, Some(Ports { connect: vec![443], bind: vec![80, 8080] }));
        assert_eq!(policy.syscalls, Some(Syscalls::Deny(vec!["ptrace".into()])));
        assert_eq!(Policy::parse(""), Ok(Policy::default()));
    }

    #[test]
    fn errors_name_line_and_key() {
        let error = |text: &str| Policy::parse(text).unwrap_err().to_string();
        assert_eq!(error("[files]\nread = [\"/etc\",\n  \"tmp\"]"), "line 3, files.read: \"tmp\" is no absolute path");
        assert_eq!(
            error("[network]\n\nbind = [0]"),
            "line 3, network.bind: port 0 means any port and cannot be allowed"
        );
        assert_eq!(
            error("[syscalls]\nallow = [\"read\", \"raed\"]"),
            "line 2, syscalls.allow: there is no system call \"raed\""
        );
        assert!(error("[syscalls]\nallow = []\ndeny = []").contains("either allow or deny"));
        assert!(error("[files]\nread = []\nwirte = [\"/tmp\"]").starts_with("line 3: unknown field `wirte`"));
        assert!(error("[network]\nbind = [70000]").starts_with("line 2: "), "{}", error("[network]\nbind = [70000]"));
        assert!(error("[files\n").starts_with("line 1: "));
    }

    #[test]
    fn calls_are_taken_from_the_profile() {
        let allowed = |text: &str, name| {
            let profile = Policy::parse(text).unwrap().restrict(Profile::docker_default());
            profile.may_allow(name, CapabilitySet::DOCKER)
        };
        let deny = "[syscalls]\ndeny = [\"ptrace\", \"mount\", \"personality\"]";
        assert!(
            allowed(deny, "read")
                && !allowed(deny, "ptrace")
                && !allowed(deny, "mount")
                && !allowed(deny, "personality")
        );
        let allow = "[syscalls]\nallow = [\"read\", \"mount\"]";
        assert!(
            allowed(allow, "read") && allowed(allow, "execve") && !allowed(allow, "write") && !allowed(allow, "mount")
        );
    }

    /// What the filter of a container with these capabilities says to a call.
    fn decide(profile: &Profile, capabilities: CapabilitySet, name: &str) -> Action {
        let native = Architecture::native().unwrap();
        let number = native.number(name).unwrap();
        let call = Call { architecture: native.audit_number(), number, arguments: [0; 6] };
        profile.decide(native, capabilities, (6, 12), native, &call)
    }

    #[test]
    fn what_is_observed_is_asked_about_and_nothing_is_allowed_that_was_not() {
        let decide = |profile: &Profile, name| decide(profile, CapabilitySet::DOCKER, name);
        let files = Policy::parse("[files]\nread = []\n[syscalls]\ndeny = [\"mount\", \"sync\"]").unwrap();
        let base = Profile::docker_default();
        let observed = files.observe(base).unwrap();
        for (name, action) in
            [("openat", Action::Notify), ("sync", Action::Notify), ("read", Action::Allow), ("connect", Action::Allow)]
        {
            assert_eq!(decide(&observed, name), action, "{name}");
        }
        assert_eq!(decide(&observed, "mount"), decide(base, "mount"));
        let few = Policy::parse("[syscalls]\nallow = [\"read\"]").unwrap();
        for base in [base, &Profile::everything()] {
            let observed = few.observe(base).unwrap();
            for (name, action) in [
                ("read", Action::Allow),
                ("exit_group", Action::Allow),
                ("sendmsg", Action::Allow),
                ("write", Action::Notify),
            ] {
                assert_eq!(decide(&observed, name), action, "{name}");
            }
        }
        assert_eq!(few.observe(&few.observe(base).unwrap()), Err(AuditError));
    }

    #[test]
    fn a_list_restricts_a_profile_that_allows_by_default() {
        let decide = |profile: &Profile, name| decide(profile, CapabilitySet::ALL, name);
        let policy = Policy::parse("[syscalls]\nallow = [\"read\", \"mount\"]").unwrap();
        let profile = policy.restrict(&Profile::everything());
        for name in ["read", "mount", "execve", "exit_group"] {
            assert_eq!(decide(&profile, name), Action::Allow, "{name}");
        }
        for name in ["write", "ptrace", "unshare", "socket"] {
            assert_eq!(decide(&profile, name), Action::Errno(EPERM), "{name}");
        }
        // A number that no table knows.
        let native = Architecture::native().unwrap();
        let newest = Call { architecture: native.audit_number(), number: 4000, arguments: [0; 6] };
        let action = profile.decide(native, CapabilitySet::ALL, (6, 12), native, &newest);
        assert!(!action.may_permit(), "{action:?}");
        let logging = Profile {
            default_action: Action::Log,
            rules: vec![Rule::new(["mount"], Action::Errno(38))],
            ..Profile::everything()
        };
        let profile = policy.restrict(&logging);
        assert_eq!(decide(&profile, "read"), Action::Log);
        assert_eq!(decide(&profile, "mount"), Action::Errno(38));
        assert_eq!(decide(&profile, "write"), Action::Errno(EPERM));
    }
}
