//! A union beside a plain folder: the same steps on both, the same answers, the same tree, and numbers that stay.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirEntryExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};

use crate::step::{ATTRIBUTE, Step, errno};
use crate::union::{Server, Union};

/// A union and its reference.
#[derive(Debug)]
pub struct Twin {
    union: Union,
    reference: PathBuf,
    /// The number that the union shows for each object of the reference, which is kept open: so its number names nothing
    /// else.
    numbers: HashMap<u64, (u64, OwnedFd)>,
    over_rotations: Numbers,
    /// What was done since the last time that both were found the same.
    steps: Vec<Step>,
}

/// What numbers do when layers rotate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// They stay.
    Stay,
    /// They may be others.
    Change,
}

/// What a name is: the number, and everything else as text.
type Tree = BTreeMap<PathBuf, (u64, String)>;

impl Twin {
    /// An empty union, not mounted, and an empty folder.
    pub fn new(server: Server) -> Result<Twin> {
        Twin::of(Union::new(server)?)
    }

    /// The same with a union that may have options.
    pub fn of(union: Union) -> Result<Twin> {
        let reference = union.strata().make_folder("reference")?;
        rustix::fs::chmod(&reference, Mode::from_raw_mode(0o755))?;
        Ok(Twin { union, reference, numbers: HashMap::new(), over_rotations: Numbers::Stay, steps: Vec::new() })
    }

    /// Says what numbers do when layers rotate; that they stay is what is asked for otherwise.
    #[must_use]
    pub fn over_rotations(self, numbers: Numbers) -> Twin {
        Twin { over_rotations: numbers, ..self }
    }

    /// The union.
    pub fn union(&self) -> &Union {
        &self.union
    }

    /// Does steps to the lower at the bottom, before it is mounted, and to the reference.
    pub fn prepare(&mut self, steps: &[Step]) -> Result<()> {
        for step in steps {
            let (union, reference) = (step.apply(&self.union.bottom()), step.apply(&self.reference));
            ensure!(union == reference && union.is_ok(), "prepare: {step}: {union:?}, {reference:?}");
        }
        Ok(())
    }

    /// Mounts the union.
    pub fn mount(&mut self) -> Result<()> {
        self.union.mount()?;
        self.verify()
    }

    /// Does a step to both and compares the answers.
    pub fn step(&mut self, step: &Step) -> Result<()> {
        self.steps.push(step.clone());
        let (union, reference) = (step.apply(&self.union.point()), step.apply(&self.reference));
        ensure!(
            union == reference,
            "{step}: {union:?}, expected {reference:?}; {} lowers; before it: {:?}",
            self.union.depth(),
            related(&self.steps, step)
        );
        Ok(())
    }

    /// Lets the layers rotate, and sees that nothing shows of it.
    pub fn rotate(&mut self) -> Result<()> {
        self.union.rotate()?;
        if self.over_rotations == Numbers::Change {
            self.numbers.clear();
        }
        self.verify().context("after a rotation")
    }

    /// Mounts the union again, and sees that nothing shows of it.
    pub fn remount(&mut self) -> Result<()> {
        self.union.remount()?;
        self.verify().context("after a remount")
    }

    /// Compares both trees, and numbers with those of before.
    pub fn verify(&mut self) -> Result<()> {
        let found = read(&self.union.point()).context("read the union")?;
        let expected = read(&self.reference)?;
        let names: std::collections::BTreeSet<_> = found.keys().chain(expected.keys()).collect();
        let mut wrong = Vec::new();
        for name in &names {
            let text = |tree: &Tree| tree.get(*name).map_or("(absent)".to_owned(), |(_, text)| text.clone());
            if text(&found) != text(&expected) {
                wrong.push(format!("{name:?}\n  - {}\n  + {}", text(&expected), text(&found)));
            }
        }
        self.compare_numbers(&found, &expected, &mut wrong)?;
        ensure!(
            wrong.is_empty(),
            "{} of {} names are not as in the reference (- expected, + found), {} lowers; steps: {:?}\n{}",
            wrong.len(),
            names.len(),
            self.union.depth(),
            self.steps.iter().rev().take(12).rev().collect::<Vec<_>>(),
            wrong.into_iter().take(12).collect::<Vec<_>>().join("\n")
        );
        self.steps.clear();
        Ok(())
    }

