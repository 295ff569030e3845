//! Proxies: the variables that all programs know, and `daemon.json`'s `proxies`.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use strata_tests::network;

use super::scene::{Authority, HOST, OTHER, Scene};
use crate::registry::Serving;

const PLAIN: &str = "registry.example:5000/team/app:1";
const ENCRYPTED: &str = "registry.example:5001/team/app:1";

/// A plain and an encrypted registry, and a proxy.
fn surroundings(body: impl FnOnce(&mut Scene, &Proxy) -> Result<()> + Send) -> Result<()> {
    network::inside(&[HOST, OTHER], || {
        let mut scene = Scene::new()?;
        scene.fill("registry", &["team/app:1"])?;
        let authority = Authority::new()?;
        authority.write(&scene.path("certs/registry.example:5001/ca.crt"))?;
        scene.configure(json!({"insecure-registries": ["registry.example:5000"]}))?;
        let _plain = Serving::with(&scene.strata, "registry", "192.0.2.1:5000", &[])?;
        let _encrypted = scene.serve_encrypted(&authority, "registry", "192.0.2.1:5001", &["registry.example"], &[])?;
        let proxy = Proxy::start("198.51.100.1:3128")?;
        body(&mut scene, &proxy)
    })
}

pub(super) fn of_the_environment() -> Result<()> {
    surroundings(|scene, proxy| {
        scene.pulls(PLAIN)?;
        scene.pulls(ENCRYPTED)?;
        ensure!(proxy.asked().is_empty(), "a proxy that nobody named was used");
        // One for each kind; the password is in the address. It need not have a scheme.
        scene.set("HTTPS_PROXY", "http://user:pa%3Ass@other.example:3128");
        scene.pulls(ENCRYPTED)?;
        let asked = proxy.asked();
        let tunnel = |line: &String| line == "CONNECT registry.example:5001 HTTP/1.1 (user:pa:ss)";
        ensure!(!asked.is_empty() && asked.iter().all(tunnel), "{asked:?}");
        scene.set("NO_PROXY", "example.org, registry.example:5001");
        scene.pulls(ENCRYPTED)?;
        ensure!(proxy.asked().is_empty(), "NO_PROXY with a port");
        for (excluded, through) in [(".example", 0), ("192.0.2.0/24", 1), ("REGISTRY.EXAMPLE", 0), ("*", 0)] {
            scene.set("NO_PROXY", excluded);
            scene.pulls(ENCRYPTED)?;
            // Networks are for addresses; what a name leads to is the proxy's business.
            let asked = proxy.asked().len();
            ensure!((asked > 0) == (through > 0), "NO_PROXY={excluded}: {asked}");
        }
        scene.set("HTTPS_PROXY", "");
        scene.set("NO_PROXY", "");
        // The unencrypted registry: https is tried first, without a proxy.
        scene.set("http_proxy", "other.example:3128");
        scene.pulls(PLAIN)?;
        let asked = proxy.asked();
        ensure!(
            asked.iter().any(|line| line.starts_with("GET http://registry.example:5000/v2/team/app/manifests/1 ")),
            "{asked:?}"
        );
        // Nobody there, a refusal, something else than a proxy: named, and never gone past.
        for (address, expected) in [
            ("http://other.example:1", "other.example:1"),
            ("http://registry.example:5000", "proxy http://registry.example:5000 answers with 4"),
            ("socks5://secret:word@other.example:3128", "other.example:3128\" is not the address of an HTTP proxy"),
        ] {
            scene.set("HTTPS_PROXY", address);
            let refused = scene.refused(&["pull", ENCRYPTED])?;
            ensure!(refused.contains(expected) && !refused.contains("secret"), "{address}: {refused}");
        }
        Ok(())
    })
}

pub(super) fn of_the_file() -> Result<()> {
    surroundings(|scene, proxy| {
        let keys =
            |proxies: serde_json::Value| json!({"insecure-registries": ["registry.example:5000"], "proxies": proxies});
        scene.set("HTTPS_PROXY", "http://other.example:1");
        scene.configure(keys(json!({"https-proxy": "http://other.example:3128"})))?;
        scene.pulls(ENCRYPTED)?;
        ensure!(proxy.asked().iter().any(|line| line.starts_with("CONNECT ")), "the file's proxy was not used");
        scene.configure(keys(json!({"https-proxy": "http://other.example:1", "no-proxy": "registry.example"})))?;
        scene.pulls(ENCRYPTED)?;
        scene.set("NO_PROXY", "*");
        scene.configure(keys(json!({"http-proxy": "http://other.example:3128", "no-proxy": "nothing.example"})))?;
        scene.pulls(PLAIN)?;
        ensure!(proxy.asked().iter().any(|line| line.starts_with("GET http://registry.example:5000/")), "http-proxy");
        Ok(())
    })
}

/// A proxy for both kinds of request, which notes what it is asked.
struct Proxy {
    lines: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start(address: &str) -> Result<Proxy> {
        let listener = TcpListener::bind(address)?;
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = Arc::clone(&lines);
        // It ends with the tests.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let noted = Arc::clone(&noted);
                // What goes wrong on a connection is the client's to notice.
                std::thread::spawn(move || pass_on(client, &noted));
            }
        });
        Ok(Proxy { lines })
    }

    /// What it was asked since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn pass_on(mut client: TcpStream, noted: &Mutex<Vec<String>>) -> Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let text = String::from_utf8(head)?;
    let line = text.lines().next().context("an empty request")?;
    let who = if text.contains("Proxy-Authorization: Basic dXNlcjpwYTpzcw==\r\n") { " (user:pa:ss)" } else { "" };
    noted.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{line}{who}"));
    let target = line.split(' ').nth(1).context("no target")?;
    let mut server;
    match target.strip_prefix("http://") {
        None => {
            server = TcpStream::connect(target)?;
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        }
        Some(rest) => {
            let (host, path) = rest.split_once('/').context("no path")?;
            server = TcpStream::connect(host)?;
            let request = text.replacen(target, &format!("/{path}"), 1);
            server.write_all(request.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes())?;
        }
    }
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
    std::io::copy(&mut server, &mut client)?;
    client.shutdown(Shutdown::Both)?;
    Ok(())
}
