//! The options of `mount -o`: overlayfs's words, fuse-overlayfs's, and those every file system has.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use strata_unionfs::{IdMap, Options, Passthrough, Transport, UserXattr, XattrPermissions};

use crate::size::parse_size;

/// What a list of options says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Folders, topmost first.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: Option<PathBuf>,
    /// Its scratch folder.
    pub work: Option<PathBuf>,
    /// A writable layer is wanted and kept in the store.
    pub writable: bool,
    /// What is mounted already is to be changed.
    pub remount: bool,
    /// Everything about how the mount behaves.
    pub options: Options,
}

/// An option that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOption {
    /// Nobody knows it.
    #[error("unknown mount option {0:?}")]
    Unknown(String),
    /// It needs a value.
    #[error("mount option {0:?} needs a value")]
    NoValue(String),
    /// Its value makes no sense.
    #[error("mount option {name:?} cannot be {value:?}")]
    Value {
        /// The option.
        name: String,
        /// The value.
        value: String,
    },
    /// It names layers that are there for their data alone, by overlayfs's `::` or `datadir+`.
    #[error(
        "mount option {0:?} names data-only layers, which are not supported; as lower folders, after a single colon, \
         they serve their data as well, but their names are seen"
    )]
    DataOnly(String),
}

impl MountOptions {
    /// Reads a comma-separated list; `\,` is a comma in a name and `\:` a colon in a list of folders.
    pub fn parse(&mut self, text: &OsStr) -> Result<(), InvalidOption> {
        let mut last_map = None;
        let mut parts = split(text.as_bytes(), b',').into_iter();
        while let Some(mut part) = parts.next() {
            // A security context may hold commas, inside quotes.
            while is_context(&part) && part.iter().filter(|byte| **byte == b'"').count() == 1 {
                let Some(rest) = parts.next() else { break };
                part.push(b',');
                part.extend(rest);
            }
            if part.is_empty() {
                continue;
            }
            let option = match last_map {
                // `uidmapping=0:10:1,1:20:5`, as the manual of fuse-overlayfs has it.
                Some(name) if is_numbers(&part) => Parsed { name, value: Some(&part), text: &part },
                _ => Parsed::new(&part),
            };
            last_map = match option.name {
                b"uidmapping" => Some(b"uidmapping".as_slice()),
                b"gidmapping" => Some(b"gidmapping".as_slice()),
                _ => None,
            };
            let known = self.layers(&option)? || self.behaviour(&option)? || self.owners(&option)?;
            if !known && !means_nothing(&option) {
                return Err(InvalidOption::Unknown(String::from_utf8_lossy(option.text).into_owned()));
            }
        }
        Ok(())
    }

