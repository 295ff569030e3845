//! Logins: Docker's file, credential helpers, tokens.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use strata_tests::strata::finish;

use super::scene::Scene;
use crate::registry::Serving;

/// Starts a registry that only `alice` may use.
fn closed(scene: &Scene, arguments: &[&str]) -> Result<Serving> {
    fs::write(scene.path("password"), "secret\n")?;
    let line = scene.strata.run_with_input(["registry", "htpasswd", "alice"], File::open(scene.path("password"))?)?;
    fs::write(scene.path("users"), line.stdout)?;
    let mut all = vec!["--htpasswd", "users"];
    all.extend(arguments);
    Serving::with(&scene.strata, "registry", "127.0.0.1:0", &all)
}

fn log_in(scene: &Scene, registry: &str, password: &str) -> Result<strata_tests::strata::Finished> {
    fs::write(scene.path("password"), password)?;
    let mut command = scene.command(&["login", "-u", "alice", "--password-stdin", registry]);
    finish(command.stdin(File::open(scene.path("password"))?))
}

pub(super) fn logins() -> Result<()> {
    for kind in ["basic", "token"] {
        let scene = Scene::new()?;
        scene.fill("registry", &["team/app:1"])?;
        let serving = closed(&scene, &["--auth", kind])?;
        let registry = serving.address.as_str();
        let name = format!("{registry}/team/app:1");
        let config = scene.path("docker/config.json");
        // As a version of docker left it, with what is not ours.
        let before = json!({"HttpHeaders": {"User-Agent": "x"}, "auths": {"https://quay.example": {"auth": "YTpi"}}});
        let original = before.to_string();
        fs::write(&config, &original)?;
        let refused = scene.refused(&["pull", &name])?;
        ensure!(
            refused.contains("pull access denied for") && refused.contains("may require 'strata login'"),
            "{refused}"
        );
        let refused = scene.refused(&["login", "-u", "alice", registry])?;
        ensure!(refused.contains("Cannot perform an interactive login from a non TTY device"), "{refused}");
        let refused = scene.refused(&["login", "--password-stdin", registry])?;
        ensure!(refused.contains("Must provide --username with --password-stdin"), "{refused}");
        let wrong = log_in(&scene, registry, "wrong")?;
        ensure!(wrong.code() == 1 && wrong.stderr.contains("unauthorized"), "{wrong}");
        ensure!(fs::read_to_string(&config)? == original, "a login that failed changed the file");
        let finished = log_in(&scene, registry, "secret\n")?;
        ensure!(finished.code() == 0 && finished.stdout == "Login Succeeded\n", "{finished}");
        let text = fs::read_to_string(&config)?;
        let document: Value = serde_json::from_str(&text)?;
        let entry = &document["auths"][registry];
        match kind {
            "basic" => ensure!(entry == &json!({"auth": "YWxpY2U6c2VjcmV0"}), "{entry}"),
            _ => {
                ensure!(entry["auth"] == json!("YWxpY2U6") && entry["identitytoken"].is_string(), "{entry}");
                ensure!(!text.contains("c2VjcmV0"), "the password is in the file beside the token");
            }
        }
        ensure!(document["HttpHeaders"] == before["HttpHeaders"], "{text}");
        ensure!(document["auths"]["https://quay.example"] == before["auths"]["https://quay.example"], "{text}");
        // Docker indents by tabs.
        ensure!(text.starts_with("{\n\t\""), "{text:?}");
        ensure!(fs::metadata(&config)?.permissions().mode() & 0o777 == 0o600, "others can read it");
        scene.pulls(&name)?;
        let again = scene.ok(&["login", registry])?;
        ensure!(again.starts_with("Authenticating with existing credentials..."), "{again}");
        ensure!(again.ends_with("Login Succeeded\n"), "{again}");
        // A file whose entries older versions wrote by address.
        let old = text.replace(registry, &format!("https://{registry}/v1/"));
        fs::write(&config, old)?;
        scene.pulls(&name)?;
        let out = scene.ok(&["logout", registry])?;
        ensure!(out == format!("Removing login credentials for {registry}\n"), "{out}");
        let document: Value = serde_json::from_slice(&fs::read(&config)?)?;
        ensure!(document == before, "{document}");
        let out = scene.ok(&["logout", registry])?;
        ensure!(out == format!("Not logged in to {registry}\n"), "{out}");
        scene.refused(&["pull", &name])?;
        fs::write(&config, "{\"auths\": ")?;
        let broken = scene.refused(&["pull", &name])?;
        ensure!(broken.contains("config.json"), "{broken}");
    }
    Ok(())
}

