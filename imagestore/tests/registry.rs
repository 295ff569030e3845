//! Pulling and pushing, against a registry of our own that does as it should, or as it should not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fsck;
#[path = "support/lazy_blobs.rs"]
mod lazy_blobs;
#[path = "support/put.rs"]
mod put;
#[path = "registry_lazy/mod.rs"]
mod registry_lazy;
mod support;

use std::time::{Duration, Instant};

use strata_imagestore::{
    CompressionFormat, ImageRef, Login, PullOptions, Pulled, PushOptions, RegistryClient, RegistryError,
    RegistrySettings, Secret, Store, Timeouts,
};
use strata_registry::{Access, Exchange, Fault, Misbehaviour, Options, Server, hash_password};
use support::*;

/// A registry, a store that has pushed an image to it, and another store.
struct Scene {
    server: Server,
    folder: tempfile::TempDir,
    source: Store,
}

impl Scene {
    fn new(layers: &[Vec<u8>]) -> Scene {
        Scene::with(layers, Access::open())
    }

    fn with(layers: &[Vec<u8>], access: Access) -> Scene {
        let folder = fast_folder();
        let options = Options { access, record: true, ..Options::local(&folder.path().join("registry")) };
        let server = Server::start(options).unwrap();
        let source = Store::open(&folder.path().join("source")).unwrap();
        let name = format!("127.0.0.1:{}/team/app:1", server.address().port());
        load_stream(&source, &docker_new(layers, &name).tar()).unwrap();
        Scene { server, folder, source }
    }

    fn settings(&self) -> RegistrySettings {
        RegistrySettings {
            timeouts: Timeouts {
                stall: Duration::from_millis(600),
                retry_delay: Duration::from_millis(5),
                ..Timeouts::default()
            },
            credentials: Some(self.folder.path().join("config.json")),
            ..RegistrySettings::default()
        }
    }

    fn client(&self) -> RegistryClient {
        RegistryClient::new(self.settings())
    }

    fn team_app(&self) -> put::Repository<'_> {
        put::Repository { address: self.server.address(), name: "team/app" }
    }

    fn name(&self, text: &str) -> ImageRef {
        format!("127.0.0.1:{}/{text}", self.server.address().port()).parse().unwrap()
    }

    fn store(&self, name: &str) -> Store {
        Store::open(&self.folder.path().join(name)).unwrap()
    }

    fn push(&self) -> strata_imagestore::Pushed {
        self.push_as(CompressionFormat::Gzip)
    }

    fn push_as(&self, format: CompressionFormat) -> strata_imagestore::Pushed {
        let pushed = self.source.push(
            &self.client(),
            &self.name("team/app:1"),
            &PushOptions { format: Some(format), ..PushOptions::default() },
            &(),
        );
        let pushed = pushed.unwrap_or_else(|error| panic!("{}", chain(&error)));
        self.server.exchanges();
        pushed
    }

    fn pull(&self, store: &Store) -> Result<Pulled, RegistryError> {
        store.pull(&self.client(), &self.name("team/app:1"), &PullOptions::default(), &())
    }

    fn misbehave(&self, rule: &str) {
        self.server.misbehave(rule.parse::<Fault>().unwrap());
    }

    /// What was asked of blobs since the last look.
    fn blob_requests(&self) -> Vec<Exchange> {
        self.server.exchanges().into_iter().filter(|exchange| exchange.path.contains("/blobs/")).collect()
    }
}

/// Two layers, the first of which has several parts.
fn large_layers() -> Vec<Vec<u8>> {
    vec![large_layer("data", 40 << 20), layer(&[("srv/app", "app")])]
}

