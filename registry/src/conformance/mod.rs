//! What OCI distribution 1.1 asks of a registry, as one client conversation after the other. The cases here follow the
//! specification's list of endpoints (`end-1` to `end-13`) and its four workflows; those of the modules follow the
//! specification's conformance suite. `docs/design/registry-client.md` lists which case is where.

mod documents;
mod uploads;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};

use crate::{Options, Server};

/// What came back.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value.as_str())
    }

    /// All values of a header that may come more than once.
    fn all(&self, name: &str) -> Vec<&str> {
        let found = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str()).collect()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// An error in the specification's form, of this code.
    fn is_error(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.json()["errors"][0]["code"].as_str()), (status, Some(code)));
    }
}

struct Client {
    address: SocketAddr,
    _folder: tempfile::TempDir,
    _server: Server,
}

impl Client {
    fn new() -> Client {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(Options::local(folder.path())).unwrap();
        Client { address: server.address(), _folder: folder, _server: server }
    }

    fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !matches!(method, "GET" | "HEAD" | "DELETE") {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
        Answer { status, headers: lines.filter_map(header).collect(), body: bytes[end + 4..].to_vec() }
    }

    fn get(&self, target: &str) -> Answer {
        self.ask("GET", target, &[], b"")
    }

    fn put_blob(&self, name: &str, content: &[u8]) -> String {
        let digest = sha256(content);
        let target = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        let answer = self.ask("POST", &target, &[("Content-Type", "application/octet-stream")], content);
        assert_eq!(answer.status, 201);
        digest
    }

    fn put_manifest(&self, name: &str, reference: &str, manifest: &Value) -> Answer {
        let kind = manifest["mediaType"].as_str().unwrap_or(MANIFEST);
        let target = format!("/v2/{name}/manifests/{reference}");
        self.ask("PUT", &target, &[("Content-Type", kind)], manifest.to_string().as_bytes())
    }

