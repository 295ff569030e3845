//! What a directory shows when nothing but copies has come into it.
//!
//! A copy-up makes a name in the upper's directory. That moves the time of the directory's last change, which cannot be
//! set back as the others are, and may make it larger. To users nothing has happened there. So the directory shows what it
//! showed before, for as long as it stays on disk as the copy has left it: what the kernel keeps of its attributes is still
//! right, and it need not be told and ask again for each file of it.
//!
//! Whoever changes its attributes forgets this before ([`Object::attributes_change`]). New and deleted names are seen by the
//! time of the last modification, which is an old one after a copy. That the time of the last change is compared as well is
//! for changes from outside only: on filesystems whose clock is coarse, it tells no two in one tick of it apart.

use super::Tree;
use super::object::Object;
use crate::backing::RawStat;
use crate::node::{Ino, Stat, Timestamp};

/// What a directory is like on disk since the last copy came into it, and what it shows as long as it is like that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unmoved {
    on_disk: Look,
    shown: Look,
}

/// What a name in a directory changes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    ctime: Timestamp,
    mtime: Timestamp,
    size: u64,
    blocks: u64,
}

impl Unmoved {
    /// Puts what is shown in the place of what is on disk (`raw`), if nothing has happened there.
    pub(super) fn show(&self, raw: &RawStat, stat: &mut Stat) {
        if self.on_disk == Look::of(raw) {
            (stat.ctime, stat.size, stat.blocks) = (self.shown.ctime, self.shown.size, self.shown.blocks);
        }
    }

    pub(super) fn to_words(self) -> [u64; 2 * LOOK_WORDS] {
        let [on_disk, shown] = [self.on_disk, self.shown].map(Look::to_words);
        std::array::from_fn(|place| if place < LOOK_WORDS { on_disk[place] } else { shown[place - LOOK_WORDS] })
    }

    pub(super) fn of_words(words: [u64; 2 * LOOK_WORDS]) -> Option<Unmoved> {
        let (on_disk, shown) = words.split_at(LOOK_WORDS);
        Some(Unmoved { on_disk: Look::of_words(on_disk)?, shown: Look::of_words(shown)? })
    }
}

impl Look {
    fn of(raw: &RawStat) -> Look {
        Look { ctime: raw.ctime, mtime: raw.mtime, size: raw.size, blocks: raw.blocks }
    }

    fn to_words(self) -> [u64; LOOK_WORDS] {
        let Look { ctime, mtime, size, blocks } = self;
        let [changed, modified] = [ctime, mtime].map(|time| (time.seconds.cast_unsigned(), time.nanoseconds.into()));
        [changed.0, changed.1, modified.0, modified.1, size, blocks]
    }

    fn of_words(words: &[u64]) -> Option<Look> {
        let &[changed, changed_part, modified, modified_part, size, blocks] = words else { return None };
        let time = |seconds: u64, part: u64| {
            Some(Timestamp { seconds: seconds.cast_signed(), nanoseconds: u32::try_from(part).ok()? })
        };
        Some(Look { ctime: time(changed, changed_part)?, mtime: time(modified, modified_part)?, size, blocks })
    }
}

impl Tree {
    /// Notes that a copy, and nothing else, has come into a directory, which on disk was like `before` and is like `after`.
    pub(super) fn copy_has_come(&self, dir: &Object, before: &RawStat, after: &RawStat) {
        if dir.ino == Ino::ROOT {
            // Nothing of it is written for the next server.
            self.outdated.add(dir.ino);
            return;
        }
        let mut state = dir.state();
        let (before, after) = (Look::of(before), Look::of(after));
        let shown = state.unmoved.filter(|known| known.on_disk == before).map_or(before, |known| known.shown);
        state.unmoved = Some(Unmoved { on_disk: after, shown });
    }
}

/// Numbers by which a look is written.
const LOOK_WORDS: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    fn look(seconds: i64, size: u64) -> Look {
        let [ctime, mtime] = [seconds, -1].map(|seconds| Timestamp { seconds, nanoseconds: 999_999_999 });
        Look { ctime, mtime, size, blocks: 8 }
    }

    #[test]
    fn it_reads_back() {
        let unmoved = Unmoved { on_disk: look(1 << 40, 4096), shown: look(-5, 40) };
        assert_eq!(Unmoved::of_words(unmoved.to_words()), Some(unmoved));
        let mut words = unmoved.to_words();
        words[1] = u64::MAX;
        assert_eq!(Unmoved::of_words(words), None);
    }
}
