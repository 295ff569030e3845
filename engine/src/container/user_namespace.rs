//! Which user namespace a container is in.

use serde::{Deserialize, Serialize};

/// The user namespace of a container, in Podman's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum UserNamespace {
    /// The one strata runs in.
    #[default]
    Host,
    /// Its own, with ids that mean nothing on the host.
    Auto,
    /// Its own, in which the user who runs strata keeps his ids, or has these.
    KeepId {
        /// The user inside.
        uid: Option<u32>,
        /// His group.
        gid: Option<u32>,
    },
    /// Its own, in which the user who runs strata does not exist.
    NoMap,
    /// That of another container: its name as asked for, its identifier in a record.
    Container(String),
}

/// A text that names no user namespace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUserNamespace {
    /// The word is unknown.
    #[error("invalid USER mode: {0}; use host, auto, nomap, keep-id[:uid=UID,gid=GID] or container:NAME")]
    Mode(String),
    /// An option of `keep-id` is unknown.
    #[error("invalid option for keep-id: {0}; it has uid=UID and gid=GID")]
    Option(String),
    /// An id is no number.
    #[error("invalid option for keep-id: {0} is no id: a number below 4294967295 is needed")]
    Id(String),
    /// There is no name behind the colon.
    #[error("invalid USER mode: container: needs the name or the identifier of a container")]
    NoName,
}

impl std::str::FromStr for UserNamespace {
    type Err = InvalidUserNamespace;

    fn from_str(text: &str) -> Result<UserNamespace, InvalidUserNamespace> {
        let (mode, rest) = match text.split_once(':') {
            Some((mode, rest)) => (mode, Some(rest)),
            None => (text, None),
        };
        match (mode, rest) {
            ("" | "host", None) => Ok(UserNamespace::Host),
            ("auto", None) => Ok(UserNamespace::Auto),
            ("nomap", None) => Ok(UserNamespace::NoMap),
            ("keep-id", options) => keep_id(options.unwrap_or_default()),
            ("container", Some("") | None) => Err(InvalidUserNamespace::NoName),
            ("container", Some(name)) => Ok(UserNamespace::Container(name.to_owned())),
            _ => Err(InvalidUserNamespace::Mode(text.to_owned())),
        }
    }
}

fn keep_id(options: &str) -> Result<UserNamespace, InvalidUserNamespace> {
    let (mut uid, mut gid) = (None, None);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let place = match name {
            "uid" => &mut uid,
            "gid" => &mut gid,
            _ => return Err(InvalidUserNamespace::Option(option.to_owned())),
        };
        let id = value.parse().ok().filter(|id| *id != u32::MAX);
        *place = Some(id.ok_or_else(|| InvalidUserNamespace::Id(option.to_owned()))?);
    }
    Ok(UserNamespace::KeepId { uid, gid })
}

impl std::fmt::Display for UserNamespace {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            UserNamespace::Host => formatter.write_str("host"),
            UserNamespace::Auto => formatter.write_str("auto"),
            UserNamespace::NoMap => formatter.write_str("nomap"),
            UserNamespace::KeepId { uid, gid } => {
                formatter.write_str("keep-id")?;
                let given = [("uid", uid), ("gid", gid)].into_iter().filter_map(|(name, id)| Some((name, (*id)?)));
                for (index, (name, id)) in given.enumerate() {
                    write!(formatter, "{}{name}={id}", if index == 0 { ':' } else { ',' })?;
                }
                Ok(())
            }
            UserNamespace::Container(name) => write!(formatter, "container:{name}"),
        }
    }
}

impl TryFrom<String> for UserNamespace {
    type Error = InvalidUserNamespace;

    fn try_from(text: String) -> Result<UserNamespace, InvalidUserNamespace> {
        text.parse()
    }
}

impl From<UserNamespace> for String {
    fn from(namespace: UserNamespace) -> String {
        namespace.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_podman_s() {
        for text in
            ["host", "auto", "nomap", "keep-id", "keep-id:uid=5", "keep-id:gid=6", "keep-id:uid=5,gid=6", "container:a"]
        {
            assert_eq!(text.parse::<UserNamespace>().unwrap().to_string(), text);
        }
        assert_eq!("".parse(), Ok(UserNamespace::Host));
        assert_eq!("keep-id:gid=6,uid=5".parse(), Ok(UserNamespace::KeepId { uid: Some(5), gid: Some(6) }));
        for (text, word) in [
            ("private", "invalid USER mode: private"),
            ("host:1", "invalid USER mode: host:1"),
            ("keep-id:size=3", "size=3"),
            ("keep-id:uid", "uid is no id"),
            ("keep-id:uid=-1", "uid=-1 is no id"),
            ("keep-id:gid=4294967295", "is no id"),
            ("container", "needs the name"),
            ("container:", "needs the name"),
        ] {
            let error = text.parse::<UserNamespace>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