    /// Pushes an image of one layer.
    fn put_image(&self, name: &str, reference: &str, layer: &str) -> (Value, String) {
        let config = descriptor(CONFIG, b"{}");
        self.put_blob(name, b"{}");
        self.put_blob(name, layer.as_bytes());
        let layer = descriptor("application/vnd.oci.image.layer.v1.tar", layer.as_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        assert_eq!(self.put_manifest(name, reference, &manifest).status, 201);
        let digest = sha256(manifest.to_string().as_bytes());
        (manifest, digest)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex(&Sha512::digest(bytes)))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": sha256(bytes), "size": bytes.len()})
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

#[test]
fn pull() {
    let client = Client::new();
    // end-1
    assert_eq!(client.get("/v2/").status, 200);
    let (manifest, digest) = client.put_image("a/b", "one", "layer of one");
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    for reference in ["one", &digest] {
        // end-3
        let target = format!("/v2/a/b/manifests/{reference}");
        let answer = client.get(&target);
        assert_eq!((answer.status, answer.header("content-type")), (200, MANIFEST));
        assert_eq!(answer.header("docker-content-digest"), digest);
        assert_eq!(answer.json(), manifest);
        let head = client.ask("HEAD", &target, &[], b"");
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.header("content-length"), manifest.to_string().len().to_string());
    }
    // end-2
    let target = format!("/v2/a/b/blobs/{layer}");
    let answer = client.get(&target);
    assert_eq!((answer.status, &answer.body[..]), (200, &b"layer of one"[..]));
    assert_eq!(client.ask("HEAD", &target, &[], b"").header("content-length"), "12");
    for (range, status, expected, stated) in [
        ("bytes=0-4", 206, "layer", "bytes 0-4/12"),
        ("bytes=6-", 206, "of one", "bytes 6-11/12"),
        ("bytes=-3", 206, "one", "bytes 9-11/12"),
        ("bytes=9-100", 206, "one", "bytes 9-11/12"),
        ("bytes=12-", 416, "", "bytes */12"),
        ("lines=1-2", 200, "layer of one", ""),
    ] {
        let answer = client.ask("GET", &target, &[("Range", range)], b"");
        assert_eq!((answer.status, answer.header("content-range")), (status, stated), "{range}");
        assert!(status == 416 || answer.body == expected.as_bytes(), "{range}");
    }
    // What is not there, here or at all.
    let nothing = sha256(b"nothing");
    client.get(&format!("/v2/a/b/blobs/{nothing}")).is_error(404, "BLOB_UNKNOWN");
    client.get(&format!("/v2/other/blobs/{layer}")).is_error(404, "BLOB_UNKNOWN");
    client.get("/v2/a/b/manifests/two").is_error(404, "MANIFEST_UNKNOWN");
    client.get(&format!("/v2/a/b/manifests/{nothing}")).is_error(404, "MANIFEST_UNKNOWN");
    client.get("/v2/a/b/blobs/sha256:short").is_error(400, "DIGEST_INVALID");
}

#[test]
fn push() {
    let client = Client::new();
    let content = b"0123456789abcdef";
    let digest = sha256(content);
    let begin = || {
        // end-4a
        let answer = client.ask("POST", "/v2/push/blobs/uploads/", &[], b"");
        assert_eq!(answer.status, 202);
        answer.header("location").to_owned()
    };
    let is_there = |digest: &str| client.get(&format!("/v2/push/blobs/{digest}")).status == 200;
    let with_digest = |location: &str, digest: &str| {
        format!("{location}{}digest={digest}", if location.contains('?') { "&" } else { "?" })
    };
    // end-6: at once.
    let answer = client.ask("PUT", &with_digest(&begin(), &digest), &[], content);
    assert_eq!((answer.status, is_there(&digest)), (201, true));
    assert!(answer.header("location").ends_with(&digest));
    // end-4b: at once, in one request.
    let other = client.put_blob("push", b"in one request");
    assert!(is_there(&other));
    // end-5: in chunks, which must follow each other.
    let chunked = sha256(b"abcdefghij");
    let location = begin();
    let chunk = |location: &str, range: &str, bytes: &[u8]| {
        client.ask("PATCH", location, &[("Content-Range", range), ("Content-Type", "application/octet-stream")], bytes)
    };
    let answer = chunk(&location, "0-3", b"abcd");
    assert_eq!((answer.status, answer.header("range")), (202, "0-3"));
    let location = answer.header("location").to_owned();
    assert_eq!(chunk(&location, "6-9", b"ghij").status, 416);
    assert_eq!(chunk(&location, "0-3", b"abcd").status, 416);
    // end-13
    let status = client.get(&location);
    assert_eq!((status.status, status.header("range")), (204, "0-3"));
    let answer = chunk(&location, "4-7", b"efgh");
    assert_eq!((answer.status, answer.header("range")), (202, "0-7"));
    let target = with_digest(answer.header("location"), &chunked);
    assert_eq!(client.ask("PUT", &target, &[("Content-Range", "8-9")], b"ij").status, 201);
    assert!(is_there(&chunked));
    // As a stream, and ended by an empty request.
    let location = client.ask("PATCH", &begin(), &[], b"streamed").header("location").to_owned();
    let streamed = sha256(b"streamed");
    assert_eq!(client.ask("PUT", &with_digest(&location, &streamed), &[], b"").status, 201);
    // Something else than was said is nothing, and the upload is over.
    let location = begin();
    client.ask("PUT", &with_digest(&location, &digest), &[], b"other").is_error(400, "DIGEST_INVALID");
    assert_eq!(client.get(&location).status, 404);
    let location = begin();
    assert_eq!(client.ask("DELETE", &location, &[], b"").status, 204);
    assert_eq!(client.get(&location).status, 404);
    // Another algorithm.
    let long = sha512(b"long");
    let answer = client.ask("POST", &format!("/v2/push/blobs/uploads/?digest={long}"), &[], b"long");
    assert_eq!((answer.status, is_there(&long)), (201, true));
    // end-11: from another repository, from anywhere, and from one that does not have it.
    let mount = |digest: &str, from: &str| {
        client.ask("POST", &format!("/v2/target/blobs/uploads/?mount={digest}{from}"), &[], b"")
    };
    assert_eq!(mount(&digest, "&from=push").status, 201);
    assert_eq!(client.get(&format!("/v2/target/blobs/{digest}")).body, content);
    let answer = mount(&sha256(b"nobody has it"), "&from=push");
    assert_eq!((answer.status, answer.header("location").is_empty()), (202, false));

    // end-7
    let config = descriptor(CONFIG, b"not there");
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []});
    client.put_manifest("push", "tag", &manifest).is_error(404, "MANIFEST_BLOB_UNKNOWN");
    client.ask("PUT", "/v2/push/manifests/tag", &[("Content-Type", MANIFEST)], b"{").is_error(400, "MANIFEST_INVALID");
    let (manifest, digest) = client.put_image("push", "tag", "layer");
    let answer = client.put_manifest("push", &digest, &manifest);
    assert_eq!((answer.status, answer.header("docker-content-digest")), (201, digest.as_str()));
    let wrong = client.put_manifest("push", &sha256(b"wrong"), &manifest);
    wrong.is_error(400, "DIGEST_INVALID");
    client.put_manifest("push", "-no-tag", &manifest).is_error(400, "TAG_INVALID");
    client.ask("POST", "/v2/NO-NAME/blobs/uploads/", &[], b"").is_error(400, "NAME_INVALID");
}