#[test]
fn what_is_pushed_can_be_pulled_and_is_the_same() {
    for format in [CompressionFormat::Gzip, CompressionFormat::Zstd, CompressionFormat::None] {
        let scene = Scene::new(&sample_layers());
        let pushed = scene.push_as(format);
        let store = scene.store("other");
        let pulled = scene.pull(&store).unwrap();
        assert_eq!(pulled.digest, pushed.digest);
        assert_eq!(pulled.id, scene.source.images().unwrap()[0].id);
        assert!(!pulled.up_to_date);
        assert_eq!(merged_paths(&store, &pulled.id), merged_paths(&scene.source, &pulled.id));
        check_whole(&store);
        let by_digest = scene.name("team/app").with_digest(pushed.digest);
        assert!(store.resolve(&by_digest.to_string()).is_ok());
    }
}

#[test]
fn a_root_filesystem_is_imported_from_an_address() {
    use strata_imagestore::{CommitOptions, Input};
    let scene = Scene::new(&sample_layers());
    scene.push_as(CompressionFormat::Gzip);
    let store = scene.store("other");
    let id = scene.pull(&store).unwrap().id;
    let manifest: serde_json::Value = serde_json::from_slice(&store.image(&id).unwrap().raw_manifest).unwrap();
    let blob = manifest["layers"][0]["digest"].as_str().unwrap();
    let host = format!("http://127.0.0.1:{}", scene.server.address().port());
    let url = format!("{host}/v2/team/app/blobs/{blob}");
    let import = |url: &str| {
        let stream = scene.client().open(url)?;
        let options = CommitOptions { reference: Some("imported:1".parse().unwrap()), ..CommitOptions::default() };
        Ok::<_, RegistryError>(store.import(Input::Stream(stream), &options, &()))
    };
    let imported = import(&url).unwrap().unwrap();
    assert_eq!(merged_paths(&store, &imported), ["/bin/tool", "/etc/passwd", "/gone"]);
    let missing = import(&format!("{host}/v2/team/app/blobs/sha256:{}", "0".repeat(64))).unwrap_err();
    assert!(chain(&missing).contains("blob unknown"), "{}", chain(&missing));
    assert!(import("http://127.0.0.1:1/x").is_err() && import("https://").is_err());
    // What breaks off is no image.
    scene.misbehave("GET /v2/*/blobs/* cut=100");
    let cut = import(&url).unwrap().unwrap_err();
    assert!(chain(&cut).starts_with("read the layer: "), "{}", chain(&cut));
    assert_eq!(store.images().unwrap().len(), 2);
}

#[test]
fn pulling_what_is_present_asks_for_no_blob() {
    let scene = Scene::new(&sample_layers());
    scene.push();
    let store = scene.store("other");
    scene.pull(&store).unwrap();
    scene.server.exchanges();
    assert!(scene.pull(&store).unwrap().up_to_date);
    assert_eq!(scene.blob_requests(), []);
}

#[test]
fn pushing_again_sends_nothing_and_elsewhere_mounts() {
    let scene = Scene::new(&sample_layers());
    let first = scene.push();
    let second = scene.push();
    assert_eq!(first.digest, second.digest);
    let sent =
        |exchanges: &[Exchange]| exchanges.iter().filter(|e| matches!(e.method.as_str(), "PATCH" | "PUT")).count();
    let other = scene.name("other/app:2");
    scene.source.tag(&scene.name("team/app:1").to_string(), &other).unwrap();
    let pushed = scene.source.push(&scene.client(), &other, &PushOptions::default(), &()).unwrap();
    assert_eq!(pushed.digest, first.digest);
    let exchanges = scene.blob_requests();
    // Only the configuration, of which no other repository is known.
    assert!(sent(&exchanges) <= 1, "{exchanges:?}");
}

