//! A small image around the machine's static busybox: two layers, starts in no time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::archive::{Form, Image, Layer};
use super::cache;
use super::layer::{LayerWriter, Meta};

/// What the image is called in its archives.
pub const REFERENCE: &str = "strata-test/busybox:1";

/// The folder with the image's archives.
pub fn folder() -> Result<PathBuf> {
    cache::get_or_make("busybox-2", |folder| {
        let image = image(folder)?;
        for form in Form::ALL {
            image.write(form, &folder.join(form.file_name()))?;
        }
        Ok(())
    })
}

/// The words of a command that runs a script in a container of the image, and removes that.
pub fn shell<'a>(options: &[&'a str], script: &'a str) -> Vec<&'a str> {
    [&["run", "--rm"], options, &[REFERENCE, "sh", "-c", script]].concat()
}

/// The busybox of this machine, if it is a static program.
pub fn program() -> Result<PathBuf> {
    let candidates = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    let found = candidates.into_iter().find(|path| path.is_file());
    found.context("no busybox on this machine (package busybox-static)")
}

fn image(folder: &Path) -> Result<Image> {
    let program = fs::read(program()?)?;
    let (dir, exec) = (Meta::mode(0o755), Meta::mode(0o755));
    let base = folder.join("0.tar");
    let mut out = LayerWriter::new(File::create(&base)?);
    for folder in ["bin", "etc", "home", "proc", "root", "sys", "usr", "usr/bin", "var"] {
        out.directory(folder, &dir)?;
    }
    out.directory("tmp", &Meta::mode(0o1777))?;
    out.file("bin/busybox", &exec, &program)?;
    let applets = std::process::Command::new(self::program()?).arg("--list").output()?;
    ensure!(applets.status.success(), "busybox --list: {}", applets.status);
    let applets = String::from_utf8(applets.stdout)?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        out.hard_link(format!("bin/{applet}"), "bin/busybox", &exec)?;
    }
    out.file("etc/passwd", &Meta::mode(0o644), b"root:x:0:0:root:/root:/bin/sh\nplain:x:1000:1000::/home:/bin/sh\n")?;
    out.file("etc/group", &Meta::mode(0o644), b"root:x:0:\nplain:x:1000:\nextra:x:2000:plain\n")?;
    out.finish()?;

    let top = folder.join("1.tar");
    let mut out = LayerWriter::new(File::create(&top)?);
    out.directory("home", &Meta::mode(0o755).owned(1000, 1000))?;
    out.file("etc/motd", &Meta::mode(0o644), b"hello from a layer\n")?;
    out.file("home/not-executable", &Meta::mode(0o644), b"#!/bin/sh\n")?;
    out.whiteout("var")?;
    out.finish()?;

    Ok(Image {
        reference: REFERENCE.to_owned(),
        layers: vec![Layer::of(&base, "busybox")?, Layer::of(&top, "motd")?],
        config: json!({"Env": ["PATH=/bin:/usr/bin", "FROM_IMAGE=yes"], "Cmd": ["sh"], "WorkingDir": "/home"}),
    })
}
