//! The command as mount(8)'s and umount(8)'s helper, found by them as on a machine where it is installed.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use strata_tests::plain_user;
use strata_tests::strata::{Strata, User, finish, program};
use strata_tests::tier::{Need, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("mounts::privileged_helpers_of_mount_and_umount", &[Need::Fuse], helpers);
    suite.add("mounts::privileged_fuse_overlayfs_by_name", &[Need::Fuse], by_name);
    suite.add("mounts::privileged_size_of_containers_and_mounts", &[Need::Fuse, Need::Busybox], limited_containers);
    let user = [Need::Fuse, Need::Program("unshare")];
    suite.add("mounts::rootless_in_a_namespace_of_ones_own", &user, own_namespace);
    suite.add("mounts::rootless_for_the_user_s_session", &[Need::Fuse, Need::Program("fusermount3")], session);
    suite.add("mounts::privileged_umount_returns_when_all_is_written", &[Need::Fuse], written_at_umount);
}

/// In mounts of its own: the helpers lie in an overlay over /usr/sbin, and /etc/fstab is another.
const INSTALLED: &str = r#"
mkdir tools layers
mount -t tmpfs tools tools
mkdir tools/up tools/work
mount -t overlay -o lowerdir=/usr/sbin,upperdir=tools/up,workdir=tools/work tools /usr/sbin
cp "$STRATA" /usr/sbin/strata-under-test
ln -s strata-under-test /usr/sbin/mount.fuse.strata
ln -s strata-under-test /usr/sbin/umount.fuse.strata
cd layers
mkdir 'l,1' 'l:2' u w m
echo one > l,1/one
echo two > l:2/two
mknod l,1/null c 1 3
refuse() { if "$@"; then exit 90; fi; }
flags() { findmnt -n -o "$1" "$PWD/m"; }
"#;

const HELPERS: &str = r#"
mount -t fuse.strata my-source m -o "lowerdir=$PWD/l\\:2" -o "upperdir=$PWD/u,workdir=$PWD/w" -o noatime,nosuid
test "$(flags SOURCE) $(flags FSTYPE)" = 'my-source fuse.strata'
flags OPTIONS | grep -w nosuid | grep -w noatime | grep -vw nodev
grep -x two m/two
echo new > m/new
mount -o remount,ro m
flags OPTIONS | grep -w '^ro'
refuse touch m/no
mount -o remount,rw m
touch m/yes
mount -o remount,rw,noexec m
flags OPTIONS | grep -w noexec
exec 3> m/open
refuse mount -o remount,ro m
exec 3>&-
umount m
test -e u/yes
refuse mountpoint -q m

# Devices and set-user-id work for root unless refused.
mount -t fuse.strata s m -o "lowerdir=$PWD/l\\,1"
flags OPTIONS | grep -vw 'nodev\|nosuid'
echo x > m/null
refuse mount -o remount,rw m
umount m

# By a line of /etc/fstab, and as a plain word.
printf '%s\n' "table $PWD/m fuse.strata lowerdir=$PWD/l\\:2,nodev,x-systemd.automount,noauto 0 0" > ../tools/fstab
mount --bind ../tools/fstab /etc/fstab
mount m
test "$(flags SOURCE)" = table
grep -x two m/two
umount.fuse.strata "$PWD/m"
for program in mount umount; do
    for flag in -h --help; do $program.fuse.strata $flag | grep "^usage: $program.fuse.strata"; done
done
mount.fuse.strata --version | grep strata
refuse mount.fuse.strata a m -o "lowerdir=l\\:2::l\\,1" 2> error
grep 'data-only layers' error
refuse mount.fuse.strata a m -o "lowerdir=l:2,wrong-option" 2> error
grep 'unknown mount option "wrong-option"' error
refuse mountpoint -q m
"#;