    /// Takes an option that says what is mounted; returns whether it was one.
    fn layers(&mut self, option: &Parsed<'_>) -> Result<bool, InvalidOption> {
        match option.name {
            b"lowerdir" => {
                let value = option.required()?;
                let folders = split(value, b':');
                match folders.iter().position(Vec::is_empty) {
                    None => {}
                    Some(place) if place > 0 && place + 1 < folders.len() => return Err(option.data_only()),
                    Some(_) => return Err(option.wrong()),
                }
                self.lower = folders.iter().map(|folder| OsString::from_vec(unescape(folder)).into()).collect();
            }
            b"lowerdir+" => self.lower.push(option.path()?),
            b"datadir+" => return Err(option.data_only()),
            b"upperdir" => self.upper = Some(option.path()?),
            b"workdir" => self.work = Some(option.path()?),
            b"ro" => self.options.read_only = true,
            b"rw" => {
                self.options.read_only = false;
                self.writable = true;
            }
            b"remount" => self.remount = true,
            b"size" => self.options.limits.bytes = Some(option.size()?),
            b"inodes" | b"nr_inodes" => self.options.limits.inodes = Some(option.size()?),
            b"fsname" | b"source" => option.string()?.clone_into(&mut self.options.source),
            b"subtype" => option.string()?.clone_into(&mut self.options.subtype),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Takes an option about how the mount behaves; returns whether it was one.
    fn behaviour(&mut self, option: &Parsed<'_>) -> Result<bool, InvalidOption> {
        let options = &mut self.options;
        let (flag, value) = match option.name {
            b"nosuid" => (&mut options.nosuid, true),
            b"suid" => (&mut options.nosuid, false),
            b"nodev" => (&mut options.nodev, true),
            b"dev" => (&mut options.nodev, false),
            b"noexec" => (&mut options.noexec, true),
            b"exec" => (&mut options.noexec, false),
            b"noatime" => (&mut options.noatime, true),
            b"atime" | b"relatime" | b"strictatime" => (&mut options.noatime, false),
            b"nodiratime" => (&mut options.nodiratime, true),
            b"diratime" => (&mut options.nodiratime, false),
            b"nosymfollow" => (&mut options.nosymfollow, true),
            b"symfollow" => (&mut options.nosymfollow, false),
            b"sync" => (&mut options.sync, true),
            b"async" => (&mut options.sync, false),
            b"dirsync" => (&mut options.dirsync, true),
            b"allow_other" => (&mut options.allow_other, true),
            b"volatile" => (&mut options.volatile, true),
            b"fsync" => (&mut options.volatile, option.value == Some(b"0")),
            b"static_nlink" => (&mut options.static_nlink, true),
            b"named_whiteouts" => (&mut options.named_whiteouts, true),
            b"noacl" => (&mut options.noacl, true),
            b"acl" => (&mut options.noacl, false),
            b"noxattrs" => (&mut options.noxattrs, !matches!(option.value, Some(b"0"))),
            b"redirect_dir" => {
                let value = match option.value {
                    None | Some(b"on") => false,
                    Some(b"off" | b"follow" | b"nofollow") => true,
                    Some(_) => return Err(option.wrong()),
                };
                (&mut options.noredirect, value)
            }
            b"userxattr" => {
                options.userxattr = UserXattr::On;
                return Ok(true);
            }
            b"passthrough" => {
                options.passthrough = match option.value {
                    None | Some(b"auto") => Passthrough::Auto,
                    Some(b"off") => Passthrough::Off,
                    Some(_) => return Err(option.wrong()),
                };
                return Ok(true);
            }
            b"transport" => {
                options.transport = match option.value {
                    None | Some(b"auto") => Transport::Auto,
                    Some(b"device") => Transport::Device,
                    Some(b"ring") => Transport::Ring,
                    Some(b"fuser") => Transport::Fuser,
                    Some(_) => return Err(option.wrong()),
                };
                return Ok(true);
            }
            b"threads" => {
                options.threads = Some(option.number().filter(|count| (1..=64).contains(count)).ok_or(option.wrong())?);
                return Ok(true);
            }
            _ => return Ok(false),
        };
        *flag = value;
        Ok(true)
    }

    /// Takes an option about who owns what; returns whether it was one.
    fn owners(&mut self, option: &Parsed<'_>) -> Result<bool, InvalidOption> {
        let options = &mut self.options;
        match option.name {
            b"uidmapping" | b"gidmapping" => {
                let map = std::str::from_utf8(option.required()?).ok().and_then(IdMap::parse).ok_or(option.wrong())?;
                let kept = if option.name == b"uidmapping" { &mut options.uid_map } else { &mut options.gid_map };
                kept.get_or_insert_default().0.extend(map.0);
            }
            b"squash_to_root" => {
                // Single ids take precedence, wherever they stand.
                options.squash_uid.get_or_insert(0);
                options.squash_gid.get_or_insert(0);
            }
            b"squash_to_uid" => options.squash_uid = Some(option.number().ok_or(option.wrong())?),
            b"squash_to_gid" => options.squash_gid = Some(option.number().ok_or(option.wrong())?),
            b"xattr_permissions" => {
                options.xattr_permissions = match option.value {
                    Some(b"0") => XattrPermissions::Off,
                    Some(b"1") => XattrPermissions::Privileged,
                    Some(b"2") => XattrPermissions::User,
                    _ => return Err(option.wrong()),
                };
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Makes every path absolute, as the file system process has a working directory of its own.
    pub fn make_absolute(&mut self, base: &Path) {
        let paths = self.lower.iter_mut().chain(&mut self.upper).chain(&mut self.work);
        for path in paths {
            *path = base.join(&*path);
        }
    }
}

/// One option.
struct Parsed<'a> {
    name: &'a [u8],
    value: Option<&'a [u8]>,
    /// All of it.
    text: &'a [u8],
}

impl<'a> Parsed<'a> {
    fn new(text: &'a [u8]) -> Parsed<'a> {
        match text.iter().position(|byte| *byte == b'=') {
            Some(position) => Parsed { name: &text[..position], value: Some(&text[position + 1..]), text },
            None => Parsed { name: text, value: None, text },
        }
    }

    fn name(&self) -> String {
        String::from_utf8_lossy(self.name).into_owned()
    }

    fn wrong(&self) -> InvalidOption {
        let value = String::from_utf8_lossy(self.value.unwrap_or_default()).into_owned();
        InvalidOption::Value { name: self.name(), value }
    }

    fn data_only(&self) -> InvalidOption {
        InvalidOption::DataOnly(String::from_utf8_lossy(self.text).into_owned())
    }

    fn required(&self) -> Result<&'a [u8], InvalidOption> {
        self.value.filter(|value| !value.is_empty()).ok_or_else(|| InvalidOption::NoValue(self.name()))
    }

    fn path(&self) -> Result<PathBuf, InvalidOption> {
        Ok(OsString::from_vec(unescape(self.required()?)).into())
    }

    fn string(&self) -> Result<String, InvalidOption> {
        String::from_utf8(unescape(self.required()?)).map_err(|_| self.wrong())
    }

    fn size(&self) -> Result<u64, InvalidOption> {
        let text = self.string()?;
        parse_size(&text).ok().filter(|size| *size > 0).ok_or_else(|| self.wrong())
    }

    fn number<T: std::str::FromStr>(&self) -> Option<T> {
        std::str::from_utf8(self.value?).ok()?.parse().ok()
    }
}

/// Returns whether an option may be given without any effect: because it says what is so here anyway, because it is
/// about the program it was made for, or because it is a note for mount(8) or systemd.
fn means_nothing(option: &Parsed<'_>) -> bool {
    let Ok(name) = std::str::from_utf8(option.name) else { return false };
    MEANINGLESS.contains(&name) || name.starts_with("x-") || name.starts_with("X-")
}

fn is_context(part: &[u8]) -> bool {
    ["context=\"", "fscontext=\"", "defcontext=\"", "rootcontext=\""]
        .iter()
        .any(|name| part.starts_with(name.as_bytes()))
}

fn is_numbers(part: &[u8]) -> bool {
    part.contains(&b':') && part.iter().all(|byte| byte.is_ascii_digit() || *byte == b':')
}

/// Splits at `separator` where no backslash stands before it; the backslashes stay.
fn split(text: &[u8], separator: u8) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        let part = parts.last_mut().expect("there is always one");
        match byte {
            b'\\' => {
                part.push(byte);
                part.extend(bytes.next());
            }
            _ if byte == separator => parts.push(Vec::new()),
            _ => part.push(byte),
        }
    }
    parts
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => out.push(bytes.next().unwrap_or(b'\\')),
            _ => out.push(byte),
        }
    }
    out
}