#[test]
fn what_was_pulled_keeps_its_digest_when_it_is_pushed() {
    let scene = Scene::new(&sample_layers());
    let first = scene.push_as(CompressionFormat::Zstd);
    let store = scene.store("other");
    scene.pull(&store).unwrap();
    // To the same registry, where its layers are.
    let other = scene.name("copy/app:1");
    store.tag(&scene.name("team/app:1").to_string(), &other).unwrap();
    assert_eq!(store.push(&scene.client(), &other, &PushOptions::default(), &()).unwrap().digest, first.digest);
    // To one that has nothing: with what was kept, or because it compresses to the same bytes again.
    for keep_blobs in [true, false] {
        let empty = Scene::new(&sample_layers());
        let store = scene.store(if keep_blobs { "kept" } else { "dropped" });
        let client = RegistryClient::new(RegistrySettings { keep_blobs, ..scene.settings() });
        store.pull(&client, &scene.name("team/app:1"), &PullOptions::default(), &()).unwrap();
        let target = empty.name("x:1");
        store.tag(&scene.name("team/app:1").to_string(), &target).unwrap();
        let format = CompressionFormat::Zstd;
        assert_eq!(
            store
                .push(&client, &target, &PushOptions { format: Some(format), ..PushOptions::default() }, &())
                .unwrap()
                .digest,
            first.digest
        );
    }
}

#[test]
fn a_cut_download_goes_on_at_the_byte() {
    let scene = Scene::new(&large_layers());
    let pushed = scene.push_as(CompressionFormat::None);
    let size: u64 = large_layers().iter().map(|layer| layer.len() as u64).sum();
    scene.misbehave("GET /v2/*/blobs/* times=100 cut-randomly=7");
    let store = scene.store("other");
    assert_eq!(scene.pull(&store).unwrap_or_else(|error| panic!("{}", chain(&error))).digest, pushed.digest);
    let sent: u64 = scene.blob_requests().iter().map(|exchange| exchange.sent).sum();
    assert!(sent < size + size / 20, "{sent} of {size}");
    check_whole(&store);
}

#[test]
fn a_cut_upload_goes_on_at_the_byte() {
    let layers = [large_layer("data", 6 << 20), layer(&[("srv/app", "app")])];
    for format in [CompressionFormat::Gzip, CompressionFormat::None] {
        let whole = Scene::new(&layers).push_as(format);
        let scene = Scene::new(&layers);
        scene.misbehave("PATCH /v2/*/blobs/uploads/* times=8 cut-upload=800000");
        let pushed = scene.push_as(format);
        assert_eq!(pushed.digest, whole.digest);
        let store = scene.store("other");
        scene.pull(&store).unwrap();
        check_whole(&store);
    }
}

#[test]
fn an_upload_that_is_forgotten_begins_again() {
    let scene = Scene::new(&sample_layers());
    scene.misbehave("PATCH /v2/*/blobs/uploads/* times=1 cut-upload=100");
    scene.misbehave("GET /v2/*/blobs/uploads/* times=1 status=404");
    // The answer to the end of an upload is lost.
    scene.misbehave("PUT /v2/*/blobs/uploads/* times=1 cut-upload=1000000");
    scene.push();
    scene.pull(&scene.store("other")).unwrap();
}

#[test]
fn what_registries_answer_otherwise_is_understood() {
    let scene = Scene::new(&sample_layers());
    scene.misbehave("PATCH /v2/*/blobs/uploads/* answer=201");
    scene.misbehave("PUT /v2/*/blobs/uploads/* answer=204");
    scene.misbehave("HEAD /v2/*/blobs/* without=content-length");
    scene.misbehave("POST /v2/*/blobs/uploads/ header=OCI-Chunk-Min-Length:1048576");
    scene.push();
    let store = scene.store("other");
    scene.pull(&store).unwrap();
    // A proxy that writes manifests anew changes their digest, and then it is not what was asked for.
    let scene = Scene::new(&sample_layers());
    scene.push();
    scene.misbehave("GET /v2/*/manifests/* reserialize");
    let error = chain(&scene.pull(&scene.store("other")).unwrap_err());
    assert!(error.contains("digest"), "{error}");
}

