//! `update`: limits of a container that is there.

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value};

use super::{Container, RuntimeError, Status};

/// A limit that has an option of its own.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// The option's name.
    pub option: &'static str,
    /// Where the spec's `linux.resources` has it.
    path: [&'static str; 2],
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Number,
    /// With `k`, `m`, `g`, `t`; -1 is none.
    Bytes,
    Text,
}

/// The options of runc's `update`.
pub const LIMITS: [Limit; 15] = [
    limit("blkio-weight", ["blockIO", "weight"], Kind::Number),
    limit("cpu-period", ["cpu", "period"], Kind::Number),
    limit("cpu-quota", ["cpu", "quota"], Kind::Number),
    limit("cpu-burst", ["cpu", "burst"], Kind::Number),
    limit("cpu-rt-period", ["cpu", "realtimePeriod"], Kind::Number),
    limit("cpu-rt-runtime", ["cpu", "realtimeRuntime"], Kind::Number),
    limit("cpu-share", ["cpu", "shares"], Kind::Number),
    limit("cpu-shares", ["cpu", "shares"], Kind::Number),
    limit("cpu-idle", ["cpu", "idle"], Kind::Number),
    limit("cpuset-cpus", ["cpu", "cpus"], Kind::Text),
    limit("cpuset-mems", ["cpu", "mems"], Kind::Text),
    limit("memory", ["memory", "limit"], Kind::Bytes),
    limit("memory-reservation", ["memory", "reservation"], Kind::Bytes),
    limit("memory-swap", ["memory", "swap"], Kind::Bytes),
    limit("pids-limit", ["pids", "limit"], Kind::Number),
];

const fn limit(option: &'static str, path: [&'static str; 2], kind: Kind) -> Limit {
    Limit { option, path, kind }
}

/// Reads limits from JSON of the spec's form, if there is any, and from options, which win.
///
/// # Errors
/// [`RuntimeError::InvalidArgument`].
pub fn resources(json: Option<&[u8]>, options: &[(&Limit, &str)]) -> Result<LinuxResources, RuntimeError> {
    let invalid = |what: String| RuntimeError::InvalidArgument(what);
    let mut all: Map<String, Value> = match json {
        Some(json) => {
            serde_json::from_slice(json).map_err(|error| invalid(format!("resources are not valid: {error}")))?
        }
        None => Map::new(),
    };
    for (limit, text) in options {
        let value = match limit.kind {
            Kind::Text => Some(Value::from(*text)),
            Kind::Number => text.parse::<i64>().ok().map(Value::from),
            Kind::Bytes => bytes(text).map(Value::from),
        };
        let value = value.ok_or_else(|| invalid(format!("invalid value for {}: {text:?}", limit.option)))?;
        let [group, name] = limit.path;
        let entry = all.entry(group).or_insert_with(|| Value::Object(Map::new()));
        let entry = entry.as_object_mut().ok_or_else(|| invalid(format!("resources: {group} is no object")))?;
        entry.insert(name.to_owned(), value);
    }
    serde_json::from_value(Value::Object(all)).map_err(|error| invalid(format!("resources are not valid: {error}")))
}

/// `64m`, `1GiB`, `-1`: powers of 1024 in any case, as in runc.
fn bytes(text: &str) -> Option<i64> {
    let lower = text.trim().to_ascii_lowercase();
    if lower == "-1" {
        return Some(-1);
    }
    let number = lower.trim_end_matches('b').trim_end_matches('i');
    let (digits, factor) = match number.as_bytes().last()? {
        b'k' => (&number[..number.len() - 1], 1 << 10),
        b'm' => (&number[..number.len() - 1], 1 << 20),
        b'g' => (&number[..number.len() - 1], 1 << 30),
        b't' => (&number[..number.len() - 1], 1_i64 << 40),
        _ => (number, 1),
    };
    digits.trim().parse::<i64>().ok().filter(|count| *count >= 0)?.checked_mul(factor)
}

impl Container {
    /// Changes limits; what `resources` does not name stays. Returns what could not be had and is no error.
    ///
    /// # Errors
    /// [`RuntimeError::NotRunning`], [`RuntimeError::Cgroup`].
    pub fn update(self, resources: &LinuxResources) -> Result<Vec<String>, RuntimeError> {
        let container = self.lock()?;
        if container.status() == Status::Stopped {
            return Err(RuntimeError::NotRunning);
        }
        let cgroup = container.cgroup()?.ok_or_else(|| {
            RuntimeError::WrongStatus("the container has no cgroup whose limits could be changed".into())
        })?;
        cgroup.check(resources)?;
        if let Some(unit) = &container.record.unit {
            unit.update(resources)?;
        }
        Ok(cgroup.update(resources)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let cases = [("64m", 64 << 20), ("1GiB", 1 << 30), ("2KB", 2 << 10), ("77", 77), ("-1", -1), ("0", 0)];
        for (text, expected) in cases {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for bad in ["", "m", "-2", "1x", "1.5g"] {
            assert_eq!(bytes(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn options_win_over_the_file() {
        let of = |name| LIMITS.iter().find(|limit| limit.option == name).unwrap();
        let file = br#"{"memory":{"limit":1,"reservation":2},"pids":{"limit":3}}"#;
        let found = resources(Some(file), &[(of("memory"), "1k"), (of("cpuset-cpus"), "0-1")]).unwrap();
        let memory = found.memory().unwrap();
        assert_eq!((memory.limit(), memory.reservation()), (Some(1024), Some(2)));
        assert_eq!(found.pids().unwrap().limit(), 3);
        assert_eq!(found.cpu().clone().unwrap().cpus().as_deref(), Some("0-1"));
        assert!(resources(None, &[(of("pids-limit"), "x")]).is_err());
        assert!(resources(Some(b"[]"), &[]).is_err());
    }
}
