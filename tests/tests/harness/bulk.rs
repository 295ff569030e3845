//! The loops over all images that people and tutorials write, run as they are.

use std::process::Command;

use anyhow::{Result, ensure};
use strata_tests::image::archive::Form;
use strata_tests::image::busybox;
use strata_tests::strata::{Strata, finish, program};
use strata_tests::tier::{Need, Suite};

pub(crate) fn register(suite: &mut Suite) {
    suite.add("bulk::unprivileged_scripts_of_tutorials", &[Need::Busybox], scripts);
}

/// All of them save what there is, one way or another, into files of the working folder, and load it into a second root.
const SCRIPTS: [&str; 6] = [
    // One archive of everything.
    "docker save $(docker images -q) -o all.tar && other load < all.tar",
    "docker save $(docker images --format '{{.Repository}}:{{.Tag}}' | grep -v '<none>') | gzip > all.tar.gz && \
     gunzip -c all.tar.gz | other load",
    "docker images | tail -n +2 | awk '{print $1\":\"$2}' | xargs docker save -o all.tar && other load --input all.tar",
    // One archive for each image.
    "docker images | awk 'NR>1 {print $1, $2, $3}' | while read repository tag id; do \
       docker save -o \"$(echo $repository | tr / _)_$tag.tar\" \"$repository:$tag\"; done; \
     for file in *.tar; do other load -i \"$file\"; done",
    "for image in $(docker image ls --format '{{.Repository}}:{{.Tag}}'); do \
       docker save $image | gzip > \"$(echo $image | tr '/:' '__').tar.gz\"; done; \
     ls -1 *.tar.gz | xargs -I{} sh -c 'gunzip -c {} | other load'",
    "find . -name '*.none'; docker image ls -a --no-trunc --format '{{.ID}} {{.Repository}} {{.Tag}}' | \
     while IFS=' ' read -r id repository tag; do docker save \"$id\" > \"${id#sha256:}.tar\"; done; \
     for file in *.tar; do other load -qi $file; done; \
     docker image ls -a --no-trunc --format '{{.ID}} {{.Repository}} {{.Tag}}' | \
     while read -r id repository tag; do other tag \"$id\" \"$repository:$tag\"; done",
];

fn scripts() -> Result<()> {
    let strata = Strata::new()?;
    let archive = busybox::folder()?.join(Form::DockerNew.file_name());
    strata.load(&archive)?;
    strata.ok(["tag", busybox::REFERENCE, "second/name:2"])?;
    strata.ok(["import", &archive.display().to_string(), "imported:1"])?;
    let list = |root: &str| -> Result<String> {
        let mut command = Command::new(program().unwrap_or_default());
        command.args(["--root", root, "images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"]);
        let finished = finish(&mut command)?;
        let mut lines: Vec<&str> = finished.stdout.lines().collect();
        lines.sort_unstable();
        Ok(lines.join("\n"))
    };
    let first = strata.state().display().to_string();
    for (number, script) in SCRIPTS.into_iter().enumerate() {
        let folder = strata.make_folder(&format!("script{number}"))?;
        let bin = strata.make_folder(&format!("bin{number}"))?;
        let second = strata.folder().join(format!("second{number}")).display().to_string();
        for (name, root) in [("docker", &first), ("other", &second)] {
            let wrapper = bin.join(name);
            let program = program().unwrap_or_default();
            std::fs::write(&wrapper, format!("#!/bin/sh\nexec {} --root {root} \"$@\"\n", program.display()))?;
            std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", script]).current_dir(&folder).env("PATH", path);
        let finished = finish(&mut command)?;
        ensure!(finished.status.success(), "{script}\n{finished}");
        if number == 0 {
            // By their IDs images are saved without names, as Docker does.
            ensure!(list(&second)?.lines().count() == 2, "{}", list(&second)?);
        } else {
            ensure!(list(&second)? == list(&first)?, "{script}\n{}\ninstead of\n{}", list(&second)?, list(&first)?);
        }
    }
    Ok(())
}
