//! Measures strata's file system beside overlayfs, fuse-overlayfs and a plain folder, and writes the figures and a
//! picture of them to `benches/results/`. See `benches/README.md`.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::MountPropagationFlags;
use strata_benches::fs::data::{Data, Sizes};
use strata_benches::fs::plan::{Effort, Plan, Run, UpperKind};
use strata_benches::fs::{peer, picture, table};
use strata_benches::report::Report;
use strata_benches::{binary, machine};

#[expect(clippy::print_stderr, reason = "a command")]
fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-fs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line says.
#[derive(Debug)]
struct Arguments {
    plan: Plan,
    sizes: Sizes,
    peers: Vec<String>,
    fuse_overlayfs: Vec<PathBuf>,
    data: Option<PathBuf>,
    to_file: bool,
}

fn bench() -> Result<()> {
    let Some(arguments) = parse()? else { return Ok(()) };
    ensure!(rustix::process::geteuid().is_root(), "root is needed: everybody mounts");
    // A process that copies the namespace of the host would keep our mounts, and their servers, for itself.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).context("get a mount namespace")?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("keep mounts to ourselves")?;
    // The servers that a mount command leaves behind become our children, so that their end can be waited for.
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1)).context("become a subreaper")?;
    let started = *STARTED.get_or_init(Instant::now);
    let strata = binary()?;
    remove_leftovers()?;
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let disk = tempfile::Builder::new().prefix(&prefix).tempdir_in(DISK)?;
    let memory = tempfile::Builder::new().prefix(&prefix).tempdir_in(MEMORY)?;
    let folder = arguments.data.clone().unwrap_or_else(|| disk.path().join("data"));
    let data = Data::new(&folder, arguments.sizes, &strata)?;
    let peers: Vec<_> = peer::all(&strata, &arguments.fuse_overlayfs)
        .into_iter()
        .filter(|peer| arguments.peers.is_empty() || arguments.peers.contains(&peer.name))
        .collect();
    let names: Vec<String> = peers.iter().map(|peer| peer.name.clone()).collect();
    ensure!(!names.is_empty(), "nobody is left to measure");

    let mut report = Report::default();
    report.say(machine::describe(disk.path()));
    report.say(describe(&arguments.plan, arguments.sizes));
    let run =
        Run { plan: &arguments.plan, data: &data, peers: &peers, disk: disk.path(), memory: memory.path(), progress };
    let result = run.all();
    progress("");
    // Whatever happened, nothing of ours stays mounted.
    strata_tests::strata::unmount_below(disk.path());
    let samples = result?;
    table::print(&samples, &names, &mut report);
    report.say(format!("{} s in all", started.elapsed().as_secs()));
    if arguments.to_file {
        let svg = picture::svg(&samples, &names, &title(&report));
        write(&mut report, &svg)?;
    }
    Ok(())
}

/// Unmounts and removes what a run left that was killed.
fn remove_leftovers() -> Result<()> {
    for place in [DISK, MEMORY] {
        for entry in std::fs::read_dir(place)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            let owner = rest.split('-').next().unwrap_or_default();
            if !Path::new("/proc").join(owner).exists() {
                strata_tests::strata::unmount_below(&path);
                std::fs::remove_dir_all(&path)?;
            }
        }
    }
    Ok(())
}

fn describe(plan: &Plan, sizes: Sizes) -> String {
    let upper = match plan.upper {
        UpperKind::Mixed => "uppers on tmpfs, those of fsync, dpkg, chmod and chown on the disk",
        UpperKind::Memory => "all uppers on tmpfs",
        UpperKind::Disk => "all uppers on the disk",
    };
    format!(
        "a tree of {} folders and {} files; every mount has an empty upper; {upper}; lower files are warm; strata gets \n\
         the layers as an image, strata/folders as the folders that the others get; overlayfs has metacopy=on for chmod\n\
         and chown, else its defaults; one client thread, ordinary scheduling; {} rounds, interleaved\n",
        sizes.folders,
        sizes.folders * 10,
        plan.rounds
    )
}

