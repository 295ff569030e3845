//! What names were like before a request changed them.
//!
//! Noted just before the change. If the server dies, the next one gets the request again, while the kernel still keeps
//! the directories locked: so whether the names have changed says whether the request was executed.

use super::record::{Reader, Writer};
use crate::backing::Identity;
use crate::node::Ino;
use crate::survive;
use crate::upper::Link;

/// The state of the names that a request is about to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Intent {
    /// Nothing is seen under the name, and something will be made.
    Make {
        /// A whiteout is there.
        whiteout: bool,
    },
    /// Nothing is seen under the name, and the node will be.
    Link {
        /// The node.
        ino: Ino,
    },
    /// The name leads to something that will be gone.
    Remove(Removed),
    /// A name moves.
    Rename(Box<Move>),
    /// A name that leads to the lower joins the others of its file in the upper, before it moves.
    Join(Box<Join>),
    /// An attribute is there, and will be gone.
    RemoveXattr,
    /// An attribute is not there, and will be.
    AddXattr,
}

/// Something that loses a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Removed {
    pub(super) ino: Ino,
    /// The upper has nothing under this very name.
    pub(super) only_in_lower: bool,
    /// What was known of its links.
    pub(super) link: Option<Link>,
}

/// A name that moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) from: (Ino, Vec<u8>),
    pub(super) to: (Ino, Vec<u8>),
    pub(super) moved: (Ino, Identity),
    /// What has the new name.
    pub(super) replaced: Option<Removed>,
    /// The identity of what the moved thing is exchanged with.
    pub(super) exchanged: Option<(Ino, Identity)>,
    /// A whiteout stays behind.
    pub(super) whiteout: bool,
}

/// A name that joins the others of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Join {
    pub(super) dir: Ino,
    pub(super) name: Vec<u8>,
    pub(super) ino: Ino,
    /// What was known of the links before.
    pub(super) link: Link,
}

impl Intent {
    /// Notes the intent for the request that this thread is working on.
    pub(super) fn note(&self) {
        survive::intend(|| self.encode());
    }

    /// Returns what was noted for the present request by a server that died of it or with it.
    pub(super) fn of_the_past() -> Option<Intent> {
        Intent::decode(&survive::past_intent()?)
    }

    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer(Vec::new());
        match self {
            Intent::Make { whiteout } => writer.0.extend([b'm', u8::from(*whiteout)]),
            Intent::Link { ino } => {
                writer.0.push(b'l');
                writer.number(ino.0);
            }
            Intent::Remove(removed) => {
                writer.0.push(b'u');
                write_removed(&mut writer, removed);
            }
            Intent::Rename(renamed) => {
                let Move { from, to, moved, replaced, exchanged, whiteout } = &**renamed;
                writer.0.extend([
                    b'r',
                    u8::from(*whiteout),
                    u8::from(replaced.is_some()),
                    u8::from(exchanged.is_some()),
                ]);
                for (dir, name) in [from, to] {
                    writer.number(dir.0);
                    writer.text(name);
                }
                writer.number(moved.0.0);
                writer.identity(Some(&moved.1));
                if let Some(replaced) = replaced {
                    write_removed(&mut writer, replaced);
                }
                if let Some((ino, identity)) = exchanged {
                    writer.number(ino.0);
                    writer.identity(Some(identity));
                }
            }
            Intent::Join(join) => {
                writer.0.push(b'j');
                writer.number(join.dir.0);
                writer.text(&join.name);
                write_removed(&mut writer, &Removed { ino: join.ino, only_in_lower: true, link: Some(join.link) });
            }
            Intent::RemoveXattr => writer.0.push(b'x'),
            Intent::AddXattr => writer.0.push(b'a'),
        }
        writer.0
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Intent> {
        let mut reader = Reader(bytes);
        Some(match reader.bytes(1)? {
            b"m" => Intent::Make { whiteout: reader.bytes(1)? == [1] },
            b"l" => Intent::Link { ino: Ino(reader.number()?) },
            b"u" => Intent::Remove(read_removed(&mut reader)?),
            b"r" => {
                let [whiteout, replaced, exchanged] = <[u8; 3]>::try_from(reader.bytes(3)?).ok()?.map(|flag| flag == 1);
                Intent::Rename(Box::new(Move {
                    from: (Ino(reader.number()?), reader.text()?),
                    to: (Ino(reader.number()?), reader.text()?),
                    moved: (Ino(reader.number()?), reader.identity()?),
                    replaced: if replaced { Some(read_removed(&mut reader)?) } else { None },
                    exchanged: if exchanged { Some((Ino(reader.number()?), reader.identity()?)) } else { None },
                    whiteout,
                }))
            }
            b"j" => {
                let (dir, name) = (Ino(reader.number()?), reader.text()?);
                let Removed { ino, link, .. } = read_removed(&mut reader)?;
                Intent::Join(Box::new(Join { dir, name, ino, link: link? }))
            }
            b"x" => Intent::RemoveXattr,
            b"a" => Intent::AddXattr,
            _ => return None,
        })
    }
}

fn write_removed(writer: &mut Writer, removed: &Removed) {
    let Removed { ino, only_in_lower, link } = removed;
    writer.number(ino.0);
    writer.0.extend([
        u8::from(*only_in_lower),
        u8::from(link.is_some()),
        u8::from(link.is_some_and(|link| link.copied)),
    ]);
    let link = link.unwrap_or_default();
    writer.number(link.all.into());
    writer.number(link.covered.into());
}

fn read_removed(reader: &mut Reader<'_>) -> Option<Removed> {
    let ino = Ino(reader.number()?);
    let [only_in_lower, linked, copied] = <[u8; 3]>::try_from(reader.bytes(3)?).ok()?.map(|flag| flag == 1);
    let (all, covered) = (u32::try_from(reader.number()?).ok()?, u32::try_from(reader.number()?).ok()?);
    Some(Removed { ino, only_in_lower, link: linked.then_some(Link { all, covered, copied }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intents_read_back() {
        let joined = Link { all: 4, covered: 1, copied: true };
        let link = Some(joined);
        let removed = Removed { ino: Ino(5), only_in_lower: true, link };
        let identity = Identity { device: 1, ino: 2 };
        let renamed = Move {
            from: (Ino(1), b"from".to_vec()),
            to: (Ino(2), vec![0xff; 255]),
            moved: (Ino(3), identity),
            replaced: Some(removed),
            exchanged: Some((Ino(4), identity)),
            whiteout: true,
        };
        let bare = Move { replaced: None, exchanged: None, whiteout: false, ..renamed.clone() };
        for intent in [
            Intent::Make { whiteout: true },
            Intent::Link { ino: Ino(9) },
            Intent::Remove(removed),
            Intent::Rename(Box::new(renamed)),
            Intent::Rename(Box::new(bare)),
            Intent::Join(Box::new(Join { dir: Ino(7), name: b"name".to_vec(), ino: Ino(5), link: joined })),
            Intent::RemoveXattr,
            Intent::AddXattr,
        ] {
            let bytes = intent.encode();
            assert_eq!(Intent::decode(&bytes), Some(intent));
            assert_eq!(Intent::decode(&bytes[..bytes.len() - 1]), None);
        }
    }
}
