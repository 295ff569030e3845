//! Mounts without an upper.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use common::{TestMount, options, privileged};
use strata_unionfs::{Lower, MountSpec};

#[test]
fn folders_are_merged_topmost_first() {
    if !privileged() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let at = |path: &str| temp.path().join(path);
    for path in ["low/both", "low/gone", "low/hidden", "high/both", "high/hidden", "mnt"] {
        fs::create_dir_all(at(path)).unwrap();
    }
    fs::write(at("low/both/low"), "low").unwrap();
    fs::write(at("low/both/same"), "from low").unwrap();
    fs::write(at("low/hidden/x"), "x").unwrap();
    fs::write(at("low/gone/x"), "x").unwrap();
    fs::write(at("high/both/same"), "from high").unwrap();
    fs::write(at("high/both/high"), "high").unwrap();
    std::os::unix::fs::symlink("both/same", at("high/link")).unwrap();
    whiteout(&at("high/gone"));
    rustix::fs::setxattr(at("high/hidden"), "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();

    let spec = MountSpec { lower: Lower::Folders(vec![at("high"), at("low")]), upper: None, options: options() };
    let mount = TestMount::new(&spec, &at("mnt"));
    assert_eq!(names(&at("mnt")), ["both", "hidden", "link"]);
    assert_eq!(names(&at("mnt/both")), ["high", "low", "same"]);
    assert_eq!(names(&at("mnt/hidden")), [""; 0]);
    assert_eq!(fs::read_to_string(at("mnt/both/same")).unwrap(), "from high");
    assert_eq!(fs::read_to_string(at("mnt/both/low")).unwrap(), "low");
    assert_eq!(fs::read_to_string(at("mnt/link")).unwrap(), "from high");
    assert!(fs::symlink_metadata(at("mnt/gone")).is_err());
    assert!(fs::write(at("mnt/new"), "").is_err());
    assert!(fs::File::options().write(true).open(at("mnt/both/low")).is_err());
    assert_numbers_agree(&at("mnt/both"));
    mount.unmount();
}

fn whiteout(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::empty(), 0)
        .unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn assert_numbers_agree(dir: &Path) {
    use std::os::unix::fs::DirEntryExt as _;
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.ino(), fs::symlink_metadata(entry.path()).unwrap().ino(), "{:?}", entry.path());
    }
}
