//! Documents that lie about sizes, or are larger than any that is meant well.

use super::*;

/// An image of one layer whose descriptor is edited.
fn with_layer(edit: impl FnOnce(&mut Value)) -> Members {
    let tar = layer(&[("file", "x")]);
    let mut members = Members::default();
    let config = members.blob(CONFIG, config_of(std::slice::from_ref(&tar)).to_string().as_bytes());
    let mut descriptor = members.blob("application/vnd.oci.image.layer.v1.tar", &tar);
    edit(&mut descriptor);
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [descriptor]});
    let manifest = members.blob(MANIFEST, manifest.to_string().as_bytes());
    oci_layout(members, &[manifest])
}

#[test]
fn sizes_of_layers_that_lie_are_refused() {
    for (size, message) in [
        (json!(0), "expected 0"),
        (json!(1_u64 << 63), "expected 9223372036854775808"),
        (json!(-1), "invalid value"),
        (json!(1e30), "invalid type"),
        (json!("5"), "invalid type"),
    ] {
        refused(&with_layer(|descriptor| descriptor["size"] = size), message);
    }
    for digest in ["sha256:", "sha512:00", "SHA256:00", "sha256:../../../etc/passwd"] {
        refused(&with_layer(|descriptor| descriptor["digest"] = json!(digest)), "digest");
    }
}

#[test]
fn counts_and_depths_have_bounds() {
    let tar = layer(&[("file", "x")]);
    let many = |count| {
        let mut members = Members::default();
        let config = members.blob(CONFIG, config_of(&vec![tar.clone(); count]).to_string().as_bytes());
        let descriptor = members.blob("application/vnd.oci.image.layer.v1.tar", &tar);
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": vec![descriptor; count]});
        let manifest = members.blob(MANIFEST, manifest.to_string().as_bytes());
        oci_layout(members, &[manifest])
    };
    load_file(&store_with_image().1, &many(512).tar()).unwrap();
    refused(&many(513), "at most 512 are accepted");

    let deep = |depth: usize| {
        let mut members = Members::default();
        let nested = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        members.push("index.json", format!(r#"{{"schemaVersion":2,"manifests":[],"x":{nested}}}"#));
        members.push("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
        members
    };
    refused(&deep(40), "archive has no image");
    refused(&deep(100_000), "nested");
}

#[test]
fn of_a_thousand_platforms_the_right_one_is_taken() {
    let mut members = Members::default();
    let mut manifests: Vec<Value> = (0..1000)
        .map(|number| {
            json!({"mediaType": MANIFEST, "digest": Digest::of(format!("{number}").as_bytes()).to_string(), "size": 7,
                "platform": {"os": "linux", "architecture": format!("machine{number}")}})
        })
        .collect();
    let mut ours = oci_image(&mut members, &sample_layers(), "");
    ours["platform"] = json!({"os": "linux", "architecture": "amd64"});
    manifests.insert(700, ours);
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let index = members.blob(INDEX, index.to_string().as_bytes());
    let loaded = load_file(&store_with_image().1, &oci_layout(members, &[named(index, "a:1")]).tar()).unwrap();
    assert_eq!(loaded.len(), 1);
}

#[test]
fn an_index_that_names_one_thing_often_is_read_once() {
    // Four levels, each of which names the next a thousand times: without care, 10^12 documents.
    let mut members = Members::default();
    let mut descriptor = oci_image(&mut members, &sample_layers(), "");
    for _ in 0..4 {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": vec![descriptor; 1000]});
        descriptor = members.blob(INDEX, index.to_string().as_bytes());
    }
    let archive = oci_layout(members, &[descriptor]).tar();
    let before = std::time::Instant::now();
    let loaded = load_file(&store_with_image().1, &archive).unwrap();
    assert_eq!(loaded.len(), 1);
    assert!(before.elapsed() < std::time::Duration::from_secs(60));
}

#[test]
fn names_of_docker_archives_that_are_none_are_refused() {
    for name in ["../../etc/passwd", "UPPER:1", "a:1@sha256:00", "a/../b:1", "", "a:\u{1}"] {
        refused(&docker_old(&sample_layers(), &[name]), "invalid reference format");
    }
}

#[test]
fn one_member_is_not_two_layers() {
    let layers = sample_layers();
    let mut archive = docker_old(&layers, &["a:1"]);
    let manifest = archive.get_mut("manifest.json");
    let mut document: Value = serde_json::from_slice(manifest).unwrap();
    document[0]["Layers"][1] = document[0]["Layers"][0].clone();
    *manifest = document.to_string().into_bytes();
    refused(&archive, "has the diff_id sha256:");
}