const BY_NAME: &str = r#"
ln -s /usr/sbin/strata-under-test fuse-overlayfs
./fuse-overlayfs --version | grep '^fuse-overlayfs: version'
./fuse-overlayfs -o 'lowerdir=l\,1:l\:2,upperdir=u' -o workdir=w,squash_to_root,auto_unmount m
test "$(flags SOURCE) $(flags FSTYPE)" = 'fuse-overlayfs fuse.fuse-overlayfs'
grep -x one m/one
grep -x two m/two
echo x > m/x
chown 5:5 m/x
test "$(stat -c %u:%g m/x)" = 0:0
fusermount3 -u m || umount m
./fuse-overlayfs -f -o 'lowerdir=l\:2' m & server=$!
for _ in $(seq 100); do if mountpoint -q m; then break; fi; sleep 0.1; done
grep -x two m/two
kill -0 $server
umount m
wait $server
"#;

/// Dirty pages of a mapping, data in the page cache and a name made just before the end.
const WRITTEN: &str = r#"
for round in 1 2 3; do
    mount -t fuse.strata s m -o "lowerdir=$PWD/l\\:2,upperdir=$PWD/u,workdir=$PWD/w$SIZE"
    python3 - m/mapped$round <<'PY'
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 8 << 20)
m = mmap.mmap(fd, 8 << 20)
for at in range(0, 8 << 20, 4096): m[at:at + 4] = b'page'
PY
    head -c 20000000 /dev/zero | tr '\0' x > m/large$round; mkdir m/dir$round; echo last > m/dir$round/last
    umount m
    # Read at once, past the mount.
    test "$(grep -c . u/dir$round/last)" = 1
test "$(stat -c %s u/large$round)" = 20000000
    test "$(tr -d '\0' < u/mapped$round | wc -c)" = 8192
    mount -t fuse.strata s m -o "lowerdir=$PWD/l\\:2,upperdir=$PWD/u,workdir=$PWD/w$SIZE"
    test "$(tr -d '\0' < m/mapped$round | wc -c)" = 8192
umount m
done
"#;

const LIMITED: &str = r#"
image=$("$STRATA" --root "$STORE" images -q)
test "$("$STRATA" --root "$STORE" run --rm --size 10m "$image" sh -c 'df -k / | tail -1' | awk '{print $2}')" = 10240
"$STRATA" --root "$STORE" run --name full --storage-opt size=10m "$image" sh -c '
    if dd if=/dev/zero of=/file bs=64k 2> /tmp/error; then exit 1; fi
    grep "No space left" /tmp/error
    size=$(stat -c %s /file); test "$size" -gt 10200000 && test "$size" -le 10485760
    rm /file && dd if=/dev/zero of=/file bs=1M count=9 2> /dev/null'
"$STRATA" --root "$STORE" inspect full | grep '"size": "10485760"'
mkdir point
"$STRATA" --root "$STORE" mount --rw full point
test "$(df -k point | tail -1 | awk '{print $2}')" = 10240
"$STRATA" --root "$STORE" umount point
id=$("$STRATA" --root "$STORE" mount --rw --size 20m "$image" point)
test "$(df -k point | tail -1 | awk '{print $2}')" = 20480
"$STRATA" --root "$STORE" umount point
"$STRATA" --root "$STORE" mount --rw "$id" point
test "$(df -k point | tail -1 | awk '{print $2}')" = 20480
"$STRATA" --root "$STORE" umount point
"$STRATA" --root "$STORE" rm full "$id"
if "$STRATA" --root "$STORE" run --storage-opt color=red "$image" true; then exit 1; fi
"#;

fn limited_containers() -> Result<()> {
    let strata = Strata::new()?;
    strata.load(&strata_tests::image::busybox::folder()?.join("docker.tar"))?;
    let program = fs::canonicalize(program().context("no strata binary")?)?;
    let mut command = Command::new("timeout");
    command.args(["100", "bash", "-euxo", "pipefail", "-c", LIMITED]).current_dir(strata.folder());
    let finished = finish(command.env("STRATA", program).env("STORE", strata.state()))?;
    ensure!(finished.status.success(), "{finished}");
    Ok(())
}

