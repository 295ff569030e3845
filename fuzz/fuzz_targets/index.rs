//! The reader of indexes meets damaged files: a whole index with some bytes changed, or arbitrary bytes.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use strata_fuzz::{check, read_everything};
use strata_layer::index::{Builder, Content, Device, Index, Layer, Metadata};
use strata_layer::objects::Segment;
use strata_layer::{DiffId, Digest};

fuzz_target!(|data: &[u8]| {
    let Some((&mode, data)) = data.split_first() else { return };
    let bytes = if mode < 8 {
        data.to_vec()
    } else {
        // Each four bytes of input change one byte somewhere; the last ones may cut the file.
        let mut bytes = whole().to_vec();
        for change in data.chunks_exact(4) {
            let position = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
            bytes[position] = change[2];
            if change[3] == 0xff {
                bytes.truncate(position);
                bytes.push(change[2]);
            }
        }
        bytes
    };
    if let Ok(index) = Index::from_bytes(bytes) {
        let whole = index.verify().is_ok();
        read_everything(&index);
        if whole {
            // A checksum that matches by chance is not to be expected: this is the index as it was built.
            check(&index);
        }
    }
});

/// An index with every kind of entry.
fn whole() -> &'static [u8] {
    static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let mut builder = Builder::new();
        let metadata = |xattrs: &[(&[u8], &[u8])]| Metadata {
            permissions: 0o755,
            xattrs: xattrs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
            ..Metadata::default()
        };
        let segments =
            [Segment { offset: 0, length: 512, source: 1024 }, Segment { offset: 4096, length: 4, source: 2048 }];
        let mut add = |path: &str, metadata: Metadata, content: Content<'_>| {
            builder.add(path.as_bytes(), metadata, content).expect("an honest entry");
        };
        add("d", metadata(&[(b"user.a", b"b"), (b"user.c", b"")]), Content::Directory);
        for number in 0..40 {
            add(&format!("d/file-{number}"), metadata(&[]), Content::Regular { size: 512, segments: &segments[..1] });
        }
        add("d/sparse", metadata(&[]), Content::Regular { size: 8192, segments: &segments });
        add("implicit/link", metadata(&[]), Content::Symlink { target: b"../target" });
        add("c", metadata(&[]), Content::CharDevice(Device { major: 1, minor: 3 }));
        add("b", metadata(&[]), Content::BlockDevice(Device { major: 7, minor: 3 }));
        add("p", metadata(&[]), Content::Fifo);
        builder.hard_link(b"d/twin", b"d/sparse").expect("a hard link");
        builder.hard_link(b"d/foreign", b"lower/file").expect("a link to a lower layer");
        builder.whiteout(b"d/gone").expect("a whiteout");
        builder.opaque(b"o").expect("an opaque folder");
        builder
            .finish(Layer { diff_id: DiffId(Digest::of(b"")), tar_size: 1 << 20 })
            .and_then(|index| Ok(index.into_bytes()?))
            .expect("a small index")
    })
}