    fn compare_numbers(&mut self, found: &Tree, expected: &Tree, wrong: &mut Vec<String>) -> Result<()> {
        let mut owners: HashMap<u64, u64> = HashMap::new();
        for (name, (number, _)) in found {
            let Some((object, _)) = expected.get(name) else { continue };
            if let Some((known, _)) = self.numbers.get(object) {
                if known != number {
                    wrong.push(format!("{name:?}\n  - number {known}\n  + number {number}"));
                }
            } else {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let pin = rustix::fs::open(self.reference.join(name), flags, Mode::empty())?;
                self.numbers.insert(*object, (*number, pin));
            }
            let owner = *owners.entry(*number).or_insert(*object);
            if owner != *object {
                wrong.push(format!("{name:?}\n  - a number of its own\n  + {number}, as something else"));
            }
        }
        Ok(())
    }
}

/// Those of the last steps that name something in the same folder.
fn related<'a>(steps: &'a [Step], step: &Step) -> Vec<&'a Step> {
    let folder =
        |step: &Step| format!("{step:?}").split('"').nth(1).map(|path| path.split('/').next().map(str::to_owned));
    let mut found: Vec<&Step> = steps.iter().filter(|other| folder(other) == folder(step)).collect();
    found.pop();
    found
}

/// Reads a tree; a number in a listing must be that of the object.
fn read(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    let device = fs::metadata(root)?.dev();
    let mut pending = vec![PathBuf::new()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(root.join(&folder)).with_context(|| format!("list {folder:?}"))? {
            let entry = entry.with_context(|| format!("list {folder:?}"))?;
            let name = folder.join(entry.file_name());
            let metadata = entry.metadata().with_context(|| format!("stat {name:?}"))?;
            ensure!(metadata.ino() == entry.ino(), "{name:?}: {} in the listing, {}", entry.ino(), metadata.ino());
            ensure!(metadata.dev() == device, "{name:?} is on device {:x}, not {device:x}", metadata.dev());
            ensure!(entry.file_type()? == metadata.file_type(), "{name:?} is listed as {:?}", entry.file_type()?);
            let text = describe(&root.join(&name), &metadata).with_context(|| format!("read {name:?}"))?;
            if metadata.is_dir() {
                pending.push(name.clone());
            }
            tree.insert(name, (metadata.ino(), text));
        }
    }
    Ok(tree)
}

fn describe(path: &Path, metadata: &fs::Metadata) -> Result<String> {
    let mut text = format!("{:o} {}:{}", metadata.mode(), metadata.uid(), metadata.gid());
    let kind = metadata.file_type();
    if !kind.is_dir() {
        text += &format!(" n{}", metadata.nlink());
    }
    if kind.is_char_device() || kind.is_block_device() {
        text += &format!(" {:x}", metadata.rdev());
    }
    if kind.is_symlink() {
        text += &format!(" -> {:?}", fs::read_link(path)?);
    } else {
        let mut value = [0; 64];
        match rustix::fs::getxattr(path, ATTRIBUTE, &mut value[..]) {
            Ok(length) => text += &format!(" {ATTRIBUTE}={:?}", String::from_utf8_lossy(&value[..length])),
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::PERM | rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if kind.is_file() {
        let content = fs::read(path).map_err(errno)?;
        ensure!(
            content.len() as u64 == metadata.size(),
            "{} bytes, but its size is {}",
            content.len(),
            metadata.size()
        );
        text += &format!(" {}B {:?}", content.len(), String::from_utf8_lossy(&content[..content.len().min(80)]));
    }
    Ok(text)
}