/// What a plain user may do with a mount of folders, wherever it is made.
const AS_USER: &str = r#"
refuse() { if "$@"; then exit 90; fi; }
cat p/dir/file
test "$(df -k p | tail -1 | awk '{print $2}')" = 10240
echo new > p/new
chmod 640 p/new
mv p/dir p/moved
echo more >> p/moved/file
ln p/moved/file p/linked
test "$(stat -c %h p/linked)" = 2
rm p/gone
refuse test -e p/gone
setfattr -n user.note -v text p/new
getfattr -n user.note p/new
mkfifo p/fifo
ln -s new p/link
python3 - p <<'PY'
import fcntl, os, sys
os.chdir(sys.argv[1])
fd = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o600)
os.write(fd, b'unnamed')
assert os.fstat(fd).st_size == 7
held = os.open('held', os.O_CREAT | os.O_RDWR)
os.unlink('held')
os.write(held, b'x')
assert os.fstat(held).st_nlink == 0 and os.fstat(held).st_size == 1
fcntl.flock(held, fcntl.LOCK_EX)
os.renames('new', 'again/new')
PY
grep -x new p/again/new
refuse dd if=/dev/zero of=p/large bs=1M count=11
rm p/large
dd if=/dev/zero of=p/large bs=1M count=9
"#;

const FOLDERS: &str = r#"
mkdir -p low/dir up wk p
echo low > low/dir/file
echo x > low/gone
"#;

fn user_script(strata: &Strata, prefix: &[&str], parts: &[&str]) -> Result<()> {
    let mut command = Command::new("timeout");
    command.args(["100"]).args(prefix).args(["bash", "-euxo", "pipefail", "-c", &parts.concat()]);
    command.current_dir(strata.folder()).env("STRATA", strata.folder().join("strata")).env("HOME", strata.folder());
    plain_user::demote(&mut command);
    let finished = finish(&mut command)?;
    ensure!(finished.status.success(), "{finished}");
    Ok(())
}

/// Without a helper: the user is root of a namespace, and mounts himself.
fn own_namespace() -> Result<()> {
    let strata = Strata::of(User::Plain)?;
    let mount = "ln -s \"$STRATA\" fuse-overlayfs
./fuse-overlayfs -o lowerdir=low,upperdir=up,workdir=wk,size=10m p
findmnt -n -o FSTYPE,SOURCE \"$PWD/p\" | grep '^fuse.fuse-overlayfs fuse-overlayfs'
";
    let end = "chown 0:0 p/again/new
umount p
grep -x new up/again/new
unshare --mount --fork true
";
    user_script(&strata, &["unshare", "--user", "--map-root-user", "--mount"], &[FOLDERS, mount, AS_USER, end])
}

/// By fusermount3: everybody's namespace, the user's own files. Other owners and devices lie in an attribute.
fn session() -> Result<()> {
    let strata = Strata::of(User::Plain)?;
    let mount = "\"$STRATA\" mount --lower low --upper up --work wk --size 10m -o xattr_permissions=2 p\n";
    let end = "\"$STRATA\" umount p
test -f up/again/new
getfattr --only-values -n user.containers.override_stat up/again/new | grep ':0640:file$'
";
    user_script(&strata, &[], &[FOLDERS, mount, AS_USER, end])
}

fn script(parts: &[&str]) -> Result<()> {
    let strata = Strata::new()?;
    let program = fs::canonicalize(program().context("no strata binary")?)?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation=private", "timeout", "100", "bash", "-euxo", "pipefail", "-c"]);
    command.arg(parts.concat()).current_dir(strata.folder()).env("STRATA", program).env("SIZE", "");
    command.env("STRATA_ROOT", strata.state());
    let finished = finish(&mut command)?;
    ensure!(finished.status.success(), "{finished}");
    Ok(())
}

fn helpers() -> Result<()> {
    script(&[INSTALLED, HELPERS])
}

fn by_name() -> Result<()> {
    script(&[INSTALLED, BY_NAME])
}

fn written_at_umount() -> Result<()> {
    script(&[INSTALLED, WRITTEN])?;
    script(&["SIZE=,size=500m\n", INSTALLED, WRITTEN])
}
