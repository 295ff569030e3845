//! Every kind of document that registries hold: each is pushed with all that it needs, listed, read, referred to and deleted.

use serde_json::{Value, json};

use super::{Answer, CONFIG, Client, INDEX, MANIFEST, descriptor, sha256, sha512};

/// A document and what it needs.
struct Document {
    kind: &'static str,
    content: Value,
    /// Blobs, and documents with their media types, which must be there before.
    blobs: Vec<Vec<u8>>,
    documents: Vec<Value>,
}

impl Document {
    fn image(kind: &'static str, layers: &[&str]) -> Document {
        let config = json!({"architecture": "amd64", "os": "linux", "for": kind}).to_string().into_bytes();
        let layers: Vec<Vec<u8>> = layers.iter().map(|layer| format!("{kind} {layer}").into_bytes()).collect();
        let descriptors: Vec<Value> = layers.iter().map(|layer| descriptor(LAYER, layer)).collect();
        let content = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &config), "layers": descriptors});
        let blobs = layers.into_iter().chain([config]).collect();
        Document { kind, content, blobs, documents: Vec::new() }
    }

    fn index(kind: &'static str, of: Vec<Document>) -> Document {
        let mut manifests = Vec::new();
        let (mut blobs, mut documents) = (Vec::new(), Vec::new());
        for (document, architecture) in of.into_iter().zip(["amd64", "arm64"]) {
            let media_type = document.media_type().to_owned();
            let mut entry = descriptor(&media_type, document.content.to_string().as_bytes());
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            manifests.push(entry);
            blobs.extend(document.blobs);
            documents.extend(document.documents);
            documents.push(document.content);
        }
        let content = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        Document { kind, content, blobs, documents }
    }

    fn media_type(&self) -> &str {
        self.content["mediaType"].as_str().unwrap()
    }

    /// The same with other fields.
    fn with(mut self, fields: Value) -> Document {
        for (name, value) in fields.as_object().unwrap() {
            self.content[name] = value.clone();
        }
        self
    }
}

fn documents() -> Vec<Document> {
    let image = Document::image;
    let subject = descriptor(MANIFEST, image("subject", &["a"]).content.to_string().as_bytes());
    let artifact = |kind| {
        let mut artifact = image(kind, &["file"]);
        artifact.content["config"] = descriptor("application/vnd.oci.empty.v1+json", b"{}");
        artifact.blobs.push(b"{}".to_vec());
        artifact.with(json!({"artifactType": "application/x-conformance"}))
    };
    let annotations: serde_json::Map<String, Value> =
        (0..390).map(|number| (format!("large-{number}"), json!("A".repeat(10_000)))).collect();
    let elsewhere = |kind: &str, content: &[u8]| {
        let mut layer = descriptor(&format!("application/vnd.oci.image.layer.nondistributable.v1.{kind}"), content);
        layer["urls"] = json!(["https://elsewhere.example/layer"]);
        layer
    };
    let mut with_data = image("data", &["a"]);
    with_data.content["config"]["data"] = json!("e30=");
    vec![
        image("image", &["a", "b"]),
        image("no layers", &[]),
        image("the same layer twice", &["a", "a"]),
        image("large", &["a"]).with(json!({"annotations": annotations})),
        image("unknown fields", &["a"]).with(json!({"org.example.custom": {"deep": [1, 2]}})),
        with_data,
        image("layers that are elsewhere", &[])
            .with(json!({"layers": [elsewhere("tar", b"x"), elsewhere("tar+gzip", b"y")]})),
        Document::index("index", vec![image("one", &["a"]), image("two", &["a"])]),
        Document::index("empty index", Vec::new()),
        Document::index(
            "index of indexes",
            vec![
                Document::index("inner one", vec![image("three", &["a"])]),
                Document::index("inner two", vec![image("four", &["a"])]),
            ],
        ),
        Document::index("index with fields", vec![image("five", &["a"])]).with(json!({"org.example.custom": true})),
        artifact("artifact"),
        artifact("artifact with a subject").with(json!({"subject": subject})),
        image("image with a subject", &["a"]).with(json!({"subject": subject})),
        Document::index("index of artifacts", vec![artifact("artifact of an index")])
            .with(json!({"artifactType": "application/x-list"})),
        Document::index("index with a subject", vec![image("six", &["a"])])
            .with(json!({"subject": subject, "artifactType": "application/x-list"})),
    ]
}

