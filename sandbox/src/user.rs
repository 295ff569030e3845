//! The user of a process: `user[:group]`, looked up in the image's own account files.
//!
//! The files come from an image and are not to be trusted: they are opened below the root, read up to a limit, and a
//! text that is neither a known name nor a number in range is an error, never user 0.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::OFlags;

use crate::rooted;

/// Who a process runs as, inside the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory; `/` when the image does not know the user.
    pub home: String,
}

/// Why a user could not be found.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// A name that `/etc/passwd` does not have.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoSuchUser(String),
    /// A name that `/etc/group` does not have.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoSuchGroup(String),
    /// A number out of range.
    #[error("uids and gids must be in range 0-2147483647: {0}")]
    OutOfRange(String),
    /// Neither name nor number.
    #[error("invalid user {0:?}")]
    Malformed(String),
    /// An account file exists and cannot be read.
    #[error("read /{path} of the image")]
    Read {
        /// The file, relative to the root.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Looks up `user[:group]` and `extra_groups` in the account files below `root`.
///
/// # Errors
/// [`UserError`] when the text is malformed, out of range or unknown, or a file cannot be read.
pub fn look_up(root: BorrowedFd<'_>, user: &str, extra_groups: &[String]) -> Result<ContainerUser, UserError> {
    let AccountFiles { passwd, group } = AccountFiles::read(root)?;
    look_up_in(&passwd, &group, user, extra_groups)
}

/// The pure part of [`look_up`]: the files' contents are given.
///
/// # Errors
/// As [`look_up`], except for reading.
pub fn look_up_in(
    passwd: &[u8],
    group: &[u8],
    user: &str,
    extra_groups: &[String],
) -> Result<ContainerUser, UserError> {
    let (user_part, group_part) = match user.split_once(':') {
        Some((user_part, group_part)) => (user_part, Some(group_part)),
        None => (user, None),
    };
    if user_part.is_empty() || group_part.is_some_and(|part| part.is_empty() || part.contains(':')) {
        return Err(UserError::Malformed(user.to_owned()));
    }
    let number = parse_id(user_part);
    // As Docker: a name wins over a number, the first line wins.
    let account = accounts(passwd)
        .find(|account| account.name == user_part.as_bytes())
        .or_else(|| accounts(passwd).find(|account| matches!(number, Id::Number(uid) if account.uid == uid)));
    let mut found = match (&account, number) {
        (Some(account), _) => ContainerUser {
            uid: account.uid,
            gid: account.gid,
            groups: Vec::new(),
            home: String::from_utf8_lossy(account.home).into_owned(),
        },
        (None, Id::Number(uid)) => ContainerUser { uid, gid: 0, groups: Vec::new(), home: "/".into() },
        (None, Id::OutOfRange) => return Err(UserError::OutOfRange(user_part.to_owned())),
        (None, Id::Name) => return Err(UserError::NoSuchUser(user_part.to_owned())),
    };
    if found.home.is_empty() || !found.home.starts_with('/') {
        found.home = "/".into();
    }
    match (group_part, &account) {
        (Some(part), _) => found.gid = look_up_group(group, part)?,
        (None, Some(account)) => found.groups.extend(
            groups(group)
                .filter(|group| group.members.split(|byte| *byte == b',').any(|name| name == account.name))
                .map(|group| group.gid),
        ),
        (None, None) => {}
    }
    for name in extra_groups {
        found.groups.push(look_up_group(group, name)?);
    }
    let mut seen = std::collections::HashSet::new();
    found.groups.retain(|gid| seen.insert(*gid));
    Ok(found)
}

/// The account files of a root; a file that is not there is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccountFiles {
    /// `/etc/passwd`
    pub passwd: Vec<u8>,
    /// `/etc/group`
    pub group: Vec<u8>,
}

impl AccountFiles {
    /// Reads those below `root`.
    ///
    /// # Errors
    /// [`UserError::Read`].
    pub fn read(root: BorrowedFd<'_>) -> Result<Self, UserError> {
        Ok(Self { passwd: read_account_file(root, "etc/passwd")?, group: read_account_file(root, "etc/group")? })
    }

