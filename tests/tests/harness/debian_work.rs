//! Real work inside the real image, then what it changed, and who sees it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use strata_tests::image::archive::Form;
use strata_tests::image::debian;
use strata_tests::strata::{Strata, User};
use strata_tests::tier::{Need, Suite};
use strata_tests::tree::{DirectoryLinks, Listing};

pub(crate) fn register(suite: &mut Suite) {
    let needs = &[Need::Fuse, Need::Debian];
    suite.add("debian_work::privileged_programs_work", needs, || programs(User::Caller));
    suite.add("debian_work::rootless_programs_work", needs, || programs(User::Plain));
    suite.add("debian_work::privileged_python_tests_pass", needs, || python_tests(User::Caller));
    suite.add("debian_work::rootless_python_tests_pass", needs, || python_tests(User::Plain));
    suite.add("debian_work::privileged_diff_lists_exactly_the_changes", needs, || exact_diff(User::Caller));
    suite.add("debian_work::rootless_diff_lists_exactly_the_changes", needs, || exact_diff(User::Plain));
}

fn loaded(user: User) -> Result<Strata> {
    let strata = Strata::of(user)?;
    strata.load(&debian::kept().context("the Debian image")?.join(Form::DockerNew.file_name()))?;
    Ok(strata)
}

/// A program for each kind of real work; the script stops at the first that fails.
const WORK: &str = r#"
set -eux
cd /app
gcc -O1 -Wall -o hello hello.c -lm
./hello | grep -x 'hello 1 1.414'

mkdir /work && cd /work
git init -q repo && cd repo
git config user.email test@example.invalid && git config user.name test
cp -r /usr/lib/python3 /usr/include . && git add -A && git commit -q -m first
rm -rf include/linux && date > new && git add -A && git commit -q -m second
git gc -q --aggressive --prune=now && git fsck --strict --full
git checkout -q HEAD~1 && test -d include/linux && git checkout -q - && git status --porcelain | wc -l | grep -x 0

mkdir -p /work/package/DEBIAN /work/package/usr/share/strata-test
printf 'Package: strata-test\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <n@example.invalid>\nDescription: a test\n' \
    > /work/package/DEBIAN/control
echo installed > /work/package/usr/share/strata-test/file
dpkg-deb --root-owner-group --build /work/package /work/package.deb
dpkg -i /work/package.deb && dpkg -s strata-test | grep -x 'Status: install ok installed'
dpkg --verify strata-test && grep installed /usr/share/strata-test/file
apt-get --version >/dev/null && apt list --installed 2>/dev/null | grep -q '^strata-test/'
apt-get -s remove strata-test | grep -q '^Remv strata-test'

cat > /work/writers.py <<'PY'
import multiprocessing, sqlite3, sys
def write(number, mode):
    for row in range(150):
        connection = sqlite3.connect(f"/work/{mode}.db", timeout=120)
        with connection:
            connection.execute("insert into t values (?, ?, ?)", (number, row, "x" * 500))
        connection.close()
for mode in ("wal", "delete"):
    connection = sqlite3.connect(f"/work/{mode}.db")
    connection.execute(f"pragma journal_mode = {mode}")
    connection.execute("create table t (writer, row, text, primary key (writer, row))")
    connection.commit()
    connection.close()
    writers = [multiprocessing.Process(target=write, args=(number, mode)) for number in range(3)]
    [writer.start() for writer in writers]
    [writer.join() for writer in writers]
    assert all(writer.exitcode == 0 for writer in writers), [writer.exitcode for writer in writers]
PY
python3 /work/writers.py
for mode in wal delete; do
    sqlite3 /work/$mode.db 'pragma integrity_check; select count(*) from t' | tr '\n' ' ' | grep -x 'ok 450 '
done
sync
"#;

fn programs(user: User) -> Result<()> {
    let strata = loaded(user)?;
    strata.ok(["run", "--name", "worker", debian::REFERENCE, "bash", "-c", WORK])?;

    let diff = strata.ok(["diff", "worker"])?;
    for line in ["A /app/hello", "A /work", "A /usr/share/strata-test", "A /work/wal.db", "C /var/lib/dpkg/status"] {
        ensure!(diff.lines().any(|found| found == line), "diff lacks {line:?}:\n{diff}");
    }

    strata.ok(["commit", "worker", "worked:1"])?;
    let check = "/app/hello >/dev/null && git -C /work/repo fsck && dpkg -s strata-test >/dev/null && \
                 sqlite3 /work/delete.db 'pragma integrity_check' | grep -x ok";
    strata.ok(["run", "--rm", "worked:1", "sh", "-ec", check])?;
    // Neither another container of the image nor the image has any of it.
    let untouched = "! test -e /work && ! test -e /app/hello && ! dpkg -s strata-test 2>/dev/null";
    strata.ok(["run", "--rm", debian::REFERENCE, "sh", "-ec", untouched])?;
    if user == User::Caller {
        let image = mounted(&strata, debian::REFERENCE)?;
        debian::listing(&debian::kept().context("the Debian image")?)?.expect_same(&image)?;
    }
    strata.ok(["rm", "worker"])?;
    Ok(())
}

/// Standard library tests that lean on the file system.
const PYTHON_TESTS: &str = "test_shutil test_os test_tempfile test_posixpath test_glob test_pathlib \
                            test_zipfile test_tarfile test_mmap test_fileio test_stat test_filecmp test_dbm_dumb \
                            test_fcntl";

