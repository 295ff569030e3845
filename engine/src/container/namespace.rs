//! Whose namespaces a container is in.

use serde::{Deserialize, Serialize};

/// Whose namespace of one kind a container is in, in Docker's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Namespace {
    /// One of its own; a network of its own has the loopback interface only.
    #[default]
    Private,
    /// That of the host.
    Host,
    /// That of another container: its name as asked for, its identifier in a record.
    Container(String),
}

impl Namespace {
    /// The container whose namespace it is.
    pub(crate) fn joined(&self) -> Option<&str> {
        match self {
            Namespace::Container(name) => Some(name),
            Namespace::Private | Namespace::Host => None,
        }
    }

    pub(crate) fn is_private(&self) -> bool {
        *self == Namespace::Private
    }
}

impl From<String> for Namespace {
    /// Any word of a record that is neither of the other two is one for its own.
    fn from(text: String) -> Namespace {
        match text.split_once(':') {
            Some(("container", name)) => Namespace::Container(name.to_owned()),
            None if text == "host" => Namespace::Host,
            _ => Namespace::Private,
        }
    }
}

impl From<Namespace> for String {
    fn from(namespace: Namespace) -> String {
        match namespace {
            Namespace::Private => "none".to_owned(),
            Namespace::Host => "host".to_owned(),
            Namespace::Container(name) => format!("container:{name}"),
        }
    }
}

/// The namespaces that Docker has options for, but those of the network and of users.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespaces {
    /// Its processes.
    #[serde(skip_serializing_if = "Namespace::is_private")]
    pub pid: Namespace,
    /// It shares the host's System V objects, message queues and `/dev/shm`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_ipc: bool,
    /// It has the host's name, whatever it becomes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_uts: bool,
    /// It sees where in the host's cgroups it is.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_cgroup: bool,
}

impl Namespaces {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_and_written() {
        for (text, expected) in [
            ("\"none\"", Namespace::Private),
            ("\"private\"", Namespace::Private),
            ("\"host\"", Namespace::Host),
            ("\"container:abc\"", Namespace::Container("abc".to_owned())),
        ] {
            let read: Namespace = serde_json::from_str(text).unwrap();
            assert_eq!(read, expected, "{text}");
            assert_eq!(serde_json::from_str::<Namespace>(&serde_json::to_string(&read).unwrap()).unwrap(), read);
        }
    }
}