/// A helper by docker's protocol, that keeps each login in a file and notes what it was asked.
const HELPER: &str = r#"#!/bin/sh
cd "$KEPT" || exit 1
input=$(cat)
echo "${0##*/} $1" >> asked
case $1 in
store)
    server=$(printf %s "$input" | sed 's/.*"ServerURL":"\([^"]*\)".*/\1/')
    printf %s "$input" > "$(printf %s "$server" | tr / _)" ;;
get)
    cat "$(printf %s "$input" | tr / _)" 2>/dev/null && exit
    echo "credentials not found in native keychain"
    exit 1 ;;
erase) rm -f "$(printf %s "$input" | tr / _)" ;;
esac
"#;

pub(super) fn helpers() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.fill("registry", &["team/app:1"])?;
    let serving = closed(&scene, &[])?;
    let registry = serving.address.clone();
    let name = format!("{registry}/team/app:1");
    let programs = scene.strata.make_folder("programs")?;
    let kept = scene.strata.make_folder("kept")?;
    for helper in ["store-of-all", "of-one"] {
        let program = programs.join(format!("docker-credential-{helper}"));
        fs::write(&program, HELPER)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    }
    let path = std::env::var("PATH").unwrap_or_default();
    scene.set("PATH", format!("{}:{path}", programs.display()));
    scene.set("KEPT", kept.display().to_string());
    let config = scene.path("docker/config.json");
    for (keys, helper) in [
        (json!({"credsStore": "store-of-all"}), "store-of-all"),
        (json!({"credsStore": "store-of-all", "credHelpers": {registry.as_str(): "of-one"}}), "of-one"),
    ] {
        fs::write(&config, keys.to_string())?;
        let finished = log_in(&scene, &registry, "secret")?;
        ensure!(finished.code() == 0 && finished.stdout == "Login Succeeded\n", "{finished}");
        ensure!(finished.stderr.is_empty(), "a helper keeps it, so nothing is warned of: {finished}");
        let document: Value = serde_json::from_slice(&fs::read(&config)?)?;
        ensure!(document["auths"] == json!({registry.as_str(): {}}), "{document}");
        let login: Value = serde_json::from_slice(&fs::read(kept.join(&registry))?)?;
        let expected = json!({"ServerURL": registry.as_str(), "Username": "alice", "Secret": "secret"});
        ensure!(login == expected, "{login}");
        scene.pulls(&name)?;
        scene.ok(&["logout", &registry])?;
        ensure!(!kept.join(&registry).exists(), "the helper was not asked to forget it");
        let asked = fs::read_to_string(kept.join("asked"))?;
        for action in ["store", "get", "erase"] {
            ensure!(asked.contains(&format!("docker-credential-{helper} {action}\n")), "{asked}");
        }
        fs::remove_file(kept.join("asked"))?;
        let refused = scene.refused(&["pull", &name])?;
        ensure!(refused.contains("pull access denied"), "{refused}");
    }
    // A helper that is not there is named.
    fs::write(&config, json!({"credsStore": "nowhere"}).to_string())?;
    let refused = scene.refused(&["pull", &name])?;
    ensure!(refused.contains("docker-credential-nowhere"), "{refused}");
    Ok(())
}

pub(super) fn expiring_token() -> Result<()> {
    let scene = Scene::new()?;
    scene.fill("registry", &["team/app:1"])?;
    let faults = [
        "--fault",
        "GET /v2/*/blobs/* times=2 expire-tokens",
        "--fault",
        "POST /v2/*/blobs/uploads/* times=1 expire-tokens",
    ];
    let serving = closed(&scene, &[&["--auth", "token"][..], &faults].concat())?;
    let name = format!("{}/team/app:1", serving.address);
    ensure!(log_in(&scene, &serving.address, "secret")?.code() == 0, "no login");
    scene.ok(&["pull", "-q", &name])?;
    let other = format!("{}/other/app:1", serving.address);
    scene.ok(&["tag", &name, &other])?;
    scene.ok(&["push", "-q", &other])?;
    Ok(())
}