fn python_tests(user: User) -> Result<()> {
    let strata = loaded(user)?;
    // Gives files away to user 2147483648, who is in no user namespace of a plain user.
    let more = if user == User::Caller { "test_posix" } else { "" };
    // test_selflink follows 40 links, as many as the kernel does. If a cached link is dropped meanwhile, as by a test beside this
    // one, the kernel begins that walk anew and goes on counting (total_link_count): ELOOP, on every filesystem.
    let script = format!(
        "cd /tmp && exec python3 -m test --fail-env-changed --timeout 200 -i test_selflink {PYTHON_TESTS} {more} 2>&1 | tail -60; exit ${{PIPESTATUS[0]}}"
    );
    let finished = strata.run(["run", "--rm", debian::REFERENCE, "bash", "-c", &script])?;
    ensure!(finished.status.success() && finished.stdout.contains("result: SUCCESS"), "{finished}");
    Ok(())
}

/// Every kind of change that a container can make to an image.
const CHANGES: &str = r#"
set -eux
echo new > /etc/new-file && mkdir -p /opt/new/deep && echo x > /opt/new/deep/file
echo more >> /etc/profile && chmod 0600 /etc/bash.bashrc && chown 5:6 /etc/shells
rm /etc/issue/text && rm -rf /usr/share/man && rm -rf /usr/share/info && mkdir /usr/share/info && echo y > /usr/share/info/now
mv /usr/bin/sqlite3-twin /usr/bin/moved && ln /app/kinds/a /app/kinds/another
rm /usr/bin/gcc && mkdir /usr/bin/gcc && rm -rf /opt/one && echo file > /opt/one
ln -s nowhere /srv/link && mkfifo /srv/fifo && touch -d @5.5 /app/kinds/empty-file
mv /app/trim /app/trimmed
touch /tmp/gone && rm /tmp/gone && cat /etc/fstab /etc/passwd > /dev/null
"#;

fn exact_diff(user: User) -> Result<()> {
    let strata = loaded(user)?;
    strata.ok(["run", "--name", "changer", debian::REFERENCE, "bash", "-c", CHANGES])?;
    let diff = strata.ok(["diff", "changer"])?;
    let found: BTreeSet<&str> = diff.lines().filter(|line| !line.starts_with("C ")).collect();
    // A folder that was moved is new with everything in it; one that was deleted is one line.
    let trimmed: Vec<String> = (0..300_u32)
        .map(|number| number + 1)
        .filter(|number| !(10..100).contains(number))
        .map(|number| format!("A /app/trimmed/file-{number}"))
        .collect();
    let expected: BTreeSet<&str> = [
        "A /etc/new-file",
        "A /opt/new",
        "A /opt/new/deep",
        "A /opt/new/deep/file",
        "D /etc/issue/text",
        "D /usr/share/man",
        "D /usr/share/info/link",
        "A /usr/share/info/now",
        "D /usr/bin/sqlite3-twin",
        "A /usr/bin/moved",
        "A /app/kinds/another",
        "A /srv/link",
        "A /srv/fifo",
        "D /app/trim",
        "A /app/trimmed",
    ]
    .into_iter()
    .chain(trimmed.iter().map(String::as_str))
    .collect();
    ensure!(
        found == expected,
        "missing {:#?}\nunexpected {:#?}",
        expected.difference(&found).collect::<Vec<_>>(),
        found.difference(&expected).collect::<Vec<_>>()
    );
    let changed: BTreeSet<&str> = diff.lines().filter_map(|line| line.strip_prefix("C ")).collect();
    let expected: BTreeSet<&str> = [
        "/etc/profile",
        "/etc/bash.bashrc",
        "/etc/shells",
        "/app/kinds/empty-file",
        "/usr/bin/gcc",
        "/opt/one",
        // Their link count changed with the new name, and so did the folders above every change.
        "/app/kinds/a",
        "/app/kinds/b",
        "/usr/bin/sqlite3",
        "/etc",
        "/etc/issue",
        "/opt",
        "/usr",
        "/usr/bin",
        "/usr/share",
        "/usr/share/info",
        "/app",
        "/app/kinds",
        "/srv",
        "/tmp",
    ]
    .into();
    let optional: BTreeSet<&str> = ["/app/kinds/a", "/app/kinds/b", "/usr/bin/sqlite3", "/tmp"].into();
    let wrong: Vec<_> = changed.symmetric_difference(&expected).filter(|path| !optional.contains(*path)).collect();
    ensure!(wrong.is_empty(), "C lines missing or not expected: {wrong:#?}\n{diff}");

    strata.ok(["commit", "changer", "changed:1"])?;
    let again = strata.ok([
        "run",
        "--name",
        "second",
        "changed:1",
        "sh",
        "-ec",
        "test -f /opt/one && ! test -e /usr/share/man",
    ])?;
    ensure!(again.is_empty(), "{again}");
    let untouched = strata.ok(["diff", "second"])?;
    ensure!(untouched.is_empty(), "a container that changed nothing has a diff:\n{untouched}");
    if user == User::Caller {
        // The committed image is the container's tree, but for what was made to mount on.
        let container = mounted(&strata, "changer")?;
        let image = mounted(&strata, "changed:1")?;
        container.expect_same_but_mount_points(&image)?;
    }
    Ok(())
}

fn mounted(strata: &Strata, what: &str) -> Result<Listing> {
    let point = strata.make_folder(&format!("point-{}", what.replace(['/', ':'], "-")))?;
    strata.ok(["mount".as_ref(), what.as_ref(), point.as_os_str()])?;
    let listing = Listing::of(&point, DirectoryLinks::Counted)?;
    strata.ok(["umount".as_ref(), point.as_os_str()])?;
    Ok(listing)
}
