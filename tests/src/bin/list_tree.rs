//! Prints the listing of a tree as the user who runs it sees it.

use std::path::PathBuf;
use std::process::ExitCode;

use strata_tests::tree::{DirectoryLinks, Listing};

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command")]
fn main() -> ExitCode {
    let Some(root) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: list-tree FOLDER");
        return ExitCode::from(2);
    };
    match Listing::of(&root, DirectoryLinks::Reported) {
        Ok(listing) => {
            print!("{}", listing.to_text());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("list-tree: {error:#}");
            ExitCode::FAILURE
        }
    }
}
