//! Blobs and documents put into a registry by hand, as no client of ours would.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};
use strata_imagestore::ImageId;
use strata_layer::Digest;

use crate::lazy_blobs::Blob;
use crate::support::{CONFIG, MANIFEST, config_of};

/// A repository of a registry that lets everybody push.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Repository<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) name: &'a str,
}

impl Repository<'_> {
    pub(crate) fn put_blob(&self, bytes: &[u8]) {
        let target = format!("POST /v2/{}/blobs/uploads/?digest={}", self.name, Digest::of(bytes));
        self.send(&target, "application/octet-stream", bytes);
    }

    pub(crate) fn put_document(&self, tag: &str, media_type: &str, bytes: &[u8]) {
        self.send(&format!("PUT /v2/{}/manifests/{tag}", self.name), media_type, bytes);
    }

    /// Puts an image of these layers.
    pub(crate) fn put_image(&self, tag: &str, blobs: &[Blob]) -> ImageId {
        let tars: Vec<Vec<u8>> = blobs.iter().map(|blob| blob.tar.clone()).collect();
        let config = config_of(&tars).to_string().into_bytes();
        self.put_blob(&config);
        let layers: Vec<Value> = blobs
            .iter()
            .map(|blob| {
                self.put_blob(&blob.bytes);
                json!({"mediaType": blob.media_type, "digest": Digest::of(&blob.bytes).to_string(),
                    "size": blob.bytes.len(), "annotations": blob.annotations})
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
            "config": {"mediaType": CONFIG, "digest": Digest::of(&config).to_string(), "size": config.len()},
        });
        self.put_document(tag, MANIFEST, manifest.to_string().as_bytes());
        ImageId(Digest::of(&config))
    }

    fn send(&self, target: &str, media_type: &str, bytes: &[u8]) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let head = format!(
            "{target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
            bytes.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }
}
