//! Every way to send a blob, with both algorithms, rightly and wrongly.

use super::{Answer, Client, sha256, sha512};

/// A way to send a blob; the last answer is returned.
type Way = (&'static str, fn(&Client, &[u8], &str) -> Answer);

const UPLOADS: &str = "/v2/one/blobs/uploads/";

const WAYS: [Way; 5] = [
    ("in one request", |client, content, digest| {
        client.ask("POST", &format!("{UPLOADS}?digest={digest}"), &[OCTETS], content)
    }),
    ("at once", |client, content, digest| client.ask("PUT", &with_digest(&begin(client), digest), &[OCTETS], content)),
    ("as a stream", |client, content, digest| {
        let answer = client.ask("PATCH", &begin(client), &[OCTETS], content);
        assert_eq!(answer.status, 202);
        client.ask("PUT", &with_digest(answer.header("location"), digest), &[], b"")
    }),
    ("in chunks", |client, content, digest| {
        let location = chunks(client, content, 3);
        client.ask("PUT", &with_digest(&location, digest), &[], b"")
    }),
    ("in chunks, the last one with its end", |client, content, digest| {
        let location = chunks(client, content, 2);
        let from = content.len() / 3 * 2;
        let range = format!("{from}-{}", content.len() - 1);
        client.ask("PUT", &with_digest(&location, digest), &[OCTETS, ("Content-Range", &range)], &content[from..])
    }),
];

fn begin(client: &Client) -> String {
    let answer = client.ask("POST", UPLOADS, &[], b"");
    assert_eq!(answer.status, 202);
    answer.header("location").to_owned()
}

fn with_digest(location: &str, digest: &str) -> String {
    format!("{location}{}digest={digest}", if location.contains('?') { '&' } else { '?' })
}

/// Sends the first chunks of three. Before each, one is sent that is not next, and what is asked for is found out again.
fn chunks(client: &Client, content: &[u8], count: usize) -> String {
    let mut location = begin(client);
    let size = content.len() / 3;
    for number in 0..count {
        let start = number * size;
        let end = if number == 2 { content.len() } else { start + size };
        let send = |method: &str, location: &str, start: usize, end: usize| {
            let range = format!("{start}-{}", end - 1);
            client.ask(method, location, &[OCTETS, ("Content-Range", &range)], &content[start..end])
        };
        let elsewhere = if number == 0 { size } else { 0 };
        assert_eq!(send("PATCH", &location, elsewhere, elsewhere + size).status, 416);
        let early = with_digest(&location, &sha256(content));
        assert_eq!(send("PUT", &early, elsewhere, elsewhere + size).status, 416);
        let status = client.get(&location);
        assert_eq!((status.status, status.header("range")), (204, format!("0-{}", start.saturating_sub(1)).as_str()));
        let answer = send("PATCH", status.header("location"), start, end);
        assert_eq!((answer.status, answer.header("range")), (202, format!("0-{}", end - 1).as_str()));
        location = answer.header("location").to_owned();
    }
    location
}

#[test]
fn every_way_to_send_a_blob() {
    let client = Client::new();
    for algorithm in [sha256, sha512] {
        for (number, (way, send)) in WAYS.into_iter().enumerate() {
            let content = format!("{way} {} {number} and something to have three chunks", algorithm(b""));
            let digest = algorithm(content.as_bytes());
            let target = format!("/v2/one/blobs/{digest}");
            assert_eq!(client.get(&target).status, 404, "{way}");
            let answer = send(&client, content.as_bytes(), &digest);
            assert_eq!((answer.status, answer.header("docker-content-digest")), (201, digest.as_str()), "{way}");
            for target in [answer.header("location"), &target] {
                let blob = client.get(target);
                assert_eq!((blob.status, &blob.body[..]), (200, content.as_bytes()), "{way}");
                assert_eq!(blob.header("docker-content-digest"), digest, "{way}");
                let head = client.ask("HEAD", target, &[], b"");
                assert_eq!((head.status, head.header("content-length")), (200, content.len().to_string().as_str()));
                assert_eq!(head.header("docker-content-digest"), digest, "{way}");
            }
            // Again what is there already.
            assert_eq!(send(&client, content.as_bytes(), &digest).status, 201, "{way}");
            let delete = || client.ask("DELETE", &target, &[], b"").status;
            assert_eq!((delete(), client.get(&target).status, delete()), (202, 404, 404), "{way}");
            // Something else than was said.
            let other = format!("{content} oh no");
            send(&client, other.as_bytes(), &digest).is_error(400, "DIGEST_INVALID");
            assert_eq!(client.get(&target).status, 404, "{way}");
        }
    }
}

#[test]
fn a_blob_stays_while_a_repository_without_manifests_has_it() {
    let client = Client::new();
    let digest = sha256(b"shared");
    for name in ["one", "two"] {
        assert_eq!(client.put_blob(name, b"shared"), digest);
    }
    assert_eq!(client.ask("DELETE", &format!("/v2/one/blobs/{digest}"), &[], b"").status, 202);
    assert_eq!(client.get(&format!("/v2/one/blobs/{digest}")).status, 404);
    assert_eq!(client.get(&format!("/v2/two/blobs/{digest}")).body, b"shared");
    // Repositories are listed once they have an image.
    assert_eq!(client.get("/v2/_catalog").json()["repositories"], serde_json::json!([]));
}

#[test]
fn small_blobs_and_ones_that_are_mounted() {
    let client = Client::new();
    for algorithm in [sha256, sha512] {
        for content in [&b""[..], b"{}"] {
            let digest = algorithm(content);
            for (way, send) in WAYS.into_iter().take(3) {
                assert_eq!(send(&client, content, &digest).status, 201, "{way}");
                let blob = client.get(&format!("/v2/one/blobs/{digest}"));
                assert_eq!((blob.status, &blob.body[..]), (200, content), "{way}");
                assert_eq!(blob.header("content-length"), content.len().to_string(), "{way}");
            }
        }
        let content = format!("to be mounted as {}", algorithm(b""));
        let digest = algorithm(content.as_bytes());
        assert_eq!(WAYS[0].1(&client, content.as_bytes(), &digest).status, 201);
        // From where it is, from wherever it may be, and from where it is not.
        for (to, from, status) in
            [("two", "&from=one", 201), ("three", "", 201), ("four", "&from=five", 202), ("six", "&from=NO", 202)]
        {
            let answer = client.ask("POST", &format!("/v2/{to}/blobs/uploads/?mount={digest}{from}"), &[], b"");
            assert_eq!(answer.status, status, "{to}");
            match status {
                201 => assert_eq!(client.get(answer.header("location")).body, content.as_bytes(), "{to}"),
                // It can be sent after all.
                _ => {
                    let put =
                        client.ask("PUT", &with_digest(answer.header("location"), &digest), &[], content.as_bytes());
                    assert_eq!(put.status, 201, "{to}");
                }
            }
        }
        let missing = algorithm(b"nobody has it");
        let answer = client.ask("POST", &format!("/v2/two/blobs/uploads/?mount={missing}"), &[], b"");
        assert_eq!(answer.status, 202);
    }
    // Called off.
    let location = begin(&client);
    assert_eq!(client.ask("DELETE", &location, &[], b"").status, 204);
    assert_eq!(client.get(&location).status, 404);
    assert_eq!(client.ask("PATCH", &location, &[], b"x").status, 404);
}

#[test]
fn ranges_of_a_blob() {
    let client = Client::new();
    let content: Vec<u8> = (0..2048_u32).map(|number| number.to_le_bytes()[0]).collect();
    for algorithm in [sha256, sha512] {
        let digest = algorithm(&content);
        assert_eq!(WAYS[0].1(&client, &content, &digest).status, 201);
        let ask = |range: &str| client.ask("GET", &format!("/v2/one/blobs/{digest}"), &[("Range", range)], b"");
        for (range, start, end) in [
            ("bytes=500-1499", 500, 1500),
            ("bytes=500-", 500, 2048),
            ("bytes=-500", 1548, 2048),
            ("bytes=2000-5000", 2000, 2048),
        ] {
            let answer = ask(range);
            assert_eq!((answer.status, &answer.body[..]), (206, &content[start..end]), "{range}");
            assert_eq!(answer.header("content-length"), (end - start).to_string());
            assert_eq!(answer.header("content-range"), format!("bytes {start}-{}/2048", end - 1));
        }
        for range in ["bytes=500-0", "bytes=5000-10000"] {
            assert_eq!(ask(range).status, 416, "{range}");
        }
    }
}

const OCTETS: (&str, &str) = ("Content-Type", "application/octet-stream");
