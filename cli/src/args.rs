//! The command line: global options and verbs. The documentation comments here are the help texts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use strata_engine::CgroupManager;

use crate::command;

/// Run containers, and use images as folders
#[derive(Debug, Parser)]
#[command(
    name = "strata",
    version,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "Run 'strata COMMAND --help' for more on a command"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Options before the verb.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Keep all state in DIR; two roots never share anything [env: STRATA_ROOT]
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Have the cgroups of new containers made by 'cgroupfs' or 'systemd' [env: STRATA_CGROUP_MANAGER]
    #[arg(long, value_name = "MANAGER")]
    pub(crate) cgroup_manager: Option<CgroupManager>,
    /// Reserved for the daemon's address
    #[arg(short = 'H', long, value_name = "ADDRESS")]
    pub(crate) host: Option<String>,
    /// Log at this level to standard error
    #[arg(short = 'l', long, value_name = "LEVEL", default_value = "warn")]
    pub(crate) log_level: LogLevel,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// Everything
    Trace,
    /// What helps to find a fault
    Debug,
    /// What is done
    Info,
    /// What is wrong and was dealt with
    Warn,
    /// What is wrong
    Error,
    /// Nothing
    Off,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Run(Box<command::run::Run>),
    Create(Box<command::create::Create>),
    Start(command::start::Start),
    Stop(command::stop::Stop),
    Restart(command::restart::Restart),
    Kill(command::kill::Kill),
    Pause(command::pause::Pause),
    Unpause(command::pause::Unpause),
    Wait(command::wait::Wait),
    Exec(command::exec::Exec),
    Attach(command::attach::AttachTo),
    Logs(command::logs::Logs),
    Top(command::top::Top),
    Stats(command::stats::Stats),
    Ps(command::ps::Ps),
    Rename(command::rename::Rename),
    Update(command::update::UpdateVerb),
    Rm(command::rm::Rm),
    Cp(command::cp::Cp),
    Diff(command::diff::Diff),
    Commit(command::commit::Commit),
    Export(command::export::Export),
    Images(command::images::Images),
    Pull(command::pull::Pull),
    Push(command::push::Push),
    Save(command::save::Save),
    Load(command::load::Load),
    Import(command::import::Import),
    Tag(command::tag::Tag),
    Rmi(command::rmi::Rmi),
    History(command::history::History),
    Inspect(command::inspect::Inspect),
    /// Manage images
    #[command(subcommand)]
    Image(ImageVerb),
    /// Manage containers
    #[command(subcommand)]
    Container(ContainerVerb),
    Mount(command::mount::Mount),
    #[command(alias = "unmount")]
    Umount(command::umount::Umount),
    /// Manage the whole of this root
    #[command(subcommand)]
    System(SystemVerb),
    Fsck(command::fsck::Fsck),
    Events(command::events::Events),
    Info(command::info::Info),
    Runtime(RuntimeVerb),
    Login(command::login::Login),
    Logout(command::login::Logout),
    Search(command::search::Search),
    /// Look at manifests in registries
    #[command(subcommand)]
    Manifest(ManifestVerb),
    /// Serve images to others
    #[command(subcommand)]
    Registry(RegistryVerb),
    /// Measure this machine
    #[command(subcommand)]
    Bench(BenchVerb),
    /// Fetch what layers of the store lack; started by other commands
    #[command(hide = true)]
    Fetch {
        /// Do it rather than start another process for it
        #[arg(long)]
        stay: bool,
    },
}

/// Run containers from OCI bundles, with runc's command line
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct RuntimeVerb {
    /// See `strata runtime --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    pub(crate) words: Vec<std::ffi::OsString>,
}

/// What to do with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    #[command(visible_alias = "list")]
    Ls(command::images::Images),
    Inspect(command::inspect::InspectImage),
    History(command::history::History),
    Pull(command::pull::Pull),
    Push(command::push::Push),
    Save(command::save::Save),
    Load(command::load::Load),
    Import(command::import::Import),
    Tag(command::tag::Tag),
    Prune(command::prune::images::PruneImages),
    #[command(visible_alias = "remove")]
    Rm(command::rmi::Rmi),
}

/// What to do with containers.
#[derive(Debug, Subcommand)]
pub(crate) enum ContainerVerb {
    Run(Box<command::run::Run>),
    Create(Box<command::create::Create>),
    Start(command::start::Start),
    Stop(command::stop::Stop),
    Restart(command::restart::Restart),
    Kill(command::kill::Kill),
    Pause(command::pause::Pause),
    Unpause(command::pause::Unpause),
    Wait(command::wait::Wait),
    Exec(command::exec::Exec),
    Attach(command::attach::AttachTo),
    Logs(command::logs::Logs),
    Top(command::top::Top),
    Stats(command::stats::Stats),
    #[command(visible_aliases = ["list", "ps"])]
    Ls(command::ps::Ps),
    Rename(command::rename::Rename),
    Update(command::update::UpdateVerb),
    Prune(command::prune::containers::PruneContainers),
    Inspect(command::inspect::InspectContainer),
    #[command(visible_alias = "remove")]
    Rm(command::rm::Rm),
    Cp(command::cp::Cp),
    Diff(command::diff::Diff),
    Commit(command::commit::Commit),
    Export(command::export::Export),
}

/// What to do about a registry of one's own.
#[derive(Debug, Subcommand)]
pub(crate) enum RegistryVerb {
    Serve(command::registry::Serve),
    Htpasswd(command::registry::Htpasswd),
}

/// What to do with all of it.
#[derive(Debug, Subcommand)]
pub(crate) enum SystemVerb {
    Df(command::disk_usage::DiskUsage),
    Events(command::events::Events),
    Prune(command::prune::system::PruneSystem),
    Recover(command::system::Recover),
}

/// What to do with manifests.
#[derive(Debug, Subcommand)]
pub(crate) enum ManifestVerb {
    Inspect(command::manifest::Inspect),
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchVerb {
    Lookup(command::bench::Lookup),
}