#[test]
fn a_download_of_another_process_goes_on_at_the_byte() {
    let scene = Scene::new(&large_layers());
    scene.push_as(CompressionFormat::None);
    let size: u64 = large_layers().iter().map(|layer| layer.len() as u64).sum();
    let store = scene.store("other");
    scene.misbehave("GET /v2/*/blobs/* skip=1 cut=1000000");
    scene.misbehave("GET /v2/*/blobs/* skip=6 status=404");
    scene.pull(&store).unwrap_err();
    assert!(store.images().unwrap().is_empty());
    let before: u64 = scene.blob_requests().iter().map(|exchange| exchange.sent).sum();
    assert!(before > 2_000_000, "{before}");
    scene.server.behave();
    scene.pull(&store).unwrap();
    let after: u64 = scene.blob_requests().iter().map(|exchange| exchange.sent).sum();
    assert!(before + after < size + size / 20, "{before} + {after} of {size}");
    assert_eq!(std::fs::read_dir(store.root().join("downloads")).unwrap().count(), 0);
}

#[test]
fn parts_that_rotted_on_disk_are_fetched_again() {
    let scene = Scene::new(&large_layers());
    scene.push_as(CompressionFormat::None);
    let store = scene.store("other");
    scene.misbehave("GET /v2/*/blobs/* skip=1 cut=1000000");
    scene.misbehave("GET /v2/*/blobs/* skip=6 status=404");
    scene.pull(&store).unwrap_err();
    scene.server.behave();
    for blob in std::fs::read_dir(store.root().join("downloads")).unwrap() {
        for part in std::fs::read_dir(blob.unwrap().path()).unwrap() {
            let path = part.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            bytes.iter_mut().take(2000).skip(1000).for_each(|byte| *byte ^= 1);
            std::fs::write(&path, bytes).unwrap();
        }
    }
    scene.pull(&store).unwrap_or_else(|error| panic!("{}", chain(&error)));
    check_whole(&store);
}

#[test]
fn what_goes_wrong_for_a_while_is_overcome() {
    let scene = Scene::new(&large_layers());
    let pushed = scene.push_as(CompressionFormat::None);
    for (number, rule) in [
        "GET /v2/*/blobs/* times=2 status=503",
        "GET /v2/*/manifests/* times=2 status=429:0",
        "GET /v2/*/manifests/* times=1 reset",
        "GET /v2/*/blobs/* times=2 reset",
        "GET /v2/*/blobs/* times=2 cut=0",
        "GET /v2/*/blobs/* times=1 stall=100000:1.5",
        "GET /v2/*/blobs/* times=1 shorten=10",
        "GET /v2/*/blobs/* ignore-range",
        "GET /v2/*/blobs/* refuse-range",
        "GET /v2/*/blobs/* chunked",
        "GET /v2/*/blobs/* without=content-length",
        "GET /v2/* without=docker-content-digest",
    ]
    .into_iter()
    .enumerate()
    {
        scene.misbehave(rule);
        let store = scene.store(&format!("other-{number}"));
        let pulled = scene.pull(&store).unwrap_or_else(|error| panic!("{rule}: {}", chain(&error)));
        assert_eq!(pulled.digest, pushed.digest, "{rule}");
        scene.server.behave();
    }
}

