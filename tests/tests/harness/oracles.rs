//! The oracle itself: what GNU tar makes of whiteouts, opaque folders and replaced entries.

use std::fs::{self, File};
use std::io;

use anyhow::{Result, ensure};
use strata_tests::image::layer::{LayerWriter, Meta};
use strata_tests::oracle;
use strata_tests::tier::Suite;
use strata_tests::tree::{DirectoryLinks, Listing};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("oracles::privileged_layers_replace_and_hide", &[], layers_replace_and_hide);
}

fn layers_replace_and_hide() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let layer = |name: &str, write: &dyn Fn(&mut LayerWriter<File>) -> io::Result<()>| -> Result<_> {
        let path = folder.path().join(name);
        let mut writer = LayerWriter::new(File::create(&path)?);
        write(&mut writer)?;
        writer.finish()?;
        Ok(path)
    };
    let (file, dir) = (Meta::mode(0o644), Meta::mode(0o755));
    let layers = [
        layer("0", &|out| {
            out.directory("d", &dir.clone().at(5, 7))?;
            out.file("d/hidden", &file, b"1")?;
            out.file("d/kept", &file, b"2")?;
            out.directory("o", &dir)?;
            out.file("o/old", &file, b"3")?;
            out.directory("x", &dir)?;
            out.file("x/deep", &file, b"4")
        })?,
        layer("1", &|out| {
            out.whiteout("d/hidden")?;
            out.file("o/new", &file, b"5")?;
            out.opaque("o")?;
            out.file("x", &file, b"now a file")
        })?,
    ];
    let root = folder.path().join("root");
    fs::create_dir(&root)?;
    oracle::extract(&layers, &root)?;
    let listing = Listing::of(&root, DirectoryLinks::Counted)?.to_text();
    let names: Vec<&str> = listing.lines().filter_map(|line| line.split('\t').next()).collect();
    ensure!(names == [".", "d", "d/kept", "o", "o/new", "x"], "{listing}");
    ensure!(listing.contains("d\td0755 0:0 5.000000007 n2\n"), "the folder's own time: {listing}");
    Ok(())
}