/// By whose they are: overlayfs, fuse-overlayfs, libfuse and its helpers, every filesystem, mount(8).
const MEANINGLESS: &[&str] = &[
    "metacopy",
    "xino",
    "index",
    "nfs_export",
    "uuid",
    "override_creds",
    "nooverride_creds",
    "default_permissions",
    "timeout",
    "threaded",
    "fast_ino",
    "fast_ino_check",
    "fast_ialloc",
    "writeback",
    "debug",
    "auto_unmount",
    "allow_root",
    "nonempty",
    "clone_fd",
    "max_idle_threads",
    "max_threads",
    "max_write",
    "max_read",
    "max_background",
    "congestion_threshold",
    "max_readahead",
    "blksize",
    "big_writes",
    "large_read",
    "kernel_cache",
    "auto_cache",
    "noauto_cache",
    "ac_attr_timeout",
    "attr_timeout",
    "entry_timeout",
    "negative_timeout",
    "use_ino",
    "readdir_ino",
    "hard_remove",
    "noforget",
    "remember",
    "async_read",
    "sync_read",
    "async_dio",
    "no_remote_lock",
    "context",
    "fscontext",
    "defcontext",
    "rootcontext",
    "seclabel",
    "norelatime",
    "nostrictatime",
    "mand",
    "nomand",
    "lazytime",
    "nolazytime",
    "iversion",
    "noiversion",
    "silent",
    "loud",
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "nofail",
    "_netdev",
    "comment",
    "helper",
    "user_id",
    "group_id",
    "rootmode",
    "fd",
    "uhelper",
    "dev_t",
];

#[cfg(test)]
mod tests {
    use strata_unionfs::{IdRange, Limits};

    use super::*;

    fn parse(text: &str) -> Result<MountOptions, InvalidOption> {
        let mut options = MountOptions::default();
        options.parse(OsStr::new(text))?;
        Ok(options)
    }