#[test]
fn what_stays_wrong_is_named_and_nothing_is_kept() {
    let scene = Scene::new(&large_layers());
    scene.push_as(CompressionFormat::None);
    for (number, (rule, message)) in [
        ("GET /v2/*/blobs/* flip=600", "digest is sha256:"),
        ("GET /v2/*/manifests/* flip=20", "digest is sha256:"),
        ("GET /v2/*/manifests/* header=Docker-Content-Digest:sha256:0000000000000000000000000000000000000000000000000000000000000000", "digest is sha256:"),
        ("GET /v2/*/blobs/* length=5", "bytes received where"),
        ("GET /v2/*/blobs/* length=-5", "bytes received where"),
        ("GET /v2/*/blobs/* shorten=1", "bytes received where"),
        ("GET /v2/*/blobs/* wrong-range", "asked for bytes"),
        ("GET /v2/*/blobs/* header=Content-Encoding:gzip", "unexpected content encoding \"gzip\""),
        ("GET /v2/*/blobs/* redirect-loop", "too many redirects"),
        ("GET /v2/*/blobs/* redirect=ftp://elsewhere", "unusable address"),
        ("GET /v2/*/blobs/* garbage", "it is not HTTP"),
        ("GET /v2/*/blobs/* reset", "connection broken"),
        ("GET /v2/*/blobs/* status=500", "unavailable: as demanded"),
        ("GET /v2/*/manifests/* status=429:9999", "unavailable: as demanded"),
        ("GET /v2/*/blobs/* status=404", "unavailable: as demanded"),
        ("GET /v2/*/manifests/* status=403", "pull access denied for 127.0.0.1"),
        ("GET /v2/*/manifests/* status=404", "not found: unavailable"),
        ("GET /v2/*/blobs/* stall=0:1.5", "nothing received for"),
        ("GET /v2/*/blobs/* trickle=100", "slower than"),
        ("GET /v2/*/manifests/* header=Content-Type:application/vnd.oci.image.index.v1+json", "expected"),
    ]
    .into_iter()
    .enumerate()
    {
        scene.misbehave(rule);
        let store = scene.store(&format!("other-{number}"));
        let timeouts = Timeouts { retries: 1, ..scene.settings().timeouts };
        let client = RegistryClient::new(RegistrySettings { timeouts, ..scene.settings() });
        let error = store.pull(&client, &scene.name("team/app:1"), &PullOptions::default(), &()).unwrap_err();
        assert!(chain(&error).contains(message), "{rule}: {}", chain(&error));
        scene.server.behave();
        assert!(store.images().unwrap().is_empty());
        let list = |name: &str| std::fs::read_dir(store.root().join(name)).unwrap().count();
        assert_eq!((list("layers"), list("blobs/sha256"), list("tmp")), (0, 0, 0), "{rule}");
        // And it does no lasting harm.
        scene.pull(&store).unwrap_or_else(|error| panic!("after {rule}: {}", chain(&error)));
    }
}

#[test]
fn a_server_says_how_long_to_wait() {
    let scene = Scene::new(&sample_layers());
    scene.push();
    scene.misbehave("GET /v2/*/manifests/* times=1 status=429:1");
    let started = Instant::now();
    scene.pull(&scene.store("other")).unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
}

fn users() -> String {
    hash_password("alice", "secret").unwrap()
}

fn login(password: &str) -> Login {
    Login { user: "alice".to_owned(), secret: Secret::Password(password.to_owned()) }
}

#[test]
fn logins_are_tried_kept_and_used() {
    for (access, tokens) in [(Access::basic(&users()).unwrap(), false), (Access::token(&users()).unwrap(), true)] {
        let scene = Scene::with(&sample_layers(), access);
        let registry = scene.name("x").host().to_owned();
        let denied = scene.source.push(&scene.client(), &scene.name("team/app:1"), &PushOptions::default(), &());
        assert_eq!(denied.unwrap_err().status(), Some(401));
        let wrong = scene.client().login(&registry, &login("wrong")).unwrap_err();
        assert!(chain(&wrong).contains("unauthorized"), "{}", chain(&wrong));
        scene.client().login(&registry, &login("secret")).unwrap();
        let kept = scene.client().kept_login(&registry).unwrap().unwrap();
        assert_eq!(matches!(kept.secret, Secret::IdentityToken(_)), tokens);
        scene.push();
        scene.pull(&scene.store("other")).unwrap();
        assert!(scene.client().logout(&registry).unwrap());
        let denied = chain(&scene.pull(&scene.store("third")).unwrap_err());
        assert!(denied.contains("pull access denied for"), "{denied}");
    }
}

#[test]
fn a_token_that_expires_in_the_middle_is_renewed() {
    let access = Access::token(&users()).unwrap().with_anonymous_reading();
    let scene = Scene::with(&large_layers(), access);
    let registry = scene.name("x").host().to_owned();
    scene.client().login(&registry, &login("secret")).unwrap();
    scene.push_as(CompressionFormat::None);
    scene.client().logout(&registry).unwrap();
    scene.misbehave("GET /v2/*/blobs/* skip=1 times=2 expire-tokens");
    scene.pull(&scene.store("other")).unwrap();
    let refused = scene.server.exchanges().iter().filter(|exchange| exchange.status == 401).count();
    assert!(refused >= 2, "{refused}");
}

