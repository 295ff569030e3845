//! Measures `load`: seconds, MB/s, CPU time and the most memory, in this process alone.
//!
//! ```text
//! load_speed make ARCHIVE SIZE_IN_MB [gzip|zstd]    writes a docker-archive (an OCI layout if compressed) of four layers
//! load_speed load ARCHIVE STORE [stream]            loads it into an empty store
//! ```
#![allow(clippy::print_stdout, reason = "this is a program")]

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use serde_json::json;
use sha2::{Digest as _, Sha256};
use strata_imagestore::{Input, LoadOptions, Store};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["make", archive, megabytes] => make(Path::new(archive), megabytes.parse()?, ""),
        ["make", archive, megabytes, kind] => make(Path::new(archive), megabytes.parse()?, kind),
        ["load", archive, store] => load(Path::new(archive), Path::new(store), false),
        ["load", archive, store, "stream"] => load(Path::new(archive), Path::new(store), true),
        _ => Err("usage: load_speed make ARCHIVE MB [gzip|zstd] | load ARCHIVE STORE [stream]".into()),
    }
}

fn load(archive: &Path, store: &Path, stream: bool) -> Result<()> {
    let size = std::fs::metadata(archive)?.len();
    let store = Store::open(store)?;
    let input = match stream {
        true => Input::Stream(Box::new(File::open(archive)?)),
        false => Input::Path(archive.to_owned()),
    };
    let start = Instant::now();
    let loaded = store.load(input, &LoadOptions::default(), &())?;
    let seconds = start.elapsed().as_secs_f64();
    let usage = usage()?;
    for line in loaded {
        println!("{line}");
    }
    let megabytes = size as f64 / 1e6;
    println!(
        "{seconds:.2} s, {:.0} MB/s, CPU {:.2} s user + {:.2} s system, peak memory {:.1} MB",
        megabytes / seconds,
        usage.0,
        usage.1,
        usage.2
    );
    Ok(())
}

/// Returns the seconds of CPU time in user and system mode and the peak memory in MB.
fn usage() -> Result<(f64, f64, f64)> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit_once(')').ok_or("no name in stat")?.1.split_ascii_whitespace().collect();
    let ticks = |field: usize| -> Result<f64> { Ok(fields[field].parse::<f64>()? / 100.0) };
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in status")?;
    let kilobytes: f64 = peak.trim().trim_end_matches(" kB").parse()?;
    Ok((ticks(11)?, ticks(12)?, kilobytes * 1024.0 / 1e6))
}

/// Writes an archive of four layers whose files have sizes as in a Debian image: most are small, most bytes are in
/// large ones; half of each is text that compresses well.
fn make(archive: &Path, megabytes: u64, kind: &str) -> Result<()> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let folder = tempfile::tempdir_in(archive.parent().ok_or("no folder")?)?;
    let (mut diff_ids, mut blobs) = (Vec::new(), Vec::new());
    for number in 0..4 {
        let plain = folder.path().join(number.to_string());
        let mut tar = tar::Builder::new(BufWriter::new(File::create(&plain)?));
        let (mut bytes, mut file) = (0, 0);
        while bytes < megabytes * 1_000_000 / 4 {
            let large = next(&mut random).is_multiple_of(32);
            let size = next(&mut random) % if large { 4_000_000 } else { 24_000 };
            let mut content = Vec::with_capacity(usize::try_from(size)?);
            while (content.len() as u64) < size {
                content.extend_from_slice(&next(&mut random).to_le_bytes());
                content.extend_from_slice(b"text that compresses well");
            }
            content.truncate(usize::try_from(size)?);
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(size);
            tar.append_data(&mut header, format!("layer{number}/folder{}/file{file}", file / 100), &content[..])?;
            bytes += size + 1024;
            file += 1;
        }
        tar.into_inner()?.flush()?;
        diff_ids.push(hash(&plain)?);
        let blob = folder.path().join(format!("{number}.blob"));
        let mut source = File::open(&plain)?;
        match kind {
            "gzip" => {
                let mut encoder = flate2::write::GzEncoder::new(File::create(&blob)?, flate2::Compression::new(6));
                io::copy(&mut source, &mut encoder)?;
                encoder.finish()?;
            }
            "zstd" => zstd::stream::copy_encode(&mut source, File::create(&blob)?, 3)?,
            _ => std::fs::rename(&plain, &blob)?,
        }
        blobs.push((hash(&blob)?, std::fs::metadata(&blob)?.len(), blob));
    }

    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids.iter().map(|id| format!("sha256:{id}")).collect::<Vec<_>>()},
    })
    .to_string();
    let mut out = tar::Builder::new(BufWriter::new(File::create(archive)?));
    let mut add = |name: &str, content: &[u8]| -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        Ok(out.append_data(&mut header, name, content)?)
    };
    let config_hash = hex(&Sha256::digest(config.as_bytes()));
    add(&format!("blobs/sha256/{config_hash}"), config.as_bytes())?;
    let descriptor = |media_type: &str, hash: &str, size: u64| json!({"mediaType": media_type, "digest": format!("sha256:{hash}"), "size": size});
    let suffix = if kind.is_empty() { String::new() } else { format!("+{kind}") };
    let manifest = json!({
        "schemaVersion": 2,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config_hash, config.len() as u64),
        "layers": blobs.iter().map(|(hash, size, _)| descriptor(&format!("application/vnd.oci.image.layer.v1.tar{suffix}"), hash, *size)).collect::<Vec<_>>(),
    })
    .to_string();
    let manifest_hash = hex(&Sha256::digest(manifest.as_bytes()));
    add(&format!("blobs/sha256/{manifest_hash}"), manifest.as_bytes())?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest_hash, manifest.len() as u64);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "speed:1"});
    add("index.json", json!({"schemaVersion": 2, "manifests": [entry]}).to_string().as_bytes())?;
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    if kind.is_empty() {
        let layers: Vec<String> = blobs.iter().map(|(hash, ..)| format!("blobs/sha256/{hash}")).collect();
        let docker =
            json!([{"Config": format!("blobs/sha256/{config_hash}"), "RepoTags": ["speed:1"], "Layers": layers}]);
        add("manifest.json", docker.to_string().as_bytes())?;
    }
    for (hash, _, path) in &blobs {
        out.append_path_with_name(path, format!("blobs/sha256/{hash}"))?;
    }
    out.into_inner()?.flush()?;
    Ok(())
}

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn hash(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = io::Read::read(&mut file, &mut buffer)?;
        if count == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..count]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
