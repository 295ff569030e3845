//! A real image: Debian or Ubuntu as this machine's own package sources have it, in six layers.
//!
//! | layer | written by | what |
//! |---|---|---|
//! | 0 | GNU tar, GNU form | the distribution's minimal base |
//! | 1 | this crate, PAX form | python3 and its regression tests, git, gcc, sqlite3 |
//! | 2 | this crate, PAX form | deletes and replaces files and whole folders |
//! | 3 | this crate, PAX form | only modes, owners and attributes |
//! | 4 | GNU tar, PAX form, sparse | an application with every kind of entry |
//! | 5 | this crate, PAX form | removes parts of the application |

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::archive::{Form, Image, Layer};
use super::cache;
use super::layer::LayerWriter;
use super::snapshot::Snapshot;
use crate::oracle;
use crate::tree::{DirectoryLinks, Listing};

/// What the image is called in its archives.
pub const REFERENCE: &str = "strata-test/debian:1";

/// The folder with the image's archives, its layers `0.tar` to `5.tar`, and `listing.txt`.
///
/// Making it needs root (or `sudo` without a password), mmdebstrap, and package sources that answer.
pub fn folder() -> Result<PathBuf> {
    if let Some(folder) = cache::get(NAME) {
        return Ok(folder);
    }
    if !rustix::process::geteuid().is_root() {
        return make_as_root();
    }
    cache::get_or_make(NAME, make)
}

/// The image's folder if it was made before.
pub fn kept() -> Option<PathBuf> {
    cache::get(NAME)
}

/// The layers' tars, bottom first.
pub fn layers(folder: &Path) -> Vec<PathBuf> {
    (0..LAYERS).map(|number| folder.join(format!("{number}.tar"))).collect()
}

/// The tree that GNU tar makes of the layers.
pub fn listing(folder: &Path) -> Result<Listing> {
    Ok(Listing::from_text(&fs::read_to_string(folder.join("listing.txt"))?))
}

fn make_as_root() -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name("test-images");
    let cache = cache::folder();
    let status = Command::new("sudo")
        .args(["-n", "env", &format!("STRATA_TEST_CACHE={}", cache.display())])
        .arg(program)
        .arg("debian")
        .stdout(Stdio::null())
        .status();
    ensure!(status.is_ok_and(|status| status.success()), "needs root or sudo, to make owners and devices");
    cache::get(NAME).context("the image is not in the cache")
}

fn make(folder: &Path) -> Result<()> {
    let root = folder.join("root");
    base(&root)?;
    let mut layers = vec![packed_by_tar(folder, 0, &root, "gnu", None)?];
    let stages: [(&str, &str, Writer); 5] = [
        ("apt-get install python3 git gcc libc6-dev sqlite3", PACKAGES, Writer::Own),
        ("delete and replace", CHANGES, Writer::Own),
        ("modes and owners", MODES, Writer::Own),
        ("application", APPLICATION, Writer::GnuTar),
        ("trim the application", TRIM, Writer::Own),
    ];
    for (number, (created_by, script, writer)) in (1..).zip(stages) {
        let before = Snapshot::take(&root)?;
        run(script, &root).with_context(|| created_by.to_owned())?;
        let mut layer = match writer {
            Writer::Own => {
                let path = folder.join(format!("{number}.tar"));
                let mut out = LayerWriter::new(std::io::BufWriter::new(File::create(&path)?));
                before.write_changes(&root, &mut out)?;
                out.finish()?.flush()?;
                Layer::of(&path, created_by)?
            }
            Writer::GnuTar => packed_by_tar(folder, number, &root, "posix", Some(&before.changed(&root)?))?,
        };
        created_by.clone_into(&mut layer.created_by);
        layers.push(layer);
    }
    fs::remove_dir_all(&root)?;

    let oracle = folder.join("oracle");
    fs::create_dir(&oracle)?;
    oracle::extract(&self::layers(folder), &oracle)?;
    fs::write(folder.join("listing.txt"), Listing::of(&oracle, DirectoryLinks::Counted)?.to_text())?;
    fs::remove_dir_all(&oracle)?;

    let image = Image {
        reference: REFERENCE.to_owned(),
        layers,
        config: json!({
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
            "Cmd": ["bash"],
        }),
    };
    for form in Form::ALL {
        image.write(form, &folder.join(form.file_name()))?;
    }
    Ok(())
}