    #[test]
    fn overlayfs_s_options_and_escapes() {
        let options = parse(r"lowerdir=/a\:1:/b\,2,upperdir=/u,workdir=/w,nosuid,volatile").unwrap();
        assert_eq!(options.lower, [PathBuf::from("/a:1"), PathBuf::from("/b,2")]);
        assert_eq!(options.upper.as_deref(), Some(Path::new("/u")));
        assert_eq!(options.work.as_deref(), Some(Path::new("/w")));
        assert!(options.options.nosuid && options.options.volatile && !options.options.read_only);
    }

    #[test]
    fn words_of_other_programs_are_accepted() {
        let options =
            parse("ro,nodev,noatime,static_nlink,xino=off,x-systemd.automount,threads=2,fsname=mine").unwrap();
        assert!(options.options.read_only && options.options.nodev && options.options.noatime);
        assert_eq!((options.options.threads, options.options.source.as_str()), (Some(2), "mine"));
        assert!(parse("rw").unwrap().writable);
        assert_eq!(parse("passthrough=off").unwrap().options.passthrough, Passthrough::Off);
        assert_eq!(parse("transport=fuser").unwrap().options.transport, Transport::Fuser);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let value = |name: &str, value: &str| InvalidOption::Value { name: name.to_owned(), value: value.to_owned() };
        for (text, error) in [
            ("nope", InvalidOption::Unknown("nope".to_owned())),
            ("upperdir", InvalidOption::NoValue("upperdir".to_owned())),
            ("lowerdir=", InvalidOption::NoValue("lowerdir".to_owned())),
            ("lowerdir=:/a", value("lowerdir", ":/a")),
            ("lowerdir=/a:", value("lowerdir", "/a:")),
            ("lowerdir=/a::/b", InvalidOption::DataOnly("lowerdir=/a::/b".to_owned())),
            ("datadir+=/b", InvalidOption::DataOnly("datadir+=/b".to_owned())),
            ("threads=0", value("threads", "0")),
            ("passthrough=x", value("passthrough", "x")),
            ("transport=x", value("transport", "x")),
            ("uidmapping=0:1", value("uidmapping", "0:1")),
            ("gidmapping", InvalidOption::NoValue("gidmapping".to_owned())),
            ("squash_to_uid=root", value("squash_to_uid", "root")),
            ("xattr_permissions=3", value("xattr_permissions", "3")),
            ("size=much", value("size", "much")),
            ("size=0", value("size", "0")),
            ("redirect_dir=maybe", value("redirect_dir", "maybe")),
            ("plugins=a", InvalidOption::Unknown("plugins=a".to_owned())),
            ("1:2:3", InvalidOption::Unknown("1:2:3".to_owned())),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn owners_as_fuse_overlayfs_has_them() {
        let range = |container, host, count| IdRange { container, host, count };
        let parsed = parse("uidmapping=0:1000:1:1:100000:65536,gidmapping=0:5:1,1:6:7,ro").unwrap().options;
        assert_eq!(parsed.uid_map, Some(IdMap(vec![range(0, 1000, 1), range(1, 100_000, 65_536)])));
        assert_eq!(parsed.gid_map, Some(IdMap(vec![range(0, 5, 1), range(1, 6, 7)])));
        assert!(parsed.read_only);
        let parsed = parse("squash_to_uid=7,squash_to_root").unwrap().options;
        assert_eq!((parsed.squash_uid, parsed.squash_gid), (Some(7), Some(0)));
        assert_eq!(parse("xattr_permissions=2").unwrap().options.xattr_permissions, XattrPermissions::User);
        let parsed = parse("noacl,noxattrs=1,static_nlink,fast_ino_check=1,redirect_dir=off,fsync=0").unwrap().options;
        assert!(parsed.noacl && parsed.noxattrs && parsed.static_nlink && parsed.noredirect && parsed.volatile);
    }

    #[test]
    fn limits_and_remount() {
        let parsed = parse("size=1.5g,inodes=10k,remount,rw").unwrap();
        assert_eq!(parsed.options.limits, Limits { bytes: Some(3 << 29), inodes: Some(10_240) });
        assert!(parsed.remount && parsed.writable);
    }

    #[test]
    fn contexts_hold_commas_inside_quotes() {
        let parsed = parse(r#"context="system_u:object_r:container_file_t:s0:c1,c2",nodev,auto_unmount"#).unwrap();
        assert!(parsed.options.nodev);
    }

    #[test]
    fn relative_paths_count_from_the_base() {
        let mut options = parse("lowerdir=a:/b,upperdir=u").unwrap();
        options.make_absolute(Path::new("/base"));
        assert_eq!(options.lower, [PathBuf::from("/base/a"), PathBuf::from("/b")]);
        assert_eq!(options.upper.as_deref(), Some(Path::new("/base/u")));
    }
}