#[test]
fn every_kind_of_document_comes_and_goes() {
    let client = Client::new();
    for document in documents() {
        let name = "documents/all";
        let bytes = document.content.to_string();
        for algorithm in [sha256, sha512] {
            let digest = algorithm(bytes.as_bytes());
            let context = format!("{} as {digest}", document.kind);
            document.blobs.iter().for_each(|blob| drop(client.put_blob(name, blob)));
            for needed in &document.documents {
                let reference = algorithm(needed.to_string().as_bytes());
                assert_eq!(client.put_manifest(name, &reference, needed).status, 201, "{context}");
            }
            // By digest, with two tags at once; and a third on its own.
            let pushed = client.put_manifest(name, &format!("{digest}?tag=first&tag=second"), &document.content);
            assert_eq!((pushed.status, pushed.header("docker-content-digest")), (201, digest.as_str()), "{context}");
            assert_eq!(pushed.all("oci-tag"), ["first", "second"], "{context}");
            if let Some(subject) = document.content["subject"]["digest"].as_str() {
                assert_eq!(pushed.header("oci-subject"), subject, "{context}");
            }
            let is_it = |answer: &Answer, context: &str| {
                assert_eq!((answer.status, answer.header("content-type")), (200, document.media_type()), "{context}");
                assert_eq!(answer.header("content-length"), bytes.len().to_string(), "{context}");
                assert_eq!(answer.header("docker-content-digest"), digest, "{context}");
            };
            let location = pushed.header("location").to_owned();
            let by_tag = ["first", "second"].map(|tag| format!("/v2/{name}/manifests/{tag}"));
            for target in by_tag.iter().chain([&location]) {
                let answer = client.get(target);
                is_it(&answer, &context);
                assert_eq!(answer.body, bytes.as_bytes(), "{context}");
                is_it(&client.ask("HEAD", target, &[], b""), &context);
            }
            let tags = client.get(&format!("/v2/{name}/tags/list")).json();
            assert_eq!(tags["tags"], json!(["first", "second"]), "{context}");
            refers(&client, name, &document, &digest, bytes.len());
            // Tags alone, then the document, then what it needed.
            let delete = |target: &str| client.ask("DELETE", target, &[], b"").status;
            assert_eq!(delete(&by_tag[0]), 202, "{context}");
            assert_eq!(client.ask("HEAD", &by_tag[0], &[], b"").status, 404, "{context}");
            assert_eq!(client.get(&by_tag[1]).status, 200, "{context}");
            assert_eq!(delete(&location), 202, "{context}");
            for target in by_tag.iter().chain([&location]) {
                assert_eq!(client.ask("HEAD", target, &[], b"").status, 404, "{context}");
            }
            for needed in &document.documents {
                let reference = algorithm(needed.to_string().as_bytes());
                assert_eq!(delete(&format!("/v2/{name}/manifests/{reference}")), 202, "{context}");
            }
            for blob in &document.blobs {
                let target = format!("/v2/{name}/blobs/{}", sha256(blob));
                // The same one may be needed twice.
                assert!(matches!(delete(&target), 202 | 404), "{context}");
                assert_eq!(client.ask("HEAD", &target, &[], b"").status, 404, "{context}");
            }
        }
    }
}

/// What has a subject is among what refers to it, under its kind and no other, until it is deleted.
fn refers(client: &Client, name: &str, document: &Document, digest: &str, size: usize) {
    let Some(subject) = document.content["subject"]["digest"].as_str() else { return };
    let list = |query: &str| {
        let answer = client.get(&format!("/v2/{name}/referrers/{subject}{query}"));
        assert_eq!((answer.status, answer.header("content-type")), (200, INDEX));
        let list = answer.json();
        assert_eq!((list["schemaVersion"].clone(), list["mediaType"].clone()), (json!(2), json!(INDEX)));
        list["manifests"].as_array().unwrap().clone()
    };
    let kind = document.content["artifactType"].as_str().or(document.content["config"]["mediaType"].as_str()).unwrap();
    let found = list("");
    assert_eq!(found.len(), 1, "{}", document.kind);
    let expected = json!({"mediaType": document.media_type(), "digest": digest, "size": size, "artifactType": kind});
    assert_eq!(found[0], expected);
    assert_eq!(list(&format!("?artifactType={}", kind.replace('/', "%2F").replace('+', "%2B"))), found);
    assert!(list("?artifactType=application%2Fx-nothing").is_empty());
}

#[test]
fn documents_that_are_not_what_they_are_called_are_refused() {
    let client = Client::new();
    let Document { content, blobs, .. } = Document::image("image", &["a"]);
    blobs.iter().for_each(|blob| drop(client.put_blob("name", blob)));
    let put = |reference: &str, media_type: &str, body: &str| {
        let target = format!("/v2/name/manifests/{reference}");
        client.ask("PUT", &target, &[("Content-Type", media_type)], body.as_bytes())
    };
    let text = content.to_string();
    for reference in [sha256(text.as_bytes()), sha512(text.as_bytes())] {
        put(&reference, MANIFEST, &format!("{text}  ")).is_error(400, "DIGEST_INVALID");
    }
    assert_eq!(put("sha256:baddigeststring", MANIFEST, &text).status, 400);
    assert_eq!(client.get("/v2/name/manifests/sha256:baddigeststring").status, 400);
    put("tag", INDEX, &text).is_error(400, "MANIFEST_INVALID");
    put("tag", MANIFEST, &format!("{text}{}", " ".repeat(4 << 20))).is_error(413, "SIZE_INVALID");
    put(&"t".repeat(129), MANIFEST, &text).is_error(400, "TAG_INVALID");
    client.get("/v2/name/tags/list").is_error(404, "NAME_UNKNOWN");
    assert_eq!(put(&"t".repeat(128), MANIFEST, &text).status, 201);
}

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