enum Writer {
    Own,
    GnuTar,
}

/// Lets mmdebstrap make the base from this machine's own package sources.
fn base(root: &Path) -> Result<()> {
    let (suite, sources) = package_sources()?;
    let mut child = Command::new("mmdebstrap")
        .args(["--quiet", "--mode=root", "--variant=minbase", &suite])
        .arg(root)
        .stdin(Stdio::piped())
        .spawn()
        .context("start mmdebstrap")?;
    child.stdin.take().context("stdin is a pipe")?.write_all(sources.as_bytes())?;
    let status = child.wait()?;
    ensure!(status.success(), "mmdebstrap: {status}");
    Ok(())
}

/// This machine's suite and the sources that speak of it; sources of other vendors are left out.
fn package_sources() -> Result<(String, String)> {
    let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = suite.context("the system names no release (VERSION_CODENAME)")?.trim_matches('"').to_owned();
    let is_of_suite = |word: &str| word == suite || word.strip_prefix(&suite).is_some_and(|rest| rest.starts_with('-'));

    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(folder) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(folder.filter_map(|entry| entry.ok().map(|entry| entry.path())));
    }
    files.sort();
    let mut sources = String::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        if file.extension().is_some_and(|extension| extension == "sources") {
            for stanza in text.split("\n\n") {
                let suites = stanza.lines().find_map(|line| line.strip_prefix("Suites:")).unwrap_or_default();
                if suites.split_whitespace().any(is_of_suite) {
                    sources.push_str(stanza.trim());
                    sources.push_str("\n\n");
                }
            }
        } else {
            let lines =
                text.lines().filter(|line| line.starts_with("deb ") && line.split_whitespace().any(is_of_suite));
            lines.for_each(|line| sources.extend([line, "\n"]));
        }
    }
    if sources.is_empty() {
        bail!("/etc/apt has no package source for {suite}");
    }
    Ok((suite, sources))
}

/// Runs a stage with the tree in `$ROOT`, in a mount namespace of its own.
fn run(script: &str, root: &Path) -> Result<()> {
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "bash", "-euxo", "pipefail", "-c", script])
        .env("ROOT", root)
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .context("start unshare")?;
    let log = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&log));
    Ok(())
}