#[test]
fn content_discovery() {
    let client = Client::new();
    client.get("/v2/nothing/tags/list").is_error(404, "NAME_UNKNOWN");
    for tag in ["b", "a", "d", "c"] {
        client.put_image("tags", tag, tag);
    }
    // end-8a, end-8b
    let list = |query: &str| client.get(&format!("/v2/tags/tags/list{query}"));
    assert_eq!(list("").json(), json!({"name": "tags", "tags": ["a", "b", "c", "d"]}));
    let page = list("?n=2");
    assert_eq!(page.json()["tags"], json!(["a", "b"]));
    let next = page.header("link").split_once('>').unwrap().0.trim_start_matches('<').to_owned();
    let page = client.get(&next);
    assert_eq!((page.json()["tags"].clone(), page.header("link")), (json!(["c", "d"]), ""));
    assert_eq!(list("?last=b").json()["tags"], json!(["c", "d"]));
    assert_eq!(list("?n=1&last=c").json()["tags"], json!(["d"]));
    assert_eq!(list("?n=0").json()["tags"], json!([]));

    // end-12a, end-12b: what refers to an image, be it there or not.
    let (image, digest) = client.put_image("refs", "image", "layer");
    let subject = descriptor(MANIFEST, image.to_string().as_bytes());
    client.put_blob("refs", b"{}");
    let artifact = |kind: &str, subject: &Value, with_type: bool| {
        let config_type = if with_type { "application/vnd.oci.empty.v1+json" } else { kind };
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(config_type, b"{}"), "layers": [],
            "subject": subject, "annotations": {"kind": kind},
        });
        if with_type {
            manifest["artifactType"] = json!(kind);
        }
        let reference = sha256(manifest.to_string().as_bytes());
        let answer = client.put_manifest("refs", &reference, &manifest);
        assert_eq!((answer.status, answer.header("oci-subject")), (201, subject["digest"].as_str().unwrap()));
        reference
    };
    let first = artifact("application/x-first", &subject, true);
    let second = artifact("application/x-second", &subject, false);
    let missing = descriptor(MANIFEST, b"not there yet");
    artifact("application/x-first", &missing, true);
    let referrers = |digest: &str, query: &str| {
        let answer = client.get(&format!("/v2/refs/referrers/{digest}{query}"));
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), "application/vnd.oci.image.index.v1+json");
        let applied = answer.header("oci-filters-applied").to_owned();
        let kinds = |entry: &Value| {
            assert!(entry["size"].is_u64() && entry["annotations"]["kind"] == entry["artifactType"]);
            entry["artifactType"].as_str().unwrap().to_owned()
        };
        let mut kinds: Vec<String> = answer.json()["manifests"].as_array().unwrap().iter().map(kinds).collect();
        kinds.sort();
        (kinds, applied)
    };
    let both = vec!["application/x-first".to_owned(), "application/x-second".to_owned()];
    assert_eq!(referrers(&digest, ""), (both.clone(), String::new()));
    let filtered = referrers(&digest, "?artifactType=application%2Fx-second");
    assert_eq!(filtered, (both[1..].to_vec(), "artifactType".to_owned()));
    assert_eq!(referrers(missing["digest"].as_str().unwrap(), "").0, both[..1]);
    assert!(referrers(&sha256(b"nothing refers to this"), "").0.is_empty());
    assert_eq!(client.get("/v2/refs/referrers/nonsense").status, 400);
    // What is deleted refers to nothing.
    for reference in [first, second] {
        assert_eq!(client.ask("DELETE", &format!("/v2/refs/manifests/{reference}"), &[], b"").status, 202);
    }
    assert!(referrers(&digest, "").0.is_empty());
}

#[test]
fn content_management() {
    let client = Client::new();
    let (manifest, digest) = client.put_image("gone", "one", "layer");
    client.put_manifest("gone", "two", &manifest);
    let delete = |target: &str| client.ask("DELETE", &format!("/v2/gone/{target}"), &[], b"").status;
    // end-9: a tag alone.
    assert_eq!(delete("manifests/one"), 202);
    client.get("/v2/gone/manifests/one").is_error(404, "MANIFEST_UNKNOWN");
    assert_eq!(client.get("/v2/gone/manifests/two").status, 200);
    // The manifest, with every tag that it has.
    assert_eq!(delete(&format!("manifests/{digest}")), 202);
    client.get("/v2/gone/manifests/two").is_error(404, "MANIFEST_UNKNOWN");
    assert_eq!(delete(&format!("manifests/{digest}")), 404);
    // end-10
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    assert_eq!(delete(&format!("blobs/{layer}")), 202);
    assert_eq!(client.get(&format!("/v2/gone/blobs/{layer}")).status, 404);
    assert_eq!(delete(&format!("blobs/{layer}")), 404);
}
