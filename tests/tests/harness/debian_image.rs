//! The real image, in every form: the mounted tree is what GNU tar makes of the layers, without any difference.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use strata_tests::image::archive::{Form, Image, Layer};
use strata_tests::image::debian;
use strata_tests::oracle;
use strata_tests::plain_user;
use strata_tests::strata::{Strata, User, finish};
use strata_tests::tier::{Need, Suite};
use strata_tests::tree::{DirectoryLinks, Listing};

pub(crate) fn register(suite: &mut Suite) {
    let mount = &[Need::Fuse, Need::Debian];
    suite.add("debian_image::privileged_mount_is_what_gnu_tar_extracts", mount, mounted_tree);
    suite.add("debian_image::privileged_writable_mount_starts_as_the_image", mount, writable_mount);
    suite.add("debian_image::privileged_folder_layout_loads_the_same", mount, folder_layout);
    suite.add("debian_image::rootless_mount_is_what_gnu_tar_extracts", mount, plain_mounted_tree);
    suite.add("debian_image::privileged_export_and_import_keep_the_tree", mount, export_and_import);
    suite.add("debian_image::unprivileged_every_form_is_the_same_image", &[Need::Debian], same_image);
}

fn archive(form: Form) -> Result<std::path::PathBuf> {
    Ok(debian::kept().context("the Debian image")?.join(form.file_name()))
}

fn expected() -> Result<Listing> {
    debian::listing(&debian::kept().context("the Debian image")?)
}

fn mounted_tree() -> Result<()> {
    let strata = Strata::new()?;
    strata.load(&archive(Form::DockerNew)?)?;
    compare_mount(&strata, &["mount"], DirectoryLinks::Reported)
}

fn writable_mount() -> Result<()> {
    let strata = Strata::new()?;
    strata.load(&archive(Form::OciZstd)?)?;
    // As on overlayfs, a folder that can change has a link count of 1, which says nothing about its subfolders.
    compare_mount(&strata, &["mount", "--rw"], DirectoryLinks::Counted)
}

fn compare_mount(strata: &Strata, verb: &[&str], links: DirectoryLinks) -> Result<()> {
    let point = strata.make_folder("point")?;
    let point_text = point.to_string_lossy();
    strata.ok(verb.iter().copied().chain([debian::REFERENCE, &point_text]))?;
    expected()?.expect_same(&Listing::of(&point, links)?)?;
    // Once more, now that the kernel and the server have seen every name.
    expected()?.expect_same(&Listing::of(&point, links)?)?;
    strata.ok(["umount", &point_text])?;
    Ok(())
}

fn folder_layout() -> Result<()> {
    let strata = Strata::new()?;
    let folder = debian::kept().context("the Debian image")?;
    let layout = strata.folder().join("layout");
    // Two layers are enough to see that the form is read.
    let layers = debian::layers(&folder).into_iter().skip(3).take(2);
    let layers = layers.map(|tar| Layer::of(&tar, "part")).collect::<Result<Vec<_>>>()?;
    let image = Image { reference: "test/layout:1".to_owned(), layers, config: serde_json::json!({}) };
    let id = image.id();
    image.write_folder(&layout)?;
    strata.ok(["load".as_ref(), "-i".as_ref(), layout.as_os_str()])?;
    let ids = strata.ok(["images", "-q", "--no-trunc"])?;
    ensure!(ids.trim() == id, "{ids} instead of {id}");
    Ok(())
}

/// What `export` writes is the whole tree for GNU tar, and for `import`.
fn export_and_import() -> Result<()> {
    let strata = Strata::new()?;
    strata.load(&archive(Form::DockerNew)?)?;
    strata.ok(["run", "--name", "idle", debian::REFERENCE, "true"])?;
    let tar = strata.folder().join("exported.tar");
    strata.ok(["export".as_ref(), "-o".as_ref(), tar.as_os_str(), "idle".as_ref()])?;

    let extracted = strata.make_folder("extracted")?;
    oracle::extract(std::slice::from_ref(&tar), &extracted)?;
    expected()?.expect_same_but_mount_points(&Listing::of(&extracted, DirectoryLinks::Counted)?)?;

    let other = strata.another()?;
    other.ok(["import".as_ref(), tar.as_os_str(), "imported:1".as_ref()])?;
    let point = other.make_folder("point")?;
    other.ok(["mount".as_ref(), "imported:1".as_ref(), point.as_os_str()])?;
    expected()?.expect_same_but_mount_points(&Listing::of(&point, DirectoryLinks::Reported)?)?;
    other.ok(["umount".as_ref(), point.as_os_str()])?;
    Ok(())
}

fn same_image() -> Result<()> {
    let mut ids = Vec::new();
    for form in Form::ALL {
        let strata = Strata::new()?;
        strata.ok(["load".as_ref(), "-i".as_ref(), archive(form)?.as_os_str()])?;
        let listed = strata.ok(["images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"])?;
        ensure!(listed.starts_with(&format!("{} sha256:", debian::REFERENCE)), "{form:?}: {listed}");
        ids.push(listed);
    }
    ensure!(ids.iter().all(|id| *id == ids[0]), "{ids:#?}");
    Ok(())
}

/// A plain user sees the same tree. What it may not read stays unread: its content and children are left out.
fn plain_mounted_tree() -> Result<()> {
    let strata = Strata::of(User::Plain)?;
    strata.load(&archive(Form::DockerOld)?)?;
    let point = strata.make_folder("point")?;
    strata.ok(["mount".as_ref(), debian::REFERENCE.as_ref(), point.as_os_str()])?;
    let found = listing_of_plain_user(&strata, &point)?;
    strata.ok(["umount".as_ref(), point.as_os_str()])?;
    let expected = expected()?.as_far_as_readable(&found);
    ensure!(expected.len() > 10_000, "only {} names are readable", expected.len());
    expected.expect_same(&found)
}

fn listing_of_plain_user(strata: &Strata, point: &Path) -> Result<Listing> {
    // The build folder may be closed to others.
    let program = strata.folder().join("list-tree");
    fs::copy(env!("CARGO_BIN_EXE_list-tree"), &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let mut command = Command::new(program);
    command.arg(point);
    plain_user::demote(&mut command);
    let finished = finish(&mut command)?;
    ensure!(finished.status.success(), "{}", finished.stderr);
    Ok(Listing::from_text(&finished.stdout))
}
