//! A slow link in front of the registry, and how long a container of an absent image takes to say something over it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::engine::{Engine, Store};
use super::scene::{Scene, name_at};
use crate::load::first_line;
use crate::measure::{Cost, median};
use crate::report::{Report, row, seconds};

/// Prints the table: from `run` of an image that is not here to the end of its command.
pub(super) fn figures(scene: &Scene, rounds: usize, report: &mut Report) -> Result<()> {
    let slow = relay(&scene.address, RATE)?;
    let name = name_at(&slow, "gzip");
    report.say(format!(
        "an image of {} MB that is not here, over a link of {} Mbit/s: until /bin/true has ended in a container\n\
         (the image's files are the registry's gzip form; with our index beside it where it says so)",
        scene.content / 1_000_000,
        RATE * 8 / 1_000_000
    ));
    let cases: [(&str, &[&str]); 3] = [
        ("run, started early (our index)", &["run", "--rm", "-q", "--network=none", "--lazy=auto"]),
        ("run, all of it first", &["run", "--rm", "-q", "--network=none", "--lazy=never"]),
        ("pull", &["pull", "-q"]),
    ];
    let mut costs = vec![Vec::<Cost>::new(); cases.len()];
    let mut failures = vec![None; cases.len()];
    for _ in 0..rounds {
        for (number, (_, arguments)) in cases.iter().enumerate() {
            let store = Engine::Strata.start(&scene.strata, scene.work.join("slow"))?;
            let mut words = arguments.to_vec();
            words.push(&name);
            if arguments[0] == "run" {
                words.push("/bin/true");
            }
            match store.time(&words) {
                Ok(cost) => costs[number].push(cost),
                Err(error) => failures[number] = Some(first_line(&error)),
            }
            give_up(store);
        }
    }
    let mut table = vec![row(["", "seconds", "CPU-s"])];
    for (((what, _), costs), failure) in cases.iter().zip(&costs).zip(failures) {
        table.push(match failure {
            Some(failure) => vec![(*what).to_owned(), format!("not measured: {failure}")],
            None => {
                let cost = median(costs);
                row([what, &seconds(cost.wall), &seconds(cost.cpu)])
            }
        });
    }
    report.table(&table);
    Ok(())
}

/// Removes a store whose layers are still being fetched; the fetcher ends when it finds nothing to fetch them for.
fn give_up(store: Store) {
    let root = store.folder().join("store");
    let end = Instant::now() + Duration::from_secs(60);
    while root.exists() && std::fs::remove_dir_all(&root).is_err() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Listens at a port of its own and passes on what comes, answers at so many bytes a second over all connections.
fn relay(target: &str, rate: u64) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let target = target.to_owned();
    let free = Arc::new(Mutex::new(Instant::now()));
    std::thread::Builder::new().name("relay".to_owned()).spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(&target) else { continue };
            // A connection that breaks is told to whoever uses it.
            let _ = pass(client, server, &free, rate);
        }
    })?;
    Ok(address)
}

fn pass(client: TcpStream, server: TcpStream, free: &Arc<Mutex<Instant>>, rate: u64) -> Result<()> {
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::Builder::new().spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(std::net::Shutdown::Both);
    })?;
    let free = Arc::clone(free);
    std::thread::Builder::new()
        .spawn(move || {
            let (mut from_server, mut to_client) = (server, client);
            let mut buffer = vec![0; 16 << 10];
            while let Ok(count) = from_server.read(&mut buffer) {
                if count == 0 {
                    break;
                }
                let turn = {
                    let mut free = free.lock().expect("no holder panics");
                    let turn = (*free).max(Instant::now());
                    *free = turn + Duration::from_nanos(count as u64 * 1_000_000_000 / rate);
                    turn
                };
                std::thread::sleep(turn.saturating_duration_since(Instant::now()));
                if to_client.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            let _ = to_client.shutdown(std::net::Shutdown::Both);
        })
        .context("start a thread")?;
    Ok(())
}

/// 400 Mbit/s.
const RATE: u64 = 50_000_000;