fn title(report: &Report) -> String {
    let line = |name: &str| {
        let found = report.text().lines().find_map(|line| line.strip_prefix(name));
        found.unwrap_or_default().trim().to_owned()
    };
    format!("time as a multiple of overlayfs's: {}, Linux {}, {}", line("date"), line("kernel"), line("processor"))
}

fn write(report: &mut Report, svg: &str) -> Result<()> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/results"));
    let date = report.text().split_whitespace().nth(1).unwrap_or("undated").to_owned();
    std::fs::create_dir_all(&folder)?;
    let text = folder.join(format!("{date}-fs.txt"));
    std::fs::write(&text, format!("$ just bench-fs\n\n{}", report.text()))?;
    std::fs::write(text.with_extension("svg"), svg)?;
    report.say(format!("written to {} and .svg", text.display()));
    Ok(())
}

/// Shows what is being done: in place on a terminal, else line by line with the time.
#[expect(clippy::print_stderr, reason = "progress")]
fn progress(what: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[2K{what}");
    } else if let Some(started) = STARTED.get().filter(|_| !what.is_empty()) {
        eprintln!("{:>5} s  {what}", started.elapsed().as_secs());
    }
}

static STARTED: OnceLock<Instant> = OnceLock::new();

fn parse() -> Result<Option<Arguments>> {
    let mut parsed = Arguments {
        plan: Plan {
            rounds: 3,
            layers: vec![1, 16, 64, 127],
            rows: Vec::new(),
            upper: UpperKind::Mixed,
            effort: Effort { looks: 3000, names: 2000, writes: 10_000 },
        },
        sizes: Sizes { folders: 1_600, large: 256, heavy: 1024 },
        peers: Vec::new(),
        fuse_overlayfs: Vec::new(),
        data: None,
        to_file: true,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        let list = |text: String| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        match argument.as_str() {
            "--quick" => {
                parsed.plan.rounds = 1;
                parsed.plan.layers = vec![1, 16];
                parsed.plan.effort = Effort { looks: 500, names: 200, writes: 2000 };
                parsed.sizes = Sizes { folders: 160, large: 32, heavy: 32 };
            }
            "--rounds" => parsed.plan.rounds = value()?.parse()?,
            "--layers" => {
                parsed.plan.layers = list(value()?).iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
                parsed.plan.layers.sort_unstable();
            }
            "--rows" => parsed.plan.rows = list(value()?),
            "--peers" => parsed.peers = list(value()?),
            "--upper" => {
                parsed.plan.upper = match value()?.as_str() {
                    "mixed" => UpperKind::Mixed,
                    "tmpfs" => UpperKind::Memory,
                    "disk" => UpperKind::Disk,
                    other => bail!("--upper {other}: not mixed, tmpfs or disk"),
                }
            }
            "--tree-size" => parsed.sizes.heavy = value()?.parse()?,
            "--fuse-overlayfs" => parsed.fuse_overlayfs.push(Path::new(&value()?).canonicalize()?),
            "--data" => parsed.data = Some(std::path::absolute(value()?)?),
            "--no-file" => parsed.to_file = false,
            "--help" | "-h" => {
                Report::default().say(HELP);
                return Ok(None);
            }
            other => bail!("{other}: see --help"),
        }
    }
    Ok(Some(parsed))
}

const DISK: &str = "/var/tmp";
const MEMORY: &str = "/dev/shm";
const PREFIX: &str = "strata-fs-";

const HELP: &str = "\
bench-fs: strata's file system beside overlayfs, fuse-overlayfs and a plain folder

  --quick                 a look at everything in a minute; the figures mean little
  --rounds N              take medians of N (3)
  --layers N,N            numbers of layers (1,16,64,127)
  --rows WORD,WORD        only rows whose names contain one of the words
  --peers NAME,NAME       only these columns
  --upper mixed|tmpfs|disk  where uppers lie (mixed: fsync, dpkg, chmod and chown on the disk)
  --tree-size MIB         size of the tree for chmod -R and chown -R (1024)
  --fuse-overlayfs PATH   one more fuse-overlayfs than the one on PATH
  --data FOLDER           keep what is measured on, for the next run
  --no-file               write nothing to benches/results

The binary under test is $STRATA_BIN, else what `cargo dist` made.";