#[test]
fn a_redirect_elsewhere_gets_no_credentials() {
    let scene = Scene::with(&sample_layers(), Access::basic(&users()).unwrap());
    let registry = scene.name("x").host().to_owned();
    scene.client().login(&registry, &login("secret")).unwrap();
    scene.push();
    // The same blobs, open to everybody, on another port.
    let storage = Options { record: true, ..Options::local(&scene.folder.path().join("registry")) };
    let storage = Server::start(storage).unwrap();
    let to = format!("http://{}", storage.address());
    scene.server.misbehave(Fault::always("GET", "/v2/*/blobs/*", Misbehaviour::Redirect(to)));
    scene.pull(&scene.store("other")).unwrap();
    let exchanges = storage.exchanges();
    assert!(!exchanges.is_empty());
    assert!(exchanges.iter().all(|exchange| exchange.authorization.is_none()), "{exchanges:?}");
    assert!(scene.server.exchanges().iter().any(|exchange| exchange.authorization.is_some()));
}

#[test]
fn an_upload_elsewhere_gets_no_credentials() {
    let scene = Scene::with(&sample_layers(), Access::token(&users()).unwrap());
    let registry = scene.name("x").host().to_owned();
    scene.client().login(&registry, &login("secret")).unwrap();
    // It has a token service of its own, which would be glad of a login.
    let access = Access::token(&users()).unwrap();
    let other = Options { access, record: true, ..Options::local(&scene.folder.path().join("elsewhere")) };
    let other = Server::start(other).unwrap();
    let to = format!("http://{}/v2/team/app/blobs/uploads/x", other.address());
    for method in ["POST", "PATCH"] {
        scene.misbehave(&format!("{method} /v2/*/blobs/uploads/* header=Location:{to}"));
        let refused = scene.source.push(&scene.client(), &scene.name("team/app:1"), &PushOptions::default(), &());
        assert_eq!(refused.unwrap_err().status(), Some(401), "{method}");
        scene.server.behave();
        let exchanges = other.exchanges();
        assert!(!exchanges.is_empty(), "{method}");
        let uploads = |exchange: &Exchange| exchange.path.starts_with("/v2/team/app/blobs/uploads/");
        assert!(exchanges.iter().all(uploads), "{method}: {exchanges:?}");
        assert!(exchanges.iter().all(|exchange| exchange.authorization.is_none()), "{method}: {exchanges:?}");
    }
}

#[test]
fn a_server_without_ranges_that_cuts_is_asked_for_the_whole_again() {
    let scene = Scene::new(&large_layers());
    let pushed = scene.push_as(CompressionFormat::None);
    scene.misbehave("GET /v2/*/blobs/* ignore-range");
    // After the first part, within the second.
    scene.misbehave("GET /v2/*/blobs/* times=6 cut=20000000");
    let store = scene.store("other");
    assert_eq!(scene.pull(&store).unwrap_or_else(|error| panic!("{}", chain(&error))).digest, pushed.digest);
    check_whole(&store);
    // Where it stays like that, the next place has the rest.
    scene.misbehave("GET /v2/*/blobs/* cut=20000000");
    let good = Options { record: true, ..Options::local(&scene.folder.path().join("registry")) };
    let good = Server::start(good).unwrap();
    let list = [scene.server.address(), good.address()].map(|address| format!("http://{address}"));
    let mirrors = [("docker.io".to_owned(), list.to_vec())].into();
    let settings = RegistrySettings { mirrors, ..scene.settings() };
    let (hub, store): (ImageRef, _) = ("team/app:1".parse().unwrap(), scene.store("third"));
    store.pull(&RegistryClient::new(settings), &hub, &PullOptions::default(), &()).unwrap();
    check_whole(&store);
}

