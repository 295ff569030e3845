//! What people do on a filesystem, with the content in the lower: git, databases, packages, archives, builds, and the
//! programs that try filesystems to destruction.
//!
//! `STRATA_UNION_SERVER` (`overlayfs`, `fuse-overlayfs` or `ext4`) runs the same on a peer, to see who is wrong.
//! `STRATA_LOAD_SECONDS` says how long each of the load generators runs.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use strata_tests::strata::finish;
use strata_tests::tier::{Need, Suite};
use strata_tests::tree::{DirectoryLinks, Listing};
use strata_tests::union::{Server, Union};

pub(crate) fn register(suite: &mut Suite) {
    let mut add = |name: &str, programs: &[&'static str], body: fn() -> Result<()>| {
        let needs: Vec<Need> = std::iter::once(Need::Fuse).chain(programs.iter().copied().map(Need::Program)).collect();
        suite.add(&format!("real_life::privileged_{name}"), &needs, body);
    };
    add("git", &["git"], || {
        job(GIT, GIT_WORK, "git -C repo fsck --full 2>&1; git -C repo --no-optional-locks status --porcelain | wc -l")
    });
    add("sqlite", &["python3"], sqlite);
    add("dpkg", &["dpkg", "dpkg-deb"], || job(DPKG, DPKG_WORK, "cat root/var/lib/dpkg/status"));
    add("tar", &["tar"], || job(TREE, TAR_WORK, "true"));
    add("rsync", &["rsync"], || job(TREE, RSYNC_WORK, "true"));
    add("copies_and_ghosts", &[], || job(TREE, COPY_WORK, "find . | sort | sha256sum"));
    add("c_project", &["make", "gcc"], || job(C_PROJECT, C_WORK, "./project/program"));
    add("rust_project", &["cargo", "gcc"], || job(RUST_PROJECT, RUST_WORK, "./project/target/debug/project"));
    add("dbench", &["dbench"], dbench);
    add("stress_ng", &["stress-ng"], stress_ng);
    add("random_io", &["python3"], || random_io("passthrough=auto"));
    add("random_io_without_passthrough", &["python3"], || random_io("passthrough=off"));
}

/// Who shows the union.
fn server() -> Result<Server> {
    match std::env::var("STRATA_UNION_SERVER").as_deref() {
        Err(_) => Ok(Server::Strata),
        Ok("overlayfs") => Ok(Server::Overlayfs),
        Ok("fuse-overlayfs") => Ok(Server::FuseOverlayfs),
        Ok("ext4") => Ok(Server::Ext4),
        Ok(other) => bail!("STRATA_UNION_SERVER={other}"),
    }
}

fn seconds() -> String {
    std::env::var("STRATA_LOAD_SECONDS").unwrap_or_else(|_| "4".to_owned())
}

/// Fills the lower, works on the union, and sees that a new mount shows the same. `after` says what, too.
fn job(prepare: &str, work: &str, after: &str) -> Result<()> {
    let union = Union::new(server()?)?;
    shell(&union.bottom(), prepare).context("prepare the lower")?;
    let lower = Listing::of(&union.bottom(), DirectoryLinks::Reported)?;
    union.mount()?;
    shell(&union.point(), work)?;
    let before = (shell(&union.point(), after)?, Listing::of(&union.point(), DirectoryLinks::Counted)?);
    union.remount()?;
    let again = (shell(&union.point(), after)?, Listing::of(&union.point(), DirectoryLinks::Counted)?);
    before.1.expect_same(&again.1).context("after a remount")?;
    ensure!(before.0 == again.0, "before the remount: {}\nafter it: {}", before.0, again.0);
    union.unmount()?;
    if server()? != Server::Ext4 {
        lower.expect_same(&Listing::of(&union.bottom(), DirectoryLinks::Reported)?).context("the lower has changed")?;
    }
    Ok(())
}

