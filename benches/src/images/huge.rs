//! How much memory a very large layer takes.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use strata_tests::image::layer::{LayerWriter, Meta};

use super::engine::Engine;
use super::scene::Scene;
use crate::load::first_line;
use crate::measure::Cost;
use crate::report::{Report, row, seconds};

/// Prints the table: pull of an image of one large layer, once.
pub(super) fn figures(scene: &Scene, engines: &[Engine], quick: bool, report: &mut Report) -> Result<()> {
    let gigabytes: u64 = if quick { 1 } else { 10 };
    let name = format!("{}/bench/huge:{gigabytes}", scene.address);
    report.say(format!("pull of one gzip layer of {gigabytes} GB, once"));
    push(scene, &name, gigabytes)?;
    let mut table = vec![row(["", "seconds", "CPU-s", "peak MiB"])];
    for engine in engines {
        let pull: &[&str] = match engine {
            Engine::Strata | Engine::Docker => &["pull", "-q"],
            Engine::Podman => &["pull", "-q", "--tls-verify=false"],
            Engine::Containerd => &["images", "pull", "--plain-http"],
            Engine::Skopeo | Engine::Umoci => continue,
        };
        let measured = (|| -> Result<Cost> {
            let store = engine.start(&scene.strata, scene.work.join("engine"))?;
            store.time(&[pull, &[name.as_str()][..]].concat())
        })();
        table.push(match measured {
            Ok(cost) => row([engine.name(), &seconds(cost.wall), &seconds(cost.cpu), &(cost.peak / 1024).to_string()]),
            Err(error) => vec![engine.name().to_owned(), format!("not measured: {}", first_line(&error))],
        });
    }
    report.table(&table);
    Ok(())
}

/// Puts the image into the registry; its tar is made while it is imported.
fn push(scene: &Scene, name: &str, gigabytes: u64) -> Result<()> {
    let store = Engine::Strata.start(&scene.strata, scene.work.join("huge"))?;
    let mut import = store.command(&["import", "-", name]);
    let mut import = import.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let input = import.stdin.take().context("no standard input")?;
    write_layer(input, gigabytes)?;
    ensure!(import.wait()?.success(), "import failed");
    let mut push: Command = store.command(&["push", "-q", "--compression-format", "gzip", name]);
    ensure!(push.stdout(Stdio::null()).status()?.success(), "push failed");
    Ok(())
}

/// Files of a gigabyte each, of blocks that repeat: large when unpacked and small in the registry.
fn write_layer(out: impl Write, gigabytes: u64) -> Result<()> {
    let mut layer = LayerWriter::new(std::io::BufWriter::with_capacity(1 << 20, out));
    for number in 0..gigabytes {
        let mut block = vec![0_u8; 1 << 20];
        for (place, byte) in (0_u64..).zip(&mut block) {
            *byte = ((place % 4096 * (number + 7)) >> 3).to_le_bytes()[0];
        }
        layer.file_from(format!("file-{number}"), &Meta::mode(0o644), 1 << 30, &mut Repeat { block: &block, at: 0 })?;
    }
    layer.finish()?;
    Ok(())
}

/// A block again and again.
struct Repeat<'a> {
    block: &'a [u8],
    at: usize,
}

impl std::io::Read for Repeat<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let rest = &self.block[self.at..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at = (self.at + count) % self.block.len();
        Ok(count)
    }
}
