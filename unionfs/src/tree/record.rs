//! Objects as bytes, for the server that comes after this one. Both have the same code, so there is no version.

use super::object::{Content, Object, State};
use super::unmoved::Unmoved;
use crate::backing::Identity;
use crate::lower::Place;
use crate::node::{Ino, Kind};
use crate::upper::Link;

/// What was written of an object.
pub(super) struct Restored {
    pub(super) ino: Ino,
    pub(super) kind: Kind,
    pub(super) over_lower: bool,
    pub(super) state: State,
    /// Its file is among the pins.
    pub(super) pinned: bool,
}

/// Writes an object.
pub(super) fn encode(object: &Object, state: &State) -> Vec<u8> {
    // How often it is open is known to whoever counts the kernel's handles, and the descriptor is opened again.
    let State {
        upper,
        content,
        held,
        impure,
        merged,
        opaque,
        places,
        unnamed,
        pinned,
        data: _,
        opens: _,
        link,
        unmoved,
    } = state;
    let mut writer = Writer(vec![OBJECT]);
    writer.number(object.ino.0);
    writer.number(kind_number(object.kind));
    let flags = [
        object.over_lower,
        *merged,
        *opaque,
        *unnamed,
        pinned.is_some(),
        upper.is_some(),
        link.is_some(),
        link.is_some_and(|link| link.copied),
    ];
    writer.0.push(flags.iter().fold(0, |bits, flag| bits << 1 | u8::from(*flag)));
    writer.identity(upper.as_ref());
    let link = link.unwrap_or_default();
    writer.number(link.all.into());
    writer.number(link.covered.into());
    writer.places(places.iter());
    writer.number(match content {
        Content::Own => OWN,
        Content::Missing => MISSING,
        Content::Lower(data) => data.0,
    });
    writer.number(held.map_or(0, |held| held.0));
    writer.number((*impure).into());
    let unmoved = unmoved.map(Unmoved::to_words);
    writer.number(unmoved.is_some().into());
    unmoved.iter().flatten().for_each(|word| writer.number(*word));
    writer.0
}

/// Reads an object; `None` for what is none.
pub(super) fn decode(bytes: &[u8]) -> Option<Restored> {
    let mut reader = Reader(bytes.strip_prefix(&[OBJECT])?);
    let ino = Ino(reader.number()?);
    let kind = kind_of_number(reader.number()?)?;
    let bits = *reader.bytes(1)?.first()?;
    let [over_lower, merged, opaque, unnamed, pinned, in_upper, linked, copied] =
        std::array::from_fn(|place| bits & (0x80 >> place) != 0);
    let upper = reader.identity()?;
    let (all, covered) = (reader.number()?, reader.number()?);
    let link = Link { all: u32::try_from(all).ok()?, covered: u32::try_from(covered).ok()?, copied };
    let state = State {
        upper: in_upper.then_some(upper),
        merged,
        opaque,
        places: reader.places()?,
        content: match reader.number()? {
            OWN => Content::Own,
            MISSING => Content::Missing,
            data => Content::Lower(Ino(data)),
        },
        held: Some(reader.number()?).filter(|held| *held != 0).map(Ino),
        impure: reader.number()? == 1,
        unnamed,
        link: linked.then_some(link),
        unmoved: match reader.number()? {
            0 => None,
            _ => Some(Unmoved::of_words(reader.numbers()?)?),
        },
        ..State::default()
    };
    Some(Restored { ino, kind, over_lower, state, pinned })
}

/// Writes bytes one after another.
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    pub(super) fn text(&mut self, text: &[u8]) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text);
    }

    pub(super) fn identity(&mut self, identity: Option<&Identity>) {
        self.number(identity.map_or(0, |identity| identity.device));
        self.number(identity.map_or(0, |identity| identity.ino));
    }

    pub(super) fn places<'a>(&mut self, places: impl ExactSizeIterator<Item = &'a Place>) {
        self.number(places.len() as u64);
        for place in places {
            self.number(place.parent.0);
            self.text(&place.name);
        }
    }
}

/// Reads them again.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn numbers<const COUNT: usize>(&mut self) -> Option<[u64; COUNT]> {
        let mut numbers = [0; COUNT];
        for number in &mut numbers {
            *number = self.number()?;
        }
        Some(numbers)
    }

    pub(super) fn text(&mut self) -> Option<Vec<u8>> {
        let length = usize::try_from(self.number()?).ok()?;
        self.bytes(length).map(<[u8]>::to_vec)
    }

    pub(super) fn identity(&mut self) -> Option<Identity> {
        Some(Identity { device: self.number()?, ino: self.number()? })
    }

    pub(super) fn places(&mut self) -> Option<Vec<Place>> {
        let count = self.number()?;
        (0..count).map(|_| Some(Place { parent: Ino(self.number()?), name: self.text()? })).collect()
    }
}

fn kind_number(kind: Kind) -> u64 {
    crate::node::type_bits(kind).into()
}

fn kind_of_number(number: u64) -> Option<Kind> {
    crate::node::kind_of(u32::try_from(number).ok()?)
}

/// Stand where the number of a lower node would, which neither is.
const OWN: u64 = 0;
const MISSING: u64 = 1;
/// Begins a record of an object; the lower has its own.
const OBJECT: u8 = b'o';

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_reads_back() {
        let place = |parent, name: &[u8]| Place { parent: Ino(parent), name: name.to_vec() };
        let state = State {
            upper: Some(Identity { device: 7, ino: 9 }),
            merged: true,
            content: Content::Lower(Ino(77)),
            held: Some(Ino(77)),
            impure: true,
            places: vec![place(1, b"a"), place(1 << 62, &[0xff; 255])],
            link: Some(Link { all: 3, covered: 2, copied: true }),
            unmoved: Unmoved::of_words(std::array::from_fn(|number| number as u64)),
            ..State::default()
        };
        let object = Object::new(Ino(12), Kind::Regular, true, State::default());
        let bytes = encode(&object, &state);
        let restored = decode(&bytes).unwrap();
        assert_eq!((restored.ino, restored.kind, restored.over_lower), (Ino(12), Kind::Regular, true));
        assert!(restored.state.unmoved.is_some());
        assert_eq!(format!("{:?}", restored.state), format!("{state:?}"));
        assert!(!restored.pinned);
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_none());
        }
    }
}