fn shell(folder: &Path, script: &str) -> Result<String> {
    let mut command = Command::new("timeout");
    // Not `!`: it would keep the script going.
    let script = format!("not() {{ if \"$@\"; then return 1; fi; }}\n{script}");
    command.args(["--kill-after=5", "240", "bash", "-euc", &script]).current_dir(folder);
    command.env("LC_ALL", "C.UTF-8").env("HOME", folder).env("GIT_CONFIG_NOSYSTEM", "1").env_remove("CARGO_TARGET_DIR");
    if let Some(home) = std::env::var_os("HOME") {
        // Where the compiler is found; nothing is written there.
        let at = |name: &str| Path::new(&home).join(name);
        command.env("CARGO_HOME", std::env::var_os("CARGO_HOME").unwrap_or_else(|| at(".cargo").into()));
        command.env("RUSTUP_HOME", std::env::var_os("RUSTUP_HOME").unwrap_or_else(|| at(".rustup").into()));
    }
    let finished = finish(&mut command)?;
    ensure!(finished.status.success(), "{finished}");
    Ok(finished.stdout)
}

const GIT: &str = r"
git init -q -b main repo
cd repo
git config user.email test@example.invalid
git config user.name test
git config gc.auto 0
mkdir -p src/deep/er docs tests
for number in $(seq 300); do echo $number > src/file$number; echo $number > src/deep/er/file$number; done
for number in $(seq 40); do seq $number 2000 > docs/page$number; echo $number > tests/case$number; done
git add -A
git commit -q -m first
for number in $(seq 20); do echo more >> docs/page$number; done
git commit -q -a -m second
git branch side HEAD~1
";

const GIT_WORK: &str = r#"
cd repo
test -z "$(git status --porcelain)"
git mv src source
git mv source/deep docs/deep
git commit -q -m moved
test ! -e src
test -e docs/deep/er/file7
git checkout -q side
test -e src/deep/er/file7
test ! -e source
echo side > tests/side
git add -A
git commit -q -m side
git checkout -q main
test ! -e src
git merge -q -m merged side
test -e tests/side
git rebase -q HEAD~1
git rm -q -r tests
git commit -q -m removed
test ! -e tests
git gc -q --prune=now
git fsck --full --strict
git clone -q . ../clone
git clone -q --no-hardlinks . ../other
diff -r --exclude=.git . ../clone
git -C ../clone log --oneline | wc -l
git worktree add -q ../worktree side
git worktree remove ../worktree
test -z "$(git status --porcelain)"
"#;

const DPKG: &str = r#"
mkdir -p root/var/lib/dpkg/info root/var/lib/dpkg/updates packages
: > root/var/lib/dpkg/status
: > root/var/lib/dpkg/available
package() { # name version
    folder=packages/$1-$2
    mkdir -p $folder/DEBIAN $folder/usr/share/$1/sub $folder/etc
    printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: nobody <nobody@example.invalid>\nDescription: test\n' \
        $1 $2 > $folder/DEBIAN/control
    echo /etc/$1.conf > $folder/DEBIAN/conffiles
    echo "version $2" > $folder/etc/$1.conf
    for number in $(seq 60); do echo "$1 $2 $number" > $folder/usr/share/$1/sub/file$number; done
    ln -s sub/file1 $folder/usr/share/$1/link
    echo only $2 > $folder/usr/share/$1/only-in-$2
    dpkg-deb --root-owner-group --build $folder packages/$1-$2.deb > /dev/null
}
for name in one two three; do
    package $name 1
    package $name 2
done
dpkg --root=$PWD/root --log=/dev/null -i packages/{one,two}-1.deb
"#;

