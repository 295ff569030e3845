//! One header block.

use super::BLOCK;
use super::error::Problem;
use super::number;

/// A header block whose checksum is right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header<'a> {
    block: &'a [u8; BLOCK],
    format: Format,
}

/// How to read the fields behind the link name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Nothing there.
    V7,
    /// Devices and a prefix of the name.
    Ustar,
    /// Devices, and for sparse files a map.
    Gnu,
}

impl<'a> Header<'a> {
    pub(super) fn parse(block: &'a [u8; BLOCK]) -> Result<Header<'a>, Problem> {
        let expected = number::field(&block[CHECKSUM]).ok_or(Problem::Checksum)?;
        // The field itself counts as spaces. Some writers added the bytes up as signed ones.
        let outside = || block[..CHECKSUM.start].iter().chain(&block[CHECKSUM.end..]);
        let unsigned = outside().map(|&byte| u32::from(byte)).sum::<u32>() + 8 * u32::from(b' ');
        if i128::from(unsigned) != expected {
            let signed = outside().map(|&byte| i32::from(byte.cast_signed())).sum::<i32>() + 8 * i32::from(b' ');
            if i128::from(signed) != expected {
                return Err(Problem::Checksum);
            }
        }
        let format = match &block[MAGIC] {
            b"ustar  \0" => Format::Gnu,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Format::Ustar,
            _ => Format::V7,
        };
        Ok(Header { block, format })
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.block[156]
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.block[0..100]);
        let prefix = if self.format == Format::Ustar { text(&self.block[345..500]) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link_name(&self) -> &'a [u8] {
        text(&self.block[157..257])
    }

    pub(super) fn permissions(&self) -> Result<u16, Problem> {
        let mode = number::field(&self.block[100..108]).filter(|&mode| mode >= 0).ok_or(Problem::Number("mode"))?;
        // Some writers put the type of the file there as well.
        Ok((mode & 0o7777) as u16)
    }

    pub(super) fn uid(&self) -> Result<u64, Problem> {
        self.unsigned(108..116, "uid")
    }

    pub(super) fn gid(&self) -> Result<u64, Problem> {
        self.unsigned(116..124, "gid")
    }

    pub(super) fn size(&self) -> Result<u64, Problem> {
        self.unsigned(124..136, "size")
    }

    pub(super) fn mtime(&self) -> Result<i64, Problem> {
        let seconds = number::field(&self.block[136..148]).ok_or(Problem::Number("mtime"))?;
        let clamped = seconds.clamp(i64::MIN.into(), i64::MAX.into());
        i64::try_from(clamped).map_err(|_| Problem::Number("mtime"))
    }

    pub(super) fn device(&self) -> Result<(u64, u64), Problem> {
        if self.format == Format::V7 {
            return Ok((0, 0));
        }
        Ok((self.unsigned(329..337, "devmajor")?, self.unsigned(337..345, "devminor")?))
    }

    /// Returns the four map slots of an old GNU sparse file, whether more follow, and the file's real size.
    pub(super) fn sparse(&self) -> Result<(&'a [u8], bool, u64), Problem> {
        Ok((&self.block[386..482], self.block[482] != 0, self.unsigned(483..495, "realsize")?))
    }

    fn unsigned(&self, range: std::ops::Range<usize>, field: &'static str) -> Result<u64, Problem> {
        let number = number::field(&self.block[range]).ok_or(Problem::Number(field))?;
        u64::try_from(number).map_err(|_| Problem::Number(field))
    }
}

/// A field of text: up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&byte| byte == 0).unwrap_or(field.len())]
}

const CHECKSUM: std::ops::Range<usize> = 148..156;
const MAGIC: std::ops::Range<usize> = 257..265;
