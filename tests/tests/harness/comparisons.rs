//! `diff` of two images or containers, compared with what `find` and `cmp` say of their mounts.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use strata_tests::image::busybox;
use strata_tests::strata::{Strata, User, finish};
use strata_tests::tier::{Need, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("comparisons::unprivileged_diff_of_two_images", &[], of_images);
    suite.add("comparisons::privileged_diff_of_container_and_image", &[Need::Fuse, Need::Busybox], of_container);
}

const BEFORE: &str = r#"
mkdir -p a/dir/sub a/gone/deep a/becomes-file a/etc
echo same > a/etc/same && echo old > a/etc/content && echo mode > a/etc/mode && ln -s old a/etc/target
echo x > a/gone/deep/x && echo y > a/becomes-file/y && echo plain > a/becomes-folder && truncate -s 300000 a/sparse
touch -h -d @1000000000.5 a/etc/* && cp -a a b
"#;

const AFTER: &str = r#"
echo new > b/etc/content && chmod 0600 b/etc/mode && ln -sfn new b/etc/target && echo added > b/dir/sub/added
rm -r b/gone b/becomes-file && echo file > b/becomes-file && rm b/becomes-folder && mkdir b/becomes-folder
echo z > b/becomes-folder/z && printf 'a name\nof two lines' > "$(printf 'b/dir/\351')" && printf 1 | dd of=b/sparse bs=1 seek=200000 conv=notrunc
touch -h -d @1000000000.5 b/etc/* b/sparse a/sparse
tar -C a -cf a.tar . && tar -C b -cf b.tar .
"#;

fn shell(folder: &Path, script: &str) -> Result<()> {
    let finished = finish(Command::new("bash").args(["-euc", script]).current_dir(folder))?;
    ensure!(finished.status.success(), "{finished}");
    Ok(())
}

fn of_images() -> Result<()> {
    let strata = Strata::new()?;
    shell(strata.folder(), &format!("{BEFORE}{AFTER}"))?;
    for name in ["a", "b"] {
        strata.ok(["import", &format!("{name}.tar"), &format!("{name}:1")])?;
    }
    ensure!(strata.ok(["diff", "a:1", "a:1"])?.is_empty(), "an image differs from itself");
    let mut found = BTreeMap::new();
    for line in strata.ok(["diff", "a:1", "b:1", "--format", "json"])?.lines() {
        let line: Value = serde_json::from_str(line)?;
        let text = |key: &str| line[key].as_str().unwrap_or("").to_owned();
        let size = |key: &str| line[key]["Size"].as_u64();
        found.insert(text("Path"), (text("Change"), text("What"), size("Before"), size("After")));
    }
    let change = |change: &str, what: &str, before, after| (change.to_owned(), what.to_owned(), before, after);
    let expected: BTreeMap<String, _> = [
        ("/becomes-file", change("C", "type", Some(0), Some(5))),
        ("/becomes-file/y", change("D", "", Some(2), None)),
        ("/becomes-folder", change("C", "type", Some(6), Some(0))),
        ("/becomes-folder/z", change("A", "", None, Some(2))),
        ("/dir/sub/added", change("A", "", None, Some(6))),
        ("/dir/\u{fffd}", change("A", "", None, Some(19))),
        ("/etc/content", change("C", "content", Some(4), Some(4))),
        ("/etc/mode", change("C", "mode", Some(5), Some(5))),
        ("/etc/target", change("C", "content", Some(0), Some(0))),
        ("/gone", change("D", "", Some(0), None)),
        ("/gone/deep", change("D", "", Some(0), None)),
        ("/gone/deep/x", change("D", "", Some(2), None)),
        ("/sparse", change("C", "content", Some(300_000), Some(300_000))),
    ]
    .into_iter()
    .map(|(path, change)| (path.to_owned(), change))
    .collect();
    ensure!(found == expected, "{found:#?}\nexpected {expected:#?}");
    let stat = strata.ok(["diff", "--stat", "a:1", "b:1"])?;
    ensure!(stat.ends_with("3 added, 6 changed, 4 removed, +22B\n"), "{stat}");
    // The other way round, what was added is removed.
    let lines = strata.ok(["diff", "b:1", "a:1"])?;
    ensure!(lines.contains("D       -6B /dir/sub/added\n"), "{lines}");
    let missing = strata.exits(1, ["diff", "a:1", "nosuch"])?;
    ensure!(missing.stderr.contains("No such image or container: nosuch"), "{missing}");

    let layers = strata.ok(["image", "inspect", "--layers", "--format", "{{json .Layers}}", "b:1"])?;
    let layers: Value = serde_json::from_str(&layers)?;
    let tar = fs::metadata(strata.folder().join("b.tar"))?.len();
    ensure!(layers[0]["TarSize"] == tar && layers.as_array().context("no list")?.len() == 1, "{layers}");
    Ok(())
}

fn of_container() -> Result<()> {
    let strata = Strata::with_busybox(User::Caller)?;
    // The image has neither of these files, nor a place to mount on.
    let script = "set -e; grep -q localhost /etc/hosts; grep -qx here /etc/hostname; test -e /etc/resolv.conf; \
                  test -e /.dockerenv; echo more >> /etc/hosts";
    strata.ok(["run", "--name", "untouched", "--hostname", "here", busybox::REFERENCE, "sh", "-c", script])?;
    strata.ok(["run", "-d", "--name", "running", busybox::REFERENCE, "sleep", "1000"])?;
    for name in ["untouched", "running"] {
        let found = strata.ok(["diff", name])? + &strata.ok(["diff", busybox::REFERENCE, name])?;
        ensure!(found.is_empty(), "{name}: {found}");
    }
    strata.ok(["rm", "-f", "running"])?;
    let script = "echo new > /new; echo more >> /etc/motd; rm /etc/passwd";
    strata.ok(["run", "--name", "changed", busybox::REFERENCE, "sh", "-c", script])?;
    let found = strata.ok(["diff", busybox::REFERENCE, "changed", "--format", "{{.Change}} {{.Path}} {{.What}}"])?;
    ensure!(found == "C /etc/motd time,content\nD /etc/passwd \nA /new \n", "{found}");
    strata.ok(["commit", "changed", "changed:1"])?;
    ensure!(strata.ok(["diff", "changed:1", "changed"])?.is_empty(), "what was committed is not what was there");
    let summed = strata.ok(["diff", "--stat", "changed"])?;
    ensure!(summed.ends_with('\n') && summed.contains("1 added, 1 changed, 1 removed"), "{summed}");
    Ok(())
}