const DPKG_WORK: &str = r#"
dpkg() { command dpkg --root=$PWD/root --log=/dev/null "$@"; }
dpkg -i packages/one-2.deb packages/three-1.deb
grep -x 'one 2 60' root/usr/share/one/sub/file60
test ! -e root/usr/share/one/only-in-1
dpkg -V one two three
dpkg -r two
test ! -e root/usr/share/two
test -e root/etc/two.conf
dpkg -P two
test ! -e root/etc/two.conf
dpkg -i packages/two-2.deb
dpkg -P three one
test ! -e root/usr/share/one -a ! -e root/usr/share/three
dpkg -i packages/one-1.deb
test -e root/usr/share/one/only-in-1 -a ! -e root/usr/share/one/only-in-2
dpkg -V
dpkg --audit
test $(ls root/usr/share/one/sub | wc -l) = 60
"#;

/// Files of all kinds and sizes, with links and attributes.
const TREE: &str = r"
mkdir tree
cd tree
for folder in a b c/d/e f/g; do
    mkdir -p $folder
    for number in $(seq 150); do echo $folder $number > $folder/file$number; done
    ln $folder/file1 $folder/hard
    ln -s file2 $folder/soft
    mkfifo $folder/fifo
    head -c 300000 /dev/zero | tr '\0' x > $folder/large
    chmod 4711 $folder/large
    touch -d @1000000000.123456789 $folder/file3
    chown 5:6 $folder/file4
    chmod 0 $folder/file5
    mkdir $folder/empty
    touch -d @1000000001 $folder
done
setfattr -n user.note -v text a/file6 2> /dev/null || true
truncate -s 10M a/hole
echo end >> a/hole
";

