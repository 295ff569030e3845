//! Encrypted registries, certificates, proxies, credential helpers.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use strata_imagestore::{
    ImageRef, Proxies, PullOptions, PushOptions, RegistryClient, RegistryError, RegistrySettings, Store, Timeouts,
};
use strata_registry::{Access, Options, Server, Tls};
use support::*;

/// An authority and what it has signed.
struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Authority { certificate, issuer: Issuer::new(params, key) }
    }

    /// Returns a certificate for names, and its key.
    fn sign(&self, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// A registry, encrypted or not, on every address of this machine.
fn serve(folder: &Path, access: Access, tls: Option<Tls>) -> Server {
    let address = "0.0.0.0:0".to_owned();
    let options = Options { address, access, tls, record: true, ..Options::local(&folder.join("registry")) };
    Server::start(options).unwrap()
}

/// Runs a test where this machine has an address that counts as another's: it proves who it is, and is reached through
/// proxies. There is no other network.
fn elsewhere(test: impl FnOnce(&str) + Send) {
    if !rustix::process::geteuid().is_root() {
        let _ = writeln!(std::io::stderr(), "skipped: a network of the test's own needs root");
        return;
    }
    let address = std::net::Ipv4Addr::new(192, 0, 2, 7);
    let inside = strata_tests::network::inside(&[("registry.test", address)], || {
        test(&address.to_string());
        Ok(())
    });
    inside.unwrap();
}

fn settings(folder: &Path) -> RegistrySettings {
    RegistrySettings {
        certificate_folders: vec![folder.join("certs.d")],
        credentials: Some(folder.join("config.json")),
        timeouts: Timeouts {
            stall: Duration::from_secs(5),
            retry_delay: Duration::from_millis(5),
            retries: 1,
            ..Timeouts::default()
        },
        ..RegistrySettings::default()
    }
}

fn source(folder: &Path, name: &str) -> Store {
    let store = Store::open(&folder.join("source")).unwrap();
    load_stream(&store, &docker_new(&sample_layers(), name).tar()).unwrap();
    store
}

/// A registry with a certificate for `host`, which asks for those of `clients` if there is that.
fn serve_encrypted(folder: &Path, authority: &Authority, host: &str, clients: Option<&Authority>) -> Server {
    let (certificate, key) = authority.sign(&[host]);
    let client_authority = clients.map(|clients| clients.certificate.clone().into_bytes());
    let tls = Tls { certificate: certificate.into_bytes(), key: key.into_bytes(), client_authority };
    serve(folder, Access::open(), Some(tls))
}

fn push(store: &Store, settings: RegistrySettings, name: &ImageRef) -> Result<(), RegistryError> {
    store.push(&RegistryClient::new(settings), name, &PushOptions::default(), &()).map(|_| ())
}

#[test]
fn privileged_certificates_are_checked_unless_that_is_waived() {
    elsewhere(|host| {
        let folder = fast_folder();
        let authority = Authority::new();
        let server = serve_encrypted(folder.path(), &authority, host, None);
        let registry = format!("{host}:{}", server.address().port());
        let name: ImageRef = format!("{registry}/app:1").parse().unwrap();
        let store = source(folder.path(), &name.to_string());

        let refused = chain(&push(&store, settings(folder.path()), &name).unwrap_err());
        assert!(refused.contains("tls: invalid peer certificate"), "{refused}");
        let waived = RegistrySettings { insecure: vec![registry.clone()], ..settings(folder.path()) };
        push(&store, waived, &name).unwrap();

        // The authority is known for this host and port, and for no other.
        let certificates = folder.path().join("certs.d").join(&registry);
        fs::create_dir_all(&certificates).unwrap();
        fs::write(certificates.join("ca.crt"), &authority.certificate).unwrap();
        push(&store, settings(folder.path()), &name).unwrap();
        fs::write(certificates.join("ca.crt"), Authority::new().certificate).unwrap();
        assert!(push(&store, settings(folder.path()), &name).is_err());
    });
}

#[test]
fn privileged_an_upload_does_not_leave_the_encryption() {
    elsewhere(|host| {
        let folder = fast_folder();
        let authority = Authority::new();
        let server = serve_encrypted(folder.path(), &authority, host, None);
        let plain = serve(folder.path(), Access::open(), None);
        let registry = format!("{host}:{}", server.address().port());
        let certificates = folder.path().join("certs.d").join(&registry);
        fs::create_dir_all(&certificates).unwrap();
        fs::write(certificates.join("ca.crt"), &authority.certificate).unwrap();
        let name: ImageRef = format!("{registry}/app:1").parse().unwrap();
        let store = source(folder.path(), &name.to_string());
        let to = format!("http://{host}:{}/v2/app/blobs/uploads/x", plain.address().port());
        for method in ["POST", "PATCH"] {
            server.misbehave(format!("{method} /v2/*/blobs/uploads/* header=Location:{to}").parse().unwrap());
            let refused = push(&store, settings(folder.path()), &name).unwrap_err();
            assert!(matches!(refused, RegistryError::Downgrade { .. }), "{method}: {}", chain(&refused));
            assert!(plain.exchanges().is_empty(), "{method}");
            server.behave();
        }
    });
}

#[test]
fn a_registry_may_ask_for_a_certificate() {
    let folder = fast_folder();
    let authority = Authority::new();
    let server = serve_encrypted(folder.path(), &authority, "localhost", Some(&authority));
    let registry = format!("localhost:{}", server.address().port());
    let name: ImageRef = format!("{registry}/app:1").parse().unwrap();
    let store = source(folder.path(), &name.to_string());
    push(&store, settings(folder.path()), &name).unwrap_err();
    let certificates = folder.path().join("certs.d").join(&registry);
    fs::create_dir_all(&certificates).unwrap();
    let (certificate, key) = authority.sign(&["client"]);
    fs::write(certificates.join("client.cert"), certificate).unwrap();
    let missing = chain(&push(&store, settings(folder.path()), &name).unwrap_err());
    assert!(missing.contains("missing key"), "{missing}");
    fs::write(certificates.join("client.key"), key).unwrap();
    push(&store, settings(folder.path()), &name).unwrap();
}

#[test]
fn privileged_a_plain_registry_is_refused_unless_it_is_declared_insecure() {
    elsewhere(|host| {
        let folder = fast_folder();
        let server = serve(folder.path(), Access::open(), None);
        let name: ImageRef = format!("{host}:{}/app:1", server.address().port()).parse().unwrap();
        let store = source(folder.path(), &name.to_string());
        let refused = chain(&push(&store, settings(folder.path()), &name).unwrap_err());
        assert!(
            refused.contains("server gave HTTP response to HTTPS client") || refused.contains("handshake"),
            "{refused}"
        );
        for entry in [host.to_owned(), format!("{host}/32"), "0.0.0.0/0".to_owned()] {
            push(&store, RegistrySettings { insecure: vec![entry], ..settings(folder.path()) }, &name).unwrap();
        }
    });
}

/// A proxy for both kinds of request; returns its address and the lines it was asked with.
fn proxy() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = Arc::clone(&lines);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, noted) = (client.unwrap(), Arc::clone(&noted));
            std::thread::spawn(move || pass_on(client, &noted));
        }
    });
    (address, lines)
}