#[test]
fn mirrors_come_first_and_the_registry_stands_in_for_them() {
    let scene = Scene::new(&sample_layers());
    scene.push();
    let address = scene.server.address();
    let hub: ImageRef = "team/app:1".parse().unwrap();
    let mirrors = |list: &[String]| [("docker.io".to_owned(), list.to_vec())].into();
    let settings = RegistrySettings { mirrors: mirrors(&[format!("http://{address}")]), ..scene.settings() };
    let store = scene.store("other");
    let pulled = store.pull(&RegistryClient::new(settings), &hub, &PullOptions::default(), &()).unwrap();
    assert_eq!(pulled.reference.familiar(), "team/app:1");
    // A mirror that is gone, then one that works.
    let gone = "http://127.0.0.1:1".to_owned();
    let settings = RegistrySettings { mirrors: mirrors(&[gone, format!("http://{address}")]), ..scene.settings() };
    let store = scene.store("third");
    store.pull(&RegistryClient::new(settings), &hub, &PullOptions::default(), &()).unwrap();
    // A mirror that has the manifest and loses the blobs: they come from the next.
    let half = Options { record: true, ..Options::local(&scene.folder.path().join("registry")) };
    let half = Server::start(half).unwrap();
    half.misbehave(Fault::always("GET", "/v2/*/blobs/*", Misbehaviour::Status { code: 404, retry_after: None }));
    let list = [format!("http://{}", half.address()), format!("http://{address}")];
    let settings = RegistrySettings { mirrors: mirrors(&list), ..scene.settings() };
    let store = scene.store("fourth");
    store.pull(&RegistryClient::new(settings), &hub, &PullOptions::default(), &()).unwrap();
}

#[test]
fn two_pulls_of_one_image_fetch_it_once() {
    let scene = Scene::new(&large_layers());
    scene.push_as(CompressionFormat::None);
    let size: u64 = large_layers().iter().map(|layer| layer.len() as u64).sum();
    let stores = [scene.store("other"), scene.store("other")];
    std::thread::scope(|scope| {
        for store in &stores {
            scope.spawn(|| scene.pull(store).unwrap_or_else(|error| panic!("{}", chain(&error))));
        }
    });
    let sent: u64 = scene.blob_requests().iter().map(|exchange| exchange.sent).sum();
    assert!(sent < size + size / 20, "{sent} of {size}");
}

#[test]
fn tags_come_in_pages() {
    let scene = Scene::new(&sample_layers());
    scene.push();
    let name = scene.name("team/app:1");
    for tag in ["2", "3"] {
        let other = name.with_tag(tag).unwrap();
        scene.source.tag(&name.to_string(), &other).unwrap();
        scene.source.push(&scene.client(), &other, &PushOptions::default(), &()).unwrap();
    }
    assert_eq!(scene.client().tags(&name, &()).unwrap(), ["1", "2", "3"]);
}

#[test]
fn repositories_are_found_with_and_without_a_search() {
    let scene = Scene::new(&sample_layers());
    scene.push();
    let registry = scene.name("x").host().to_owned();
    let found = |term: &str| -> Vec<String> {
        let found = scene.client().search(&registry, term, 25, &()).unwrap();
        found.into_iter().map(|repository| repository.name).collect()
    };
    assert_eq!(found("app"), ["team/app"]);
    scene.misbehave("GET /v1/search status=404");
    assert_eq!(found("app"), ["team/app"]);
    assert!(found("nothing").is_empty());
}

#[test]
fn a_manifest_is_shown_as_it_is() {
    let scene = Scene::new(&sample_layers());
    let pushed = scene.push();
    let (media_type, digest, bytes) = scene.client().manifest(&scene.name("team/app:1"), &()).unwrap();
    assert_eq!((digest, bytes.len() as u64), (pushed.digest, pushed.size));
    assert_eq!(media_type, MANIFEST);
}