const TAR_WORK: &str = r"
create() { tar --create --file ../$1.tar --xattrs --sparse tree 2> ../$1.err || { cat ../$1.err; return 1; }; }
mkdir -p ../out
create first
touch tree/a/new
rm tree/b/file9
mv tree/c tree/moved
chmod 700 tree/f
create second
create third
not grep -r 'changed as we read' ../*.err
tar --compare --file ../second.tar
tar --compare --file ../third.tar
tar --extract --file ../first.tar --directory ../out --xattrs
mkdir inside
tar --extract --file ../second.tar --directory inside --xattrs
tar --compare --file ../second.tar --directory inside
for round in 1 2 3; do
    (for number in $(seq 200); do echo x > tree/busy$number; rm tree/busy$number; done) &
    tar --create --file /dev/null tree/moved tree/a tree/b tree/f
    wait
done
";

const RSYNC_WORK: &str = r"
rsync -aHAX tree/ ../copied/
rsync -aHAX --delete --itemize-changes tree/ ../copied/ > ../second
cat ../second
test ! -s ../second
rsync -aHAX --checksum --dry-run --itemize-changes ../copied/ tree/ > ../back
cat ../back
test ! -s ../back
rm -r tree/b
echo changed >> tree/a/file10
chmod 600 tree/a/file11
rsync -aHAX --delete ../copied/ tree/
rsync -aHAX --checksum --itemize-changes --delete ../copied/ tree/ > ../third
cat ../third
test ! -s ../third
rsync -aHAX tree/ inside/
rsync -aHAX --checksum --itemize-changes tree/ inside/ > ../fourth
test ! -s ../fourth
rsync -a --inplace --no-whole-file ../copied/a/large tree/a/large
cmp ../copied/a/large tree/a/large
";

const COPY_WORK: &str = r#"
cp -a tree copy
diff -r --no-dereference --exclude=fifo tree copy
mv tree moved
diff -r --no-dereference --exclude=fifo moved copy
for round in 1 2 3; do
    rm -rf moved/c
    mkdir -p moved/c/d/e
    test -z "$(ls moved/c/d/e)"
    touch moved/c/d/e/new
    rm -rf moved/a
    mv moved/b moved/a
    mkdir moved/b
    test -z "$(ls moved/b)"
    rm -rf moved
    test ! -e moved
    mkdir -p moved/a moved/c/d/e
    test -z "$(ls moved/a moved/c/d/e | grep file)"
    rm -rf moved
    cp -a copy moved
    diff -r --no-dereference --exclude=fifo moved copy
done
rm -rf copy moved
test -z "$(ls -A)"
mkdir tree
test -z "$(ls -A tree)"
mkdir -p tree/a tree/c/d/e
test $(find tree | wc -l) = 5
"#;

const C_PROJECT: &str = r##"
mkdir -p project/include
cd project
for number in $(seq 30); do
    printf 'int f%d(void);\n' $number > include/f$number.h
    printf '#include "include/f%d.h"\nint f%d(void) { return %d; }\n' $number $number $number > f$number.c
done
(for number in $(seq 30); do echo "#include \"include/f$number.h\""; done
 echo '#include <stdio.h>'; echo 'int main(void) { int sum = 0;'
 for number in $(seq 30); do echo "sum += f$number();"; done; echo 'printf("%d\n", sum); return 0; }') > main.c
printf 'objects := $(patsubst %%.c,%%.o,$(wildcard *.c))\nprogram: $(objects)\n\tgcc -o $@ $^\n' > Makefile
printf '%%.o: %%.c $(wildcard include/*.h)\n\tgcc -O0 -c -o $@ $<\nclean:\n\trm -f *.o program\n' >> Makefile
make -s -j2
touch -d '2 hours ago' *.c include/*.h
touch -d '1 hour ago' *.o
touch program
"##;

const C_WORK: &str = r"
cd project
make -q
./program | grep -x 465
make -s clean
test ! -e program -a ! -e f1.o
make -s -j2
make -q
./program | grep -x 465
sed -i 's/return 7;/return 8;/' f7.c
not make -q
make -s
make -q
./program | grep -x 466
touch include/f3.h
not make -q
make -s
cp program other
strip other
./other | grep -x 466
";

const RUST_PROJECT: &str = r#"
mkdir -p project/src
cd project
printf '[package]\nname = "project"\nversion = "0.1.0"\nedition = "2021"\n\n[workspace]\n' > Cargo.toml
printf 'mod part;\nfn main() {\n    println!("{}", part::sum(&[1, 2, 3]));\n}\n' > src/main.rs
printf 'pub fn sum(of: &[u32]) -> u32 {\n    of.iter().sum()\n}\n' > src/part.rs
cargo build --offline --quiet
./target/debug/project | grep -x 6
"#;

const RUST_WORK: &str = r"
cd project
cargo build --offline 2>&1 | tee ../log
not grep Compiling ../log
sed -i 's/sum()/sum::<u32>() + 1/' src/part.rs
cargo build --offline --quiet
./target/debug/project | grep -x 7
rm -rf target
test ! -e target
cargo build --offline --quiet
./target/debug/project | grep -x 7
cargo build --offline 2>&1 | tee ../log
not grep Compiling ../log
";

/// Three processes write a database of the lower, with its log of what is to be written in the upper.
fn sqlite() -> Result<()> {
    let prepare = r"
import sqlite3
base = sqlite3.connect('base.db')
base.execute('pragma journal_mode=wal')
base.execute('create table t (id integer primary key, writer integer, text text)')
base.executemany('insert into t (writer, text) values (0, ?)', (('x' * 300 + str(n),) for n in range(30000)))
base.execute('create index i on t (text)')
base.commit(); base.execute('pragma wal_checkpoint(truncate)'); base.close()";
    let work = r"
import os, random, sqlite3, sys
def write(writer):
    base = sqlite3.connect('base.db', timeout=60)
    chance = random.Random(writer)
    for number in range(120):
        base.execute('begin immediate')
        for _ in range(20):
            base.execute('update t set text = ?, writer = ? where id = ?', (str(number) * 100, writer, chance.randrange(1, 30000)))
        base.execute('insert into t (writer, text) values (?, ?)', (writer, 'new' * 200))
        base.execute('delete from t where id = ?', (chance.randrange(1, 30000),))
        base.commit()
        if number % 40 == 39:
            base.execute('pragma wal_checkpoint(truncate)')
        assert base.execute('select count(*) from t').fetchone()[0] > 29000
pids = []
for writer in (1, 2, 3):
    pid = os.fork()
    if pid == 0:
        write(writer); os._exit(0)
    pids.append(pid)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
base = sqlite3.connect('base.db')
assert base.execute('select count(*) from t where text like ?', ('newnew%',)).fetchone()[0] == 360
base.execute('vacuum'); base.execute('pragma wal_checkpoint(truncate)'); base.close()";
    let check = r"
import sqlite3
base = sqlite3.connect('file:base.db?immutable=1', uri=True)
assert base.execute('pragma integrity_check').fetchone()[0] == 'ok'
print(base.execute('select count(*), sum(writer), sum(length(text)) from t').fetchone())";
    let python = |script: &str| format!("python3 -c \"{script}\"");
    job(&python(prepare), &python(work), &python(check))
}

fn dbench() -> Result<()> {
    let work = format!("dbench --clients-per-process=1 -t {} -D . 4 | tail -3", seconds());
    job("mkdir clients && echo lower > clients/file", &work, "true")
}

fn stress_ng() -> Result<()> {
    // One after the other, each for a second, each checks what it did. Left out: those that are about the whole machine,
    // and `unlink`, which reports failures on ext4 too.
    let stressors = "access chdir chmod chown copy-file dentry dir dirdeep dirmany dup fallocate fcntl fiemap filename flock \
         fpunch fsize fstat getdent hdd inode-flags io iomix lease link locka lockf lockofd mknod open rename seek symlink \
         sync-file touch utime xattr";
    let union = Union::new(server()?)?;
    fs::create_dir(union.bottom().join("temp"))?;
    fs::write(union.bottom().join("temp/file"), "lower")?;
    union.mount()?;
    let mut failed = Vec::new();
    for stressor in stressors.split_whitespace() {
        let script = format!("stress-ng --{stressor} 2 --timeout 1 --verify --temp-path temp --hdd-bytes 8M 2>&1");
        // A signal in the middle of a file that is renamed is the stressor's own affair; what it checks is ours.
        let run = Command::new("timeout").args(["60", "bash", "-c", &script]).current_dir(union.point()).output()?;
        let text = String::from_utf8_lossy(&run.stdout).into_owned();
        let complaint = text.lines().any(|line| line.contains("fail:") || line.contains("error:"));
        if !run.status.success() || complaint {
            failed.push(format!("{stressor}: {}\n{text}", run.status));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    ensure!(fs::read_dir(union.point().join("temp"))?.count() == 1, "stressors left something behind");
    union.remount()?;
    ensure!(fs::read_dir(union.point().join("temp"))?.count() == 1, "what stressors deleted came back");
    union.unmount()
}

fn random_io(options: &str) -> Result<()> {
    let union = Union::new(server()?)?;
    let union = if server()? == Server::Strata { union.with_options(options) } else { union };
    fs::write(union.folder().join("fsx.py"), include_str!("fsx.py"))?;
    // A small file, a large one that is passed through, an empty one, one that is none yet.
    let sizes = [("small", 50_000), ("large", 1_500_000), ("empty", 0)];
    for (name, size) in sizes {
        fs::write(union.bottom().join(name), vec![b'.'; size])?;
    }
    union.mount()?;
    fs::write(union.point().join("new"), "new")?;
    let count: u64 = std::env::var("STRATA_FSX_STEPS").ok().and_then(|text| text.parse().ok()).unwrap_or(1500);
    for (seed, name) in [(1, "small"), (2, "large"), (3, "empty"), (4, "new"), (5, "small")] {
        shell(&union.folder().join("mnt"), &format!("python3 ../fsx.py {name} {seed} {count}"))?;
        if seed == 4 {
            union.remount()?;
        }
    }
    union.unmount()?;
    for (name, size) in sizes {
        let lower = fs::read(union.bottom().join(name))?;
        let same = server()? == Server::Ext4 || lower == vec![b'.'; size];
        ensure!(same, "{name} of the lower has changed");
    }
    Ok(())
}
