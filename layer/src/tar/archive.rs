//! Archives for tests, made byte by byte, good or bad.

use super::BLOCK;

/// An archive under construction.
#[derive(Default)]
pub(crate) struct Archive(pub(crate) Vec<u8>);

/// A header with a right checksum, unless changed afterwards.
pub(crate) struct RawHeader(pub(crate) [u8; BLOCK]);

impl RawHeader {
    pub(crate) fn new(magic: &[u8; 8], type_flag: u8, name: &str, size: u64) -> RawHeader {
        let mut block = [0; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[156] = type_flag;
        block[257..265].copy_from_slice(magic);
        let mut header = RawHeader(block);
        header.set(100, "0000644\0").set(108, "0001750\0").set(116, "0000144\0");
        header.set(124, &format!("{size:011o}\0")).set(136, "14400000000\0");
        header
    }

    pub(crate) fn set(&mut self, at: usize, text: &str) -> &mut RawHeader {
        self.set_bytes(at, text.as_bytes())
    }

    pub(crate) fn set_bytes(&mut self, at: usize, bytes: &[u8]) -> &mut RawHeader {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|&byte| u32::from(byte)).sum();
        self.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self
    }
}

pub(crate) const USTAR: &[u8; 8] = b"ustar\x0000";
pub(crate) const GNU: &[u8; 8] = b"ustar  \0";
pub(crate) const V7: &[u8; 8] = &[0; 8];

impl Archive {
    pub(crate) fn header(mut self, header: &RawHeader) -> Archive {
        self.0.extend_from_slice(&header.0);
        self
    }

    pub(crate) fn data(mut self, bytes: &[u8]) -> Archive {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    pub(crate) fn entry(self, type_flag: u8, name: &str, data: &[u8]) -> Archive {
        self.header(&RawHeader::new(USTAR, type_flag, name, data.len() as u64)).data(data)
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Archive {
        self.entry(b'0', name, data)
    }

    pub(crate) fn pax(self, records: &[&str]) -> Archive {
        self.entry(b'x', "PaxHeaders/x", &pax_records(records))
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}

pub(crate) fn pax_records(records: &[&str]) -> Vec<u8> {
    let record = |text: &&str| {
        // The length counts its own digits.
        let length = (1..).find(|&length: &usize| length == text.len() + 2 + length.to_string().len()).unwrap();
        format!("{length} {text}\n").into_bytes()
    };
    records.iter().flat_map(record).collect()
}