fn pass_on(mut client: TcpStream, noted: &Mutex<Vec<String>>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    let text = String::from_utf8(head.clone()).unwrap();
    let line = text.lines().next().unwrap_or("").to_owned();
    let authorized = if text.contains("Proxy-Authorization: Basic dTpw") { " (u)" } else { "" };
    noted.lock().unwrap().push(format!("{line}{authorized}"));
    let target = line.split(' ').nth(1).unwrap_or("");
    let connect = line.starts_with("CONNECT ");
    let host = target.strip_prefix("http://").map_or(target, |rest| rest.split('/').next().unwrap());
    let mut server = TcpStream::connect(host).unwrap();
    if connect {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
    } else {
        // A server takes a whole address as well as a path; this one wants the path.
        let path = target.strip_prefix("http://").unwrap().split_once('/').map(|(_, path)| format!("/{path}")).unwrap();
        server
            .write_all(
                text.replacen(target, &path, 1).replacen("User-Agent", "Connection: close\r\nUser-Agent", 1).as_bytes(),
            )
            .unwrap();
    }
    let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
    let _ = std::io::copy(&mut server, &mut client);
    let _ = client.shutdown(std::net::Shutdown::Both);
}

#[test]
fn privileged_proxies_are_used_for_what_is_elsewhere() {
    elsewhere(|host| {
        let folder = fast_folder();
        let authority = Authority::new();
        let (certificate, key) = authority.sign(&[host]);
        let tls = Tls { certificate: certificate.into_bytes(), key: key.into_bytes(), client_authority: None };
        for (encrypted, tls) in [(true, Some(tls)), (false, None)] {
            let server = serve(&folder.path().join(encrypted.to_string()), Access::open(), tls);
            let registry = format!("{host}:{}", server.address().port());
            let name: ImageRef = format!("{registry}/app:1").parse().unwrap();
            let store = source(&folder.path().join(encrypted.to_string()), &name.to_string());
            let (address, lines) = proxy();
            let through = Some(format!("http://u:p@{address}"));
            let proxies = Proxies { http: through.clone(), https: through, no_proxy: None };
            let insecure = vec![registry.clone()];
            let with = RegistrySettings { proxies: proxies.clone(), insecure, ..settings(folder.path()) };
            push(&store, with.clone(), &name).unwrap_or_else(|error| panic!("{}", chain(&error)));
            let other = Store::open(&folder.path().join(format!("pulled-{encrypted}"))).unwrap();
            other.pull(&RegistryClient::new(with.clone()), &name, &PullOptions::default(), &()).unwrap();
            let asked = std::mem::take(&mut *lines.lock().unwrap());
            let expected = if encrypted { format!("CONNECT {registry} ") } else { format!(" http://{registry}/v2/") };
            assert!(asked.iter().any(|line| line.contains(&expected)), "{asked:?}");
            assert!(asked.iter().all(|line| line.ends_with("(u)")), "{asked:?}");
            let proxies = Proxies { no_proxy: Some(host.to_owned()), ..proxies };
            push(&store, RegistrySettings { proxies, ..with }, &name).unwrap();
            assert!(lines.lock().unwrap().is_empty());
        }
    });
}

