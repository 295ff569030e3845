//! Makes test images, or finds them in the cache, and prints where they are.

use std::process::ExitCode;

use strata_tests::image::{busybox, debian, synthetic};

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command")]
fn main() -> ExitCode {
    let names: Vec<String> = std::env::args().skip(1).collect();
    if names.is_empty() {
        eprintln!("usage: test-images debian|busybox|large|spread-N|counted-N...");
        return ExitCode::from(2);
    }
    let mut status = ExitCode::SUCCESS;
    for name in names {
        let (kind, number) =
            name.split_once('-').map_or((name.as_str(), None), |(kind, number)| (kind, number.parse().ok()));
        let made = match (kind, number) {
            ("debian", _) => debian::folder(),
            ("busybox", _) => busybox::folder(),
            ("large", _) => synthetic::large(),
            ("spread", Some(layers)) => synthetic::spread(layers),
            ("counted", Some(files)) => synthetic::counted(files),
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
