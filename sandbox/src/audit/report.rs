//! What an audit found, and the policy that would have allowed it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::path::PathBuf;

use crate::policy::{Files, Policy, Ports, Syscalls};

/// How a file is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Its content is read, or a folder listed.
    Read,
    /// Its content is changed.
    Write,
    /// The same, and it is made if it is not there.
    WriteOrMake,
    /// A name in a folder is made or removed.
    Name,
    /// It is executed.
    Execute,
}

/// Something that the policy would have refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// An access to a file.
    File {
        /// Where, in the container.
        path: PathBuf,
        /// What kind.
        access: Access,
    },
    /// A connection to a TCP port.
    Connect(u16),
    /// A TCP port that was bound.
    Bind(u16),
    /// A system call.
    Call(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::File { path, access } => {
                let what = match access {
                    Access::Read => "read",
                    Access::Write | Access::WriteOrMake => "write",
                    Access::Name => "make or remove names in",
                    Access::Execute => "execute",
                };
                write!(formatter, "{what} {path:?}")
            }
            Finding::Connect(port) => write!(formatter, "connect to TCP port {port}"),
            Finding::Bind(port) => write!(formatter, "bind TCP port {port}"),
            Finding::Call(name) => write!(formatter, "call {name}"),
        }
    }
}

/// What was found, each with how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    findings: BTreeMap<Finding, u64>,
    /// How many there were beyond what is kept.
    left_out: u64,
}

impl Report {
    /// Counts a finding.
    pub(super) fn add(&mut self, finding: Finding) {
        let is_full = self.findings.len() >= MOST;
        match self.findings.entry(finding) {
            Entry::Occupied(mut count) => *count.get_mut() += 1,
            Entry::Vacant(_) if is_full => self.left_out += 1,
            Entry::Vacant(place) => {
                place.insert(1);
            }
        }
    }

    /// Says in lines what `policy` would have refused, and ends with the policy that would have refused nothing of it.
    #[must_use]
    pub fn text(&self, policy: &Policy) -> String {
        let unseen = match policy.allows_call("sendmsg") {
            true => "",
            false => "audit: the policy refuses sendmsg, which cannot be observed\n",
        };
        if self.findings.is_empty() {
            return format!("{unseen}audit: the policy would have refused nothing\n");
        }
        let mut text = format!("{unseen}audit: the policy would have refused\n");
        for (finding, count) in &self.findings {
            let times = if *count == 1 { String::new() } else { format!(" ({count} times)") };
            text += &format!("  {finding}{times}\n");
        }
        if self.left_out > 0 {
            text += &format!("  and {} others, which are not listed\n", self.left_out);
        }
        text + "audit: this policy would have refused none of these\n" + &self.widened(policy).to_string()
    }

    /// The policy with everything that was found.
    fn widened(&self, policy: &Policy) -> Policy {
        let mut policy = policy.clone();
        for finding in self.findings.keys() {
            match finding {
                Finding::File { path, access } => {
                    let files = policy.files.get_or_insert_with(Files::default);
                    let list = match access {
                        Access::Read => &mut files.read,
                        Access::Write | Access::WriteOrMake | Access::Name => &mut files.write,
                        Access::Execute => &mut files.execute,
                    };
                    if !list.contains(path) {
                        list.push(path.clone());
                    }
                }
                Finding::Connect(0) | Finding::Bind(0) => {}
                Finding::Connect(port) => policy.network.get_or_insert_with(Ports::default).connect.push(*port),
                Finding::Bind(port) => policy.network.get_or_insert_with(Ports::default).bind.push(*port),
                Finding::Call(name) => match &mut policy.syscalls {
                    Some(Syscalls::Allow(names)) => names.push(name.clone()),
                    Some(Syscalls::Deny(names)) => names.retain(|denied| denied != name),
                    None => {}
                },
            }
        }
        policy
    }
}

/// A program that makes names without end must not fill our memory.
const MOST: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_of_a_report_can_be_read_and_allows_what_was_found() {
        let policy = Policy::parse(
            "[files]\nread = [\"/etc\"]\n[network]\nconnect = [443]\n[syscalls]\ndeny = [\"ptrace\", \"mount\"]",
        )
        .unwrap();
        let mut report = Report::default();
        assert_eq!(report.text(&policy), "audit: the policy would have refused nothing\n");
        let file = |path: &str, access| Finding::File { path: PathBuf::from(path), access };
        for finding in [
            file("/srv/a \"b\"", Access::Read),
            file("/tmp", Access::Name),
            file("/tmp", Access::Write),
            file("/bin/sh", Access::Execute),
            Finding::Bind(80),
            Finding::Bind(0),
            Finding::Call("ptrace".to_owned()),
            Finding::Bind(80),
        ] {
            report.add(finding);
        }
        let text = report.text(&policy);
        assert!(text.contains("  bind TCP port 80 (2 times)\n") && text.contains("  execute \"/bin/sh\"\n"), "{text}");
        let (_, pasted) = text.split_once("none of these\n").unwrap();
        let widened = Policy::parse(pasted).unwrap();
        let files = widened.files.unwrap();
        assert_eq!(files.read, [PathBuf::from("/etc"), PathBuf::from("/srv/a \"b\"")]);
        assert_eq!((files.write, files.execute), (vec![PathBuf::from("/tmp")], vec![PathBuf::from("/bin/sh")]));
        assert_eq!(widened.network, Some(Ports { connect: vec![443], bind: vec![80] }));
        assert_eq!(widened.syscalls, Some(Syscalls::Deny(vec!["mount".to_owned()])));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut report = Report::default();
        for number in 0..MOST + 5 {
            report.add(Finding::Call(number.to_string()));
        }
        assert_eq!((report.findings.len(), report.left_out), (MOST, 5));
    }
}
