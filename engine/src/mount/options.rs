//! The options of `mount -o`: overlayfs's words, fuse-overlayfs's, and those every file system has.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use strata_unionfs::{Options, Passthrough, UserXattr};

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
}

impl MountOptions {
    /// Reads a comma-separated list; `\,` is a comma in a name and `\:` a colon in a list of folders.
    pub fn parse(&mut self, text: &OsStr) -> Result<(), InvalidOption> {
        for option in split(text.as_bytes(), b',') {
            if !option.is_empty() {
                self.parse_one(&option)?;
            }
        }
        Ok(())
    }

    fn parse_one(&mut self, option: &[u8]) -> Result<(), InvalidOption> {
        let (name, value) = match option.iter().position(|byte| *byte == b'=') {
            Some(position) => (&option[..position], Some(&option[position + 1..])),
            None => (option, None),
        };
        let name = String::from_utf8_lossy(name).into_owned();
        let path = || match value {
            Some(value) if !value.is_empty() => Ok(PathBuf::from(OsString::from_vec(unescape(value)))),
            _ => Err(InvalidOption::NoValue(name.clone())),
        };
        let wrong = || InvalidOption::Value {
            name: name.clone(),
            value: String::from_utf8_lossy(value.unwrap_or_default()).into_owned(),
        };
        let options = &mut self.options;
        match name.as_str() {
            "lowerdir" => {
                let value = value.filter(|value| !value.is_empty()).ok_or(InvalidOption::NoValue(name.clone()))?;
                let folders = split(value, b':');
                // An empty part would be overlayfs's data-only layers.
                if folders.iter().any(Vec::is_empty) {
                    return Err(wrong());
                }
                self.lower = folders.iter().map(|folder| OsString::from_vec(unescape(folder)).into()).collect();
            }
            "lowerdir+" => self.lower.push(path()?),
            "upperdir" => self.upper = Some(path()?),
            "workdir" => self.work = Some(path()?),
            "ro" => options.read_only = true,
            "rw" => {
                options.read_only = false;
                self.writable = true;
            }
            "nosuid" => options.nosuid = true,
            "suid" => options.nosuid = false,
            "nodev" => options.nodev = true,
            "dev" => options.nodev = false,
            "noexec" => options.noexec = true,
            "exec" => options.noexec = false,
            "noatime" => options.noatime = true,
            "atime" => options.noatime = false,
            "allow_other" => options.allow_other = true,
            "volatile" => options.volatile = true,
            "userxattr" => options.userxattr = UserXattr::On,
            "passthrough" => match value {
                None | Some(b"auto") => options.passthrough = Passthrough::Auto,
                Some(b"off") => options.passthrough = Passthrough::Off,
                Some(_) => return Err(wrong()),
            },
            "threads" => {
                let text = value.and_then(|value| std::str::from_utf8(value).ok()).ok_or_else(wrong)?;
                options.threads =
                    Some(text.parse().ok().filter(|threads| (1..=64).contains(threads)).ok_or_else(wrong)?);
            }
            "fsname" | "source" => {
                options.source = value.and_then(|value| std::str::from_utf8(value).ok()).ok_or_else(wrong)?.to_owned();
            }
            // Always so here.
            "default_permissions"
            | "redirect_dir"
            | "metacopy"
            | "xino"
            | "index"
            | "nfs_export"
            | "static_nlink"
            | "timeout"
            | "threaded"
            | "fast_ialloc"
            | "max_write"
            | "max_idle_threads"
            | "max_threads"
            | "noacl"
            | "xattr_permissions"
            | "context"
            | "relatime"
            | "norelatime"
            | "strictatime"
            | "diratime"
            | "nodiratime"
            | "auto"
            | "noauto"
            | "user"
            | "users"
            | "nouser"
            | "nofail"
            | "_netdev"
            | "defaults"
            | "async"
            | "dev_t"
            | "mand"
            | "nomand"
            | "lazytime"
            | "nolazytime" => {}
            // `x-` and `comment=` are notes for mount(8) and systemd.
            other if other.starts_with("x-") || other.starts_with("X-") || other == "comment" => {}
            _ => return Err(InvalidOption::Unknown(name)),
        }
        Ok(())
    }

    /// Makes every path absolute, as the file system process has a working directory of its own.
    pub fn make_absolute(&mut self, base: &Path) {
        let paths = self.lower.iter_mut().chain(&mut self.upper).chain(&mut self.work);
        for path in paths {
            *path = base.join(&*path);
        }
    }
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

#[cfg(test)]
mod tests {
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
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let value = |name: &str, value: &str| InvalidOption::Value { name: name.to_owned(), value: value.to_owned() };
        for (text, error) in [
            ("nope", InvalidOption::Unknown("nope".to_owned())),
            ("upperdir", InvalidOption::NoValue("upperdir".to_owned())),
            ("lowerdir=", InvalidOption::NoValue("lowerdir".to_owned())),
            ("lowerdir=/a::/b", value("lowerdir", "/a::/b")),
            ("threads=0", value("threads", "0")),
            ("passthrough=x", value("passthrough", "x")),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn relative_paths_count_from_the_base() {
        let mut options = parse("lowerdir=a:/b,upperdir=u").unwrap();
        options.make_absolute(Path::new("/base"));
        assert_eq!(options.lower, [PathBuf::from("/base/a"), PathBuf::from("/b")]);
        assert_eq!(options.upper.as_deref(), Some(Path::new("/base/u")));
    }
}