/// Packs the whole tree, or only `paths`, with GNU tar.
fn packed_by_tar(folder: &Path, number: usize, root: &Path, form: &str, paths: Option<&[Vec<u8>]>) -> Result<Layer> {
    let tar = folder.join(format!("{number}.tar"));
    let mut command = Command::new("tar");
    command.args(["--create", "--numeric-owner", "--sort=name", &format!("--format={form}"), "--directory"]);
    command.arg(root).arg("--file").arg(&tar);
    match paths {
        Some(_) => command
            .args(["--sparse", "--xattrs", "--xattrs-include=*", "--pax-option=delete=atime,delete=ctime"])
            .args(["--no-recursion", "--null", "--verbatim-files-from", "--files-from=-"])
            .stdin(Stdio::piped()),
        None => command.arg(".").stdin(Stdio::null()),
    };
    let mut child = command.spawn().context("start tar")?;
    if let (Some(paths), Some(mut stdin)) = (paths, child.stdin.take()) {
        for path in paths {
            stdin.write_all(path)?;
            stdin.write_all(b"\0")?;
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "tar: {status}");
    Layer::of(&tar, "base")
}

const NAME: &str = "debian-3";
const LAYERS: usize = 6;

/// apt runs outside, so that it has this machine's configuration; dpkg runs inside.
const PACKAGES: &str = r#"
mount -t proc proc "$ROOT/proc"
apt=(apt-get -q -y -o "Dir=$ROOT" -o "DPkg::Chroot-Directory=$ROOT" -o APT::Sandbox::User=root
    -o APT::Install-Recommends=false -o Dpkg::Use-Pty=false)
"${apt[@]}" update
"${apt[@]}" install python3 git gcc libc6-dev sqlite3 '^libpython3\.[0-9]+-testsuite$'
"${apt[@]}" clean
rm -f "$ROOT"/var/cache/apt/*.bin
"#;

const CHANGES: &str = r#"
cd "$ROOT"
# Whole folders: gone; made again with other content; renamed.
rm -rf usr/share/doc usr/share/lintian
rm -rf usr/share/man usr/share/bug && mkdir -p usr/share/man/man1 && echo none > usr/share/man/README
mv usr/share/locale usr/share/locale-moved
# Single files: gone, replaced by rename, changed in place.
rm usr/bin/whoami usr/bin/tac etc/debian_version
cp -a etc/profile etc/profile.new && echo '# replaced' >> etc/profile.new && mv etc/profile.new etc/profile
echo '# changed' >> etc/bash.bashrc
# Other kinds in place of what was there.
rm etc/issue && mkdir etc/issue && echo text > etc/issue/text
rm -rf usr/share/pixmaps && echo file > usr/share/pixmaps
rm -rf usr/games && ln -s ../tmp usr/games
rm -f usr/share/info/dir && rm -rf usr/share/info && mkdir usr/share/info && ln -s /etc/passwd usr/share/info/link
# A hard link made and a group broken up.
ln usr/bin/sqlite3 usr/bin/sqlite3-twin
mkdir -p opt/one/two/three && echo deep > opt/one/two/three/file
"#;

const MODES: &str = r#"
cd "$ROOT"
chmod 0711 srv media && chmod 1777 opt/one && chmod 2755 opt/one/two
chown 33:33 srv && chown -h 1000:1000 usr/games
chown 1000:50 opt/one/two/three/file && chmod 4755 usr/bin/env
find usr/lib/python3 -type d -exec chmod g+w {} +
setfattr -n user.note -v 'kept across layers' usr/bin/git
"#;

const APPLICATION: &str = r#"
mkdir "$ROOT/app" && cd "$ROOT/app"
cat > hello.c <<'C'
#include <stdio.h>
#include <math.h>
int main(int argc, char **argv) { printf("hello %d %.3f\n", argc, sqrt(2.0 * argc)); return argc - 1; }
C
mkdir kinds && cd kinds
echo one > a && ln a b && ln a c && ln ../../usr/bin/git git-link
mkfifo fifo && mknod null c 1 3 && mknod block b 7 99
ln -s "$(printf 'target-%.0s' {1..40})" long-target && ln -s a link && touch -h -d @1234567890.987654321 link
echo n > "$(printf 'n%.0s' {1..255})" && echo x > $'latin-\xe9-name' && echo y > $'line\nend and space'
mkdir -p "$(printf 'deep-folder-%.0s/' {1..30})" && echo z > "$(printf 'deep-folder-%.0s/' {1..30})file"
truncate -s 64M sparse && printf start | dd of=sparse conv=notrunc status=none
printf middle | dd of=sparse conv=notrunc bs=1 seek=30000000 status=none
truncate -s 3M all-hole
echo caps > capable && chmod 755 capable && setcap cap_net_bind_service,cap_net_raw=ep capable
for i in 1 2 3; do setfattr -n "user.many-$i" -v "$(printf "value-$i-%.0s" {1..50})" capable; done
setfattr -n user.binary -v 0x00ff00fe a && setfattr -n user.empty a
echo id > big-id && chown 3000000:4000000000 big-id && chmod 6711 big-id
touch -d @1.000000001 a && touch -d @-1.5 capable && touch -d @4102444800.5 big-id
mkdir empty sticky && chmod 1777 sticky && chmod 000 empty && touch -d @7.7 empty
: > empty-file
mkdir ../trim && for i in $(seq 300); do echo "$i" > "../trim/file-$i"; done
"#;

const TRIM: &str = r#"
cd "$ROOT/app"
rm trim/file-?? kinds/c kinds/git-link && rm -rf kinds/sticky && mkdir kinds/sticky
"#;
