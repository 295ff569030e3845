//! Plain folders as layers: what is written to the upper folder is what the kernel's overlayfs would read there.
//!
//! Hard links of lower files are left out: overlayfs breaks them when one is copied up, strata keeps them together.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use strata_tests::strata::{Strata, finish};
use strata_tests::tier::{Need, Suite};
use strata_tests::tree::{DirectoryLinks, Listing};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("folders::privileged_upper_is_what_overlayfs_reads", &[Need::Fuse], upper_for_overlayfs);
    suite.add("folders::privileged_upper_of_overlayfs_is_read", &[Need::Fuse], upper_of_overlayfs);
    suite.add("folders::privileged_mount_by_type", &[Need::Fuse], mount_by_type);
}

const LOWER: &str = r#"
mkdir -p low/dir/sub low/gone low/remade high/dir
echo low > low/dir/file && echo below > low/dir/hidden && echo x > low/gone/x && echo y > low/remade/y
echo data > low/renamed && echo linked > low/a && ln low/a low/b && ln -s dir low/link && echo t > low/truncated
echo high > high/dir/file && echo only > high/only && setfattr -n user.note -v low low/renamed
mkdir up wk point
"#;

const CHANGES: &str = r#"
cd point
echo new > new && mkdir -p tree/of/folders && echo deep > tree/of/folders/file
echo more >> dir/file && rm dir/hidden && rm -r gone && rm -r remade && mkdir remade && echo z > remade/z
mv renamed moved && chmod 0600 only && chown 5:6 dir/sub && : > truncated
rm link && mkdir link && echo inside > link/inside && ln new another-name
setfattr -n user.note -v up moved && touch -d @12345.678901234 only
mkfifo fifo && mknod device c 1 3 && ln -s nowhere dangling
"#;

fn shell(folder: &Path, script: &str) -> Result<()> {
    let finished = finish(Command::new("bash").args(["-euxc", script]).current_dir(folder))?;
    ensure!(finished.status.success(), "{finished}");
    Ok(())
}

/// The names, owners, contents and so on of what is mounted; folders' link counts differ by design.
fn listing(folder: &Path) -> Result<Listing> {
    Listing::of(&folder.join("point"), DirectoryLinks::Counted)
}

fn by_kernel(strata: &Strata, options: &str) -> Result<()> {
    let options = format!("lowerdir=high:low,upperdir=up,workdir=wk{options}");
    shell(strata.folder(), &format!("mount -t overlay overlay -o {options} point"))
}

fn by_strata(strata: &Strata) -> Result<()> {
    let arguments = ["mount", "--lower", "high:low", "--upper", "up", "--work", "wk", "point"];
    strata.ok(arguments)?;
    Ok(())
}

fn upper_for_overlayfs() -> Result<()> {
    let strata = Strata::new()?;
    shell(strata.folder(), LOWER)?;
    by_strata(&strata)?;
    shell(strata.folder(), CHANGES)?;
    let ours = listing(strata.folder())?;
    strata.ok(["umount", "point"])?;
    by_strata(&strata)?;
    ours.expect_same(&listing(strata.folder())?)?;
    strata.ok(["umount", "point"])?;
    // Files of which only attributes were changed have their data in the lower still.
    by_kernel(&strata, ",redirect_dir=on,metacopy=on")?;
    let kernel = listing(strata.folder())?;
    shell(strata.folder(), "umount point")?;
    kernel.expect_same(&ours)
}

fn upper_of_overlayfs() -> Result<()> {
    let strata = Strata::new()?;
    shell(strata.folder(), LOWER)?;
    by_kernel(&strata, "")?;
    shell(strata.folder(), CHANGES)?;
    let kernel = listing(strata.folder())?;
    shell(strata.folder(), "umount point")?;
    by_strata(&strata)?;
    let ours = listing(strata.folder())?;
    strata.ok(["umount", "point"])?;
    kernel.expect_same(&ours)
}

fn mount_by_type() -> Result<()> {
    let strata = Strata::new()?;
    shell(strata.folder(), LOWER)?;
    // As `mount -t fuse.strata` calls its helper: a program of that name with source, folder and options.
    let helper = strata.folder().join("mount.fuse.strata");
    fs::copy(strata_tests::strata::program().unwrap_or_default(), &helper)?;
    let helper = helper.display();
    shell(strata.folder(), &format!("{helper} overlay point -o lowerdir=high:low,upperdir=up,workdir=wk,rw"))?;
    shell(
        strata.folder(),
        "grep -x high point/dir/file && echo x > point/written && umount point && grep -x x up/written",
    )
}
