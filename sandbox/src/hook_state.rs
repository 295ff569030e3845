//! The state of a container as its hooks read it.

use std::collections::HashMap;
use std::path::PathBuf;

/// What hooks are told about a container on their standard input: the spec's `state` as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookState {
    /// The version of the specification that the bundle follows.
    pub version: String,
    /// The container.
    pub id: String,
    /// The bundle's folder.
    pub bundle: PathBuf,
    /// The annotations of the bundle.
    pub annotations: HashMap<String, String>,
}

impl HookState {
    /// Returns the JSON for a moment; without a process, as after its end, there is no `pid`.
    #[must_use]
    pub fn json(&self, status: &str, pid: Option<u32>) -> Vec<u8> {
        let (mut text, after) = self.around_pid(status);
        text.extend(pid.unwrap_or(0).to_string().bytes());
        text.extend(after);
        text
    }

    /// Returns what comes before and after the number of the process.
    pub(crate) fn around_pid(&self, status: &str) -> (Vec<u8>, Vec<u8>) {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let before = format!(
            "{{\"ociVersion\":{},\"id\":{},\"status\":{},\"pid\":",
            quoted(&self.version),
            quoted(&self.id),
            quoted(status)
        );
        let mut after = format!(",\"bundle\":{}", quoted(&self.bundle.to_string_lossy()));
        if !self.annotations.is_empty() {
            let sorted: std::collections::BTreeMap<_, _> = self.annotations.iter().collect();
            let pairs: Vec<String> =
                sorted.iter().map(|(key, value)| format!("{}:{}", quoted(key), quoted(value))).collect();
            after += &format!(",\"annotations\":{{{}}}", pairs.join(","));
        }
        after.push('}');
        (before.into_bytes(), after.into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_specs_json() {
        let state = HookState {
            version: "1.0.2".into(),
            id: "a\"b".into(),
            bundle: "/b".into(),
            annotations: [("k".to_owned(), "v".to_owned())].into(),
        };
        let parsed: serde_json::Value = serde_json::from_slice(&state.json("creating", Some(7))).unwrap();
        let expected = serde_json::json!({
            "ociVersion": "1.0.2", "id": "a\"b", "status": "creating", "pid": 7, "bundle": "/b", "annotations": {"k": "v"}
        });
        assert_eq!(parsed, expected);
    }
}
