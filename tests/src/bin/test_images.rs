//! Makes test images, or finds them in the cache, and prints where they are.

use std::process::ExitCode;

use strata_tests::image::{busybox, debian, synthetic};

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command")]
fn main() -> ExitCode {
    let names: Vec<String> = std::env::args().skip(1).collect();
    if names.is_empty() {
        eprintln!("usage: test-images debian|busybox|large|spread-N...");
        return ExitCode::from(2);
    }
    let mut status = ExitCode::SUCCESS;
    for name in names {
        let made = match (name.as_str(), name.strip_prefix("spread-").map(str::parse)) {
            ("debian", _) => debian::folder(),
            ("busybox", _) => busybox::folder(),
            ("large", _) => synthetic::large(),
            (_, Some(Ok(layers))) => synthetic::spread(layers),
            _ => Err(anyhow::anyhow!("no such image")),
        };
        match made {
            Ok(path) => println!("{name}: {}", path.display()),
            Err(error) => {
                eprintln!("{name}: {error:#}");
                status = ExitCode::FAILURE;
            }
        }
    }
    status
}