/// Pushes documents by hand, as no client of ours would.
#[test]
fn zeros_that_a_compressor_left_out_come_back() {
    // As Podman before 5 does: what fills up the last record of the tar is not in the blob.
    for kind in ["zstd", "gzip"] {
        let scene = Scene::new(&sample_layers());
        let tar = large_layer("data", 3 << 20);
        let small = sample_layers().remove(0);
        let blob = |tar: &[u8]| {
            let mut padded = tar.to_vec();
            padded.resize((padded.len() + 1).next_multiple_of(10240), 0);
            let media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
            lazy_blobs::Blob { bytes: compress(tar, kind), media_type, annotations: Default::default(), tar: padded }
        };
        let blobs = [blob(&small), blob(&tar)];
        let expected = blobs.iter().map(|blob| blob.tar.clone()).collect::<Vec<_>>();
        let image = scene.team_app().put_image("1", &blobs);
        let store = scene.store("other");
        assert_eq!(scene.pull(&store).unwrap().id, image);
        for (layer, tar) in store.image(&image).unwrap().layers.iter().zip(expected) {
            let found = std::fs::read(store.root().join("layers").join(layer.0.hex()).join("tar")).unwrap();
            assert!(found == tar, "{kind}");
        }
        check_whole(&store);
        // More than a record is not missing by mistake.
        let mut long = blob(&tar);
        long.tar.resize(long.tar.len() + 10240, 0);
        scene.team_app().put_image("1", &[long]);
        assert!(matches!(scene.pull(&store), Err(RegistryError::DiffId { .. })));
        check_whole(&store);
    }
}

#[test]
fn of_an_index_the_image_for_the_platform_is_pulled() {
    let scene = Scene::new(&sample_layers());
    let pushed = scene.push();
    let entry = |architecture: &str, digest: &str| {
        serde_json::json!({"mediaType": MANIFEST, "digest": digest, "size": pushed.size,
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let nowhere = format!("sha256:{}", "0".repeat(64));
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        entry("s390x", &nowhere), entry("amd64", &pushed.digest.to_string()),
    ]})
    .to_string();
    scene.team_app().put_document("index", INDEX, index.as_bytes());
    let name = scene.name("team/app:index");
    let pull = |platform: &str| {
        let options = PullOptions { platform: Some(platform.parse().unwrap()), ..PullOptions::default() };
        scene.store("other").pull(&scene.client(), &name, &options, &())
    };
    let pulled = pull("linux/amd64").unwrap();
    // The index is what the tag points to, so it is what the image is known by.
    assert_eq!(pulled.digest.to_string(), strata_layer::Digest::of(index.as_bytes()).to_string());
    let missing = chain(&pull("linux/arm64").unwrap_err());
    assert!(missing.contains("no matching manifest for linux/arm64"), "{missing}");
    assert!(missing.contains("linux/s390x, linux/amd64"), "{missing}");

    scene.team_app().put_blob(b"{}");
    let config =
        serde_json::json!({"mediaType": CONFIG, "digest": strata_layer::Digest::of(b"{}").to_string(), "size": 2});
    for (name, media_type, document, message) in [
        (
            "one",
            "application/vnd.docker.distribution.manifest.v1+json",
            serde_json::json!({"schemaVersion": 1, "fsLayers": []}),
            "schema",
        ),
        (
            "both",
            MANIFEST,
            serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [], "manifests": []}),
            "manifest sha256",
        ),
        (
            "foreign",
            MANIFEST,
            serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [{
                "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "size": 5,
                "digest": nowhere, "urls": [format!("http://{}/v2/team/app/blobs/{nowhere}", scene.server.address())]}]}),
            "not distributed by the registry",
        ),
        ("version", MANIFEST, serde_json::json!({"schemaVersion": 9, "mediaType": MANIFEST}), "9"),
    ] {
        scene.team_app().put_document(name, media_type, document.to_string().as_bytes());
        let name = scene.name(&format!("team/app:{name}"));
        let error = scene.store("other").pull(&scene.client(), &name, &PullOptions::default(), &()).unwrap_err();
        assert!(chain(&error).contains(message), "{}", chain(&error));
    }
}