    /// Adds a line to one of those below `root`, all of it or nothing: `name` is `passwd` or `group`.
    ///
    /// # Errors
    /// The errno of the calls; `ELOOP` for a symbolic link, `WriteZero` where only a part had room.
    pub fn append(root: BorrowedFd<'_>, name: &str, line: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW;
        let file = rooted::open(root, format!("etc/{name}"), flags)?;
        match rustix::io::write(&file, line)? == line.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Returns the name of a user.
    #[must_use]
    pub fn user_name(&self, uid: u32) -> Option<&[u8]> {
        accounts(&self.passwd).find(|account| account.uid == uid).map(|account| account.name)
    }

    /// Returns the name of a group.
    #[must_use]
    pub fn group_name(&self, gid: u32) -> Option<&[u8]> {
        groups(&self.group).find(|group| group.gid == gid).map(|group| group.name)
    }

    /// Tells whether there is a user of that name.
    #[must_use]
    pub fn has_user(&self, name: &[u8]) -> bool {
        accounts(&self.passwd).any(|account| account.name == name)
    }

    /// Tells whether there is a group of that name.
    #[must_use]
    pub fn has_group(&self, name: &[u8]) -> bool {
        groups(&self.group).any(|group| group.name == name)
    }
}

fn look_up_group(group: &[u8], name: &str) -> Result<u32, UserError> {
    if name.is_empty() {
        return Err(UserError::Malformed(name.to_owned()));
    }
    if let Some(group) = groups(group).find(|group| group.name == name.as_bytes()) {
        return Ok(group.gid);
    }
    match parse_id(name) {
        Id::Number(gid) => Ok(gid),
        Id::OutOfRange => Err(UserError::OutOfRange(name.to_owned())),
        Id::Name => Err(UserError::NoSuchGroup(name.to_owned())),
    }
}

/// What a text without a matching name can be.
#[derive(Clone, Copy)]
enum Id {
    Number(u32),
    OutOfRange,
    Name,
}

/// Decimal digits only: no sign of plus, no space, no `0x`. The limit is the kernel's signed 31 bits, as in Docker.
fn parse_id(text: &str) -> Id {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Id::Name;
    }
    match text.parse::<u32>() {
        Ok(id) if id <= i32::MAX.unsigned_abs() => Id::Number(id),
        _ => Id::OutOfRange,
    }
}

struct Account<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

fn accounts(passwd: &[u8]) -> impl Iterator<Item = Account<'_>> {
    passwd.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let (name, _password, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let home = fields.nth(1).unwrap_or_default();
        Some(Account { name: valid_name(name)?, uid: field_id(uid)?, gid: field_id(gid)?, home })
    })
}

struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

fn groups(group: &[u8]) -> impl Iterator<Item = Group<'_>> {
    group.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let (name, _password, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Group { name: valid_name(name)?, gid: field_id(gid)?, members: fields.next().unwrap_or_default() })
    })
}

fn valid_name(name: &[u8]) -> Option<&[u8]> {
    (!name.is_empty() && name[0] != b'#').then_some(name)
}

/// A line with an id that is no number in range is no entry.
fn field_id(field: &[u8]) -> Option<u32> {
    match parse_id(std::str::from_utf8(field).ok()?) {
        Id::Number(id) => Some(id),
        Id::OutOfRange | Id::Name => None,
    }
}

fn read_account_file(root: BorrowedFd<'_>, path: &'static str) -> Result<Vec<u8>, UserError> {
    match rooted::read_regular_file(root, path, ACCOUNT_FILE_LIMIT) {
        Ok(content) => Ok(content),
        // An image without accounts (FROM scratch) is ordinary: numbers still work.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(source) => Err(UserError::Read { path, source }),
    }
}

const ACCOUNT_FILE_LIMIT: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# c:x:7:7::/:\nweb:x:33:34:w:/srv/web:/bin/sh\n\
        broken\nbig:x:4294967296:0::/:\n1234:x:50:51::/numeric:\nnohome:x:60:60::relative:\n";
    const GROUP: &[u8] = b"root:x:0:\nwww:x:34:\nlogs:x:40:web,other\ndocker:x:41:other,web\n";

    fn find(user: &str) -> Result<ContainerUser, UserError> {
        look_up_in(PASSWD, GROUP, user, &[])
    }

    fn ids(user: &str) -> (u32, u32, Vec<u32>) {
        let found = find(user).unwrap();
        (found.uid, found.gid, found.groups)
    }

    #[test]
    fn names_and_numbers_are_found() {
        assert_eq!(ids("root"), (0, 0, vec![]));
        assert_eq!(ids("web"), (33, 34, vec![40, 41]));
        assert_eq!(ids("33"), (33, 34, vec![40, 41]));
        assert_eq!(ids("web:logs"), (33, 40, vec![]));
        assert_eq!(ids("web:0"), (33, 0, vec![]));
        assert_eq!(ids("1000"), (1000, 0, vec![]));
        assert_eq!(ids("1000:1000"), (1000, 1000, vec![]));
        assert_eq!(ids("1234"), (50, 51, vec![]), "a name wins over a number");
        assert_eq!(find("web").unwrap().home, "/srv/web");
        assert_eq!(find("1000").unwrap().home, "/");
        assert_eq!(find("nohome").unwrap().home, "/");
    }

    #[test]
    fn odd_texts_are_errors_and_never_root() {
        for text in [
            "",
            ":",
            ":0",
            ":root",
            "web:",
            "0:0:0",
            "1000abc",
            "0x0",
            " 0",
            "0 ",
            "+0",
            "nobody",
            "web:nogroup",
            "#",
            "big",
        ] {
            assert!(find(text).is_err(), "{text:?} gave {:?}", find(text));
        }
        for text in ["-1", "4294967296", "2147483648", "99999999999999999999", "0:-1", "0:4294967295"] {
            assert!(matches!(find(text), Err(UserError::OutOfRange(_))), "{text:?}");
        }
    }

    #[test]
    fn extra_groups_are_added_once() {
        let found = look_up_in(PASSWD, GROUP, "web", &["docker".into(), "77".into()]).unwrap();
        assert_eq!(found.groups, [40, 41, 77]);
        assert!(look_up_in(PASSWD, GROUP, "web", &["nope".into()]).is_err());
    }
}
