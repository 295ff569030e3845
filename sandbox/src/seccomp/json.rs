//! Docker's profile files: the spec's form, plus conditions on capabilities, architectures and the kernel.

use std::borrow::Cow;

use serde::Deserialize;

use super::profile::{Operator, action_by_name, condition, push_rules};
use super::{Architecture, Comparison, Profile, ProfileError, Rule, flags};
use crate::capabilities::CapabilitySet;

impl Profile {
    /// Parses a profile file, Docker's form or the spec's.
    ///
    /// # Errors
    /// [`ProfileError`] for what is malformed or does not exist.
    pub fn from_json(text: &[u8]) -> Result<Self, ProfileError> {
        let file: File = serde_json::from_slice(text)?;
        if file.arch_map.is_some() && file.architectures.is_some() {
            return Err(ProfileError::Both("architectures", "archMap"));
        }
        let mut architectures = Vec::new();
        for name in file.architectures.iter().flatten() {
            architectures.extend(known_architecture(name)?);
        }
        for entry in file.arch_map.iter().flatten() {
            // Only the entry of this machine counts.
            if known_architecture(&entry.architecture)?.is_some_and(|known| Some(known) == Architecture::native()) {
                architectures.extend(known_architecture(&entry.architecture)?);
                for name in entry.sub_architectures.iter().flatten() {
                    architectures.extend(known_architecture(name)?);
                }
            }
        }
        let mut rules = Vec::new();
        for syscall in file.syscalls.iter().flatten() {
            let names = match (&syscall.name, &syscall.names) {
                (Some(name), Some(names)) if !name.is_empty() && !names.is_empty() => {
                    return Err(ProfileError::Both("name", "names"));
                }
                (Some(name), _) if !name.is_empty() => vec![Cow::Owned(name.clone())],
                (_, names) => names.iter().flatten().cloned().map(Cow::Owned).collect(),
            };
            let conditions =
                syscall.args.iter().flatten().map(|argument| {
                    condition(argument.index, operator(&argument.op)?, argument.value, argument.value_two)
                });
            let conditions = conditions.collect::<Result<Vec<_>, _>>()?;
            let action = action_by_name(&syscall.action, syscall.errno_ret)?;
            let rule = Rule {
                names,
                with_capabilities: syscall.includes.capabilities(),
                without_capabilities: syscall.excludes.capabilities(),
                with_architectures: syscall.includes.architectures(),
                without_architectures: syscall.excludes.architectures(),
                minimum_kernel: syscall.includes.min_kernel.as_deref().map(kernel_version).transpose()?,
                ..Rule::new([], action)
            };
            // A condition on things this machine cannot have: the rule never counts.
            if !syscall.includes.arches.iter().flatten().all(|name| Architecture::from_go(name).is_none())
                || syscall.includes.arches.iter().flatten().next().is_none()
            {
                push_rules(&mut rules, &rule, conditions);
            }
        }
        let mut bits = 0;
        for flag in file.flags.iter().flatten() {
            bits |= match flag.as_str() {
                // Means nothing for a process with one thread.
                "SECCOMP_FILTER_FLAG_TSYNC" => 0,
                "SECCOMP_FILTER_FLAG_LOG" => flags::LOG,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => flags::SPEC_ALLOW,
                "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => flags::WAIT_KILLABLE_RECV,
                _ => return Err(ProfileError::Flag(flag.clone())),
            };
        }
        let default_action = action_by_name(&file.default_action, file.default_errno_ret)?;
        Ok(Self { default_action, architectures, rules, flags: bits }.with_native())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    default_action: String,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<ArchMap>>,
    flags: Option<Vec<String>>,
    syscalls: Option<Vec<Syscall>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Syscall {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: usize,
    value: u64,
    value_two: Option<u64>,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Filter {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

impl Filter {
    fn capabilities(&self) -> CapabilitySet {
        let names = self.caps.iter().flatten();
        CapabilitySet::from_bits(
            names.filter_map(|name| CapabilitySet::parse(name).ok()).fold(0, |bits, set| bits | set.bits()),
        )
    }

    fn architectures(&self) -> Vec<Architecture> {
        self.arches.iter().flatten().filter_map(|name| Architecture::from_go(name)).collect()
    }
}

fn operator(name: &str) -> Result<Operator, ProfileError> {
    Ok(Operator::Plain(match name {
        "SCMP_CMP_NE" => Comparison::NotEqual,
        "SCMP_CMP_LT" => Comparison::Less,
        "SCMP_CMP_LE" => Comparison::LessOrEqual,
        "SCMP_CMP_EQ" => Comparison::Equal,
        "SCMP_CMP_GE" => Comparison::GreaterOrEqual,
        "SCMP_CMP_GT" => Comparison::Greater,
        "SCMP_CMP_MASKED_EQ" => return Ok(Operator::Masked),
        _ => return Err(ProfileError::Operator(name.to_owned())),
    }))
}

/// Architectures that exist but have no table here are skipped: this machine does not run their programs.
fn known_architecture(name: &str) -> Result<Option<Architecture>, ProfileError> {
    if !name.starts_with("SCMP_ARCH_") {
        return Err(ProfileError::Architecture(name.to_owned()));
    }
    Ok(Architecture::from_scmp(name))
}

fn kernel_version(text: &str) -> Result<(u32, u32), ProfileError> {
    let parsed = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.ok_or_else(|| ProfileError::KernelVersion(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::{Action, Condition};

    #[test]
    fn a_docker_file_is_read() {
        let text = br#"{
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                        {"architecture": "SCMP_ARCH_MIPS64", "subArchitectures": null}],
            "syscalls": [
                {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                {"name": "mount", "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"], "minKernel": "4.8"}},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 256, "op": "SCMP_CMP_MASKED_EQ"}],
                 "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390x"]}},
                {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["mips"]}}
            ]}"#;
        let profile = Profile::from_json(text).unwrap();
        assert_eq!(profile.default_action, Action::Errno(38));
        if cfg!(target_arch = "x86_64") {
            assert_eq!(profile.architectures, [Architecture::X86_64, Architecture::X86]);
        }
        assert_eq!(profile.rules.len(), 3);
        assert_eq!(profile.rules[1].minimum_kernel, Some((4, 8)));
        let masked = Condition { argument: 0, comparison: Comparison::MaskedEqual(256), value: 0 };
        assert_eq!(profile.rules[2].conditions, [masked]);
        assert_eq!(profile.rules[2].without_architectures, [Architecture::S390x]);
    }

    #[test]
    fn the_profile_of_podman_compiles_and_lets_programs_run() {
        let Ok(text) = std::fs::read("/usr/share/containers/seccomp.json") else {
            return eprintln!("skipped: no /usr/share/containers/seccomp.json");
        };
        let profile = Profile::from_json(&text).unwrap();
        let capabilities = CapabilitySet::DOCKER;
        let program = profile.compile(capabilities).unwrap();
        assert!(program.instructions.len() < 4096);
        let allowed = |name: &str| {
            profile.rules.iter().any(|rule| {
                rule.action == Action::Allow
                    && rule.names.iter().any(|known| known == name)
                    && capabilities.intersection(rule.with_capabilities) == rule.with_capabilities
            })
        };
        assert!(allowed("execve") && allowed("openat") && !allowed("kexec_load"));
    }

    #[test]
    fn what_does_not_exist_is_named() {
        let error = |text: &str| Profile::from_json(text.as_bytes()).unwrap_err().to_string();
        assert!(error("not json").starts_with("decoding seccomp profile failed"));
        assert!(error(r#"{"defaultAction": "SCMP_ACT_DANCE"}"#).contains("SCMP_ACT_DANCE"));
        let rule = |rule: &str| error(&format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]}}"#));
        let argument =
            r#"{"names": ["read"], "action": "SCMP_ACT_LOG", "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}"#;
        assert!(rule(argument).contains("above 5"));
        assert!(rule(&argument.replace("6", "5").replace("CMP_EQ", "CMP_XX")).contains("SCMP_CMP_XX"));
    }
}