#[test]
fn credentials_come_from_a_helper() {
    let folder = fast_folder();
    let users = strata_registry::hash_password("bob", "hidden").unwrap();
    let server = serve(folder.path(), Access::basic(&users).unwrap(), None);
    let registry = format!("127.0.0.1:{}", server.address().port());
    let name: ImageRef = format!("{registry}/app:1").parse().unwrap();
    let store = source(folder.path(), &name.to_string());
    // A helper keeps one login in a file, by the protocol of docker's.
    let helper = folder.path().join("docker-credential-strata-test");
    let kept = folder.path().join("kept");
    let script = format!(
        "#!/bin/sh\nread line\ncase $1 in\nstore) echo \"$line\" > {kept};;\nerase) rm -f {kept};;\n\
         get) if test -f {kept}; then cat {kept}; else echo 'credentials not found in native keychain'; exit 1; fi;;\nesac\n",
        kept = kept.display()
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.path().join("config.json"), r#"{"credsStore": "strata-test"}"#).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_child", "--ignored", "--nocapture"])
        .env("PATH", format!("{}:{path}", folder.path().display()))
        .env("STRATA_TEST_HELPER", format!("{} {registry}", folder.path().display()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("helper used"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!kept.exists());
    drop(store);
}

#[test]
#[ignore = "a part of credentials_come_from_a_helper, in a process with a search path of its own"]
fn helper_child() {
    let text = std::env::var("STRATA_TEST_HELPER").unwrap();
    let (folder, registry) = text.split_once(' ').unwrap();
    let folder = Path::new(folder);
    let client = RegistryClient::new(settings(folder));
    let login = strata_imagestore::Login {
        user: "bob".to_owned(),
        secret: strata_imagestore::Secret::Password("hidden".to_owned()),
    };
    assert_eq!(client.kept_login(registry).unwrap(), None);
    client.login(registry, &login).unwrap();
    assert_eq!(client.kept_login(registry).unwrap(), Some(login));
    let file = fs::read_to_string(folder.join("config.json")).unwrap();
    assert!(!file.contains("hidden") && file.contains(registry), "{file}");
    let store = Store::open(&folder.join("source")).unwrap();
    push(&store, settings(folder), &format!("{registry}/app:1").parse().unwrap()).unwrap();
    assert!(client.logout(registry).unwrap());
    println!("helper used");
}
