//! The `strata` command: parse, call the engine, render.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this crate is the one that talks to the user")]
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the comments of arguments are their help: brackets mean optional parts"
)]

mod args;
mod command;
mod configuration;
mod detach_keys;
mod failure;
mod logging;
mod mount_helper;
mod output;
mod progress;
mod registries;
mod relay;
mod root;
mod runtime;
mod terminal;
mod usage;

use std::ffi::{OsStr, OsString};
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use anyhow::anyhow;
use clap::Parser;
use strata_sys::entry::{RUNTIME_NAMES, RUNTIME_VERB};

use crate::args::{BenchVerb, Cli, ContainerVerb, ImageVerb, ManifestVerb, RegistryVerb, SystemVerb, Verb};
use crate::command::{Context, Outcome};
use crate::failure::Failure;
use crate::mount_helper::Role;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    let rest: Vec<OsString> = arguments.collect();
    let name = std::path::Path::new(&program).file_name();
    if RUNTIME_NAMES.iter().any(|known| name == Some(OsStr::new(known))) {
        return runtime::main(rest);
    }
    if rest.first().is_some_and(|verb| verb == RUNTIME_VERB) {
        return runtime::main(rest.into_iter().skip(1).collect());
    }
    // What a careless caller left open must not live on in a filesystem process or a container. Kernels before 5.11
    // cannot, and then nothing is lost but that.
    let _ = strata_sys::process::close_on_exec_from(3);
    // Before anything else: these run once per mount and once per container, and must cost nothing.
    let hidden = rest.first().map(OsString::as_os_str);
    let unblock = || {
        // The command that starts this collects signals, and a blocked one stays blocked over an exec.
        let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
    };
    strata_engine::set_fetch_deadline(registries::fetch_deadline);
    if hidden == Some(OsStr::new(strata_engine::FILESYSTEM_VERB)) {
        unblock();
        return finish(strata_engine::serve_filesystem().map(|()| 0).map_err(Failure::from));
    }
    if hidden == Some(OsStr::new(strata_engine::MONITOR_VERB)) {
        unblock();
        return finish(strata_engine::watch_container().map(|()| 0).map_err(Failure::from));
    }
    match Role::of(&program) {
        Role::Command => {}
        Role::MountHelper => {
            return finish(
                root::choose(None)
                    .and_then(|root| mount_helper::mount_helper(&Context { root, cgroup_manager: None }, rest)),
            );
        }
        Role::UmountHelper => return finish(mount_helper::umount_helper(rest)),
        Role::FuseOverlayfs => return finish(mount_helper::fuse_overlayfs(rest)),
    }
    // While the command line is read, the process that it will need gets ready. A plain user's is started once it is in
    // his namespace. The verb may stand behind an option and its value.
    if rest.iter().take(3).any(|word| word == "mount") && nix::unistd::geteuid().is_root() {
        strata_engine::expect_mount();
    }
    match Cli::try_parse() {
        Ok(cli) => {
            // It was a word of another verb's: a command in a container.
            if !matches!(cli.verb, Verb::Mount(_)) {
                strata_engine::expect_no_mount();
            }
            finish(run(cli))
        }
        Err(error) => usage::report(&error, std::env::args_os()),
    }
}

fn run(cli: Cli) -> Outcome {
    logging::start(cli.global.log_level);
    if let Verb::Runtime(verb) = cli.verb {
        return Err(
            anyhow!("`runtime` comes first, before other options: strata runtime {}", shown(&verb.words)).into()
        );
    }
    if let Some(host) = &cli.global.host {
        let failure = Failure::of_engine(anyhow!("cannot talk to {host}: strata has no daemon yet"));
        return Err(failure.hint("leave out -H/--host: every command works without a daemon"));
    }
    let context = Context { root: root::choose(cli.global.root)?, cgroup_manager: cli.global.cgroup_manager };
    if needs_ids(&cli.verb) {
        let entered = match &cli.verb {
            Verb::Run(run) | Verb::Container(ContainerVerb::Run(run)) => {
                strata_engine::enter_rootless_to_start(&context.root, &run.joined(), &[])
            }
            Verb::Start(start) | Verb::Container(ContainerVerb::Start(start)) => {
                strata_engine::enter_rootless_to_start(&context.root, &[], &start.containers)
            }
            Verb::Restart(restart) | Verb::Container(ContainerVerb::Restart(restart)) => {
                strata_engine::enter_rootless_to_start(&context.root, &[], &restart.containers)
            }
            _ => strata_engine::enter_rootless().map(drop),
        };
        entered.map_err(|error| match cli.verb {
            Verb::Run(_) | Verb::Container(ContainerVerb::Run(_)) => Failure::of_engine(error),
            _ => Failure::from(error),
        })?;
    }
    let mut out = BufWriter::new(io::stdout());
    let code = dispatch(&context, &cli.verb, &mut out)?;
    out.flush()?;
    Ok(code)
}

fn shown(words: &[OsString]) -> String {
    words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Whether a verb touches writable layers, whose files a plain user owns only inside a user namespace.
fn needs_ids(verb: &Verb) -> bool {
    match verb {
        // Chooses the namespace itself.
        Verb::Cp(_) | Verb::Container(ContainerVerb::Cp(_)) => false,
        Verb::Run(_)
        | Verb::Create(_)
        | Verb::Start(_)
        | Verb::Stop(_)
        | Verb::Restart(_)
        | Verb::Kill(_)
        | Verb::Pause(_)
        | Verb::Unpause(_)
        | Verb::Wait(_)
        | Verb::Exec(_)
        | Verb::Attach(_)
        | Verb::Logs(_)
        | Verb::Top(_)
        | Verb::Stats(_)
        | Verb::System(SystemVerb::Df(_) | SystemVerb::Prune(_) | SystemVerb::Recover(_))
        | Verb::Rename(_)
        | Verb::Update(_)
        | Verb::Ps(_)
        | Verb::Rm(_)
        | Verb::Diff(_)
        | Verb::Commit(_)
        | Verb::Export(_)
        | Verb::Rmi(_)
        | Verb::Inspect(_)
        | Verb::Container(_)
        | Verb::Image(ImageVerb::Rm(_) | ImageVerb::Prune(_))
        | Verb::Bench(_) => true,
        Verb::Images(_)
        | Verb::Pull(_)
        | Verb::Push(_)
        | Verb::Login(_)
        | Verb::Search(_)
        | Verb::Manifest(_)
        | Verb::Logout(_)
        | Verb::Registry(_)
        | Verb::Fetch { .. }
        | Verb::Save(_)
        | Verb::Load(_)
        | Verb::Import(_)
        | Verb::Tag(_)
        | Verb::History(_)
        | Verb::Image(_)
        | Verb::Mount(_)
        | Verb::Umount(_)
        | Verb::Fsck(_)
        | Verb::Events(_)
        | Verb::System(SystemVerb::Events(_))
        | Verb::Runtime(_)
        | Verb::Info(_) => false,
    }
}

fn dispatch(context: &Context, verb: &Verb, out: &mut impl Write) -> Outcome {
    match verb {
        Verb::Run(verb) | Verb::Container(ContainerVerb::Run(verb)) => command::run::run(context, verb, out),
        Verb::Create(verb) | Verb::Container(ContainerVerb::Create(verb)) => command::create::run(context, verb, out),
        Verb::Start(verb) | Verb::Container(ContainerVerb::Start(verb)) => command::start::run(context, verb, out),
        Verb::Stop(verb) | Verb::Container(ContainerVerb::Stop(verb)) => command::stop::run(context, verb, out),
        Verb::Restart(verb) | Verb::Container(ContainerVerb::Restart(verb)) => {
            command::restart::run(context, verb, out)
        }
        Verb::Kill(verb) | Verb::Container(ContainerVerb::Kill(verb)) => command::kill::run(context, verb, out),
        Verb::Pause(verb) | Verb::Container(ContainerVerb::Pause(verb)) => command::pause::pause(context, verb, out),
        Verb::Unpause(verb) | Verb::Container(ContainerVerb::Unpause(verb)) => {
            command::pause::unpause(context, verb, out)
        }
        Verb::Wait(verb) | Verb::Container(ContainerVerb::Wait(verb)) => command::wait::run(context, verb, out),
        Verb::Exec(verb) | Verb::Container(ContainerVerb::Exec(verb)) => command::exec::run(context, verb),
        Verb::Attach(verb) | Verb::Container(ContainerVerb::Attach(verb)) => command::attach::run(context, verb),
        Verb::Logs(verb) | Verb::Container(ContainerVerb::Logs(verb)) => command::logs::run(context, verb),
        Verb::Top(verb) | Verb::Container(ContainerVerb::Top(verb)) => command::top::run(context, verb, out),
        Verb::Stats(verb) | Verb::Container(ContainerVerb::Stats(verb)) => command::stats::run(context, verb, out),
        Verb::System(SystemVerb::Recover(verb)) => command::system::recover(context, verb, out),
        Verb::Rename(verb) | Verb::Container(ContainerVerb::Rename(verb)) => command::rename::run(context, verb),
        Verb::Update(verb) | Verb::Container(ContainerVerb::Update(verb)) => command::update::run(context, verb, out),
        Verb::Container(ContainerVerb::Prune(verb)) => command::prune::containers::run(context, verb, out),
        Verb::Image(ImageVerb::Prune(verb)) => command::prune::images::run(context, verb, out),
        Verb::System(SystemVerb::Prune(verb)) => command::prune::system::run(context, verb, out),
        Verb::System(SystemVerb::Df(verb)) => command::disk_usage::run(context, verb, out),
        Verb::Ps(verb) | Verb::Container(ContainerVerb::Ls(verb)) => command::ps::run(context, verb, out),
        Verb::Rm(verb) | Verb::Container(ContainerVerb::Rm(verb)) => command::rm::run(context, verb, out),
        Verb::Cp(verb) | Verb::Container(ContainerVerb::Cp(verb)) => command::cp::run(context, verb),
        Verb::Diff(verb) | Verb::Container(ContainerVerb::Diff(verb)) => command::diff::run(context, verb, out),
        Verb::Commit(verb) | Verb::Container(ContainerVerb::Commit(verb)) => command::commit::run(context, verb, out),
        Verb::Export(verb) | Verb::Container(ContainerVerb::Export(verb)) => command::export::run(context, verb),
        Verb::Images(verb) | Verb::Image(ImageVerb::Ls(verb)) => command::images::run(context, verb, out),
        Verb::Pull(verb) | Verb::Image(ImageVerb::Pull(verb)) => command::pull::run(context, verb, out),
        Verb::Push(verb) | Verb::Image(ImageVerb::Push(verb)) => command::push::run(context, verb, out),
        Verb::Search(verb) => command::search::run(context, verb, out),
        Verb::Manifest(ManifestVerb::Inspect(verb)) => command::manifest::inspect(verb, out),
        Verb::Login(verb) => command::login::login(verb, out),
        Verb::Logout(verb) => command::login::logout(verb, out),
        Verb::Fetch { stay } => command::fetch::run(context, *stay),
        Verb::Registry(RegistryVerb::Serve(verb)) => command::registry::serve(verb),
        Verb::Registry(RegistryVerb::Htpasswd(verb)) => command::registry::htpasswd(verb, out),
        Verb::Save(verb) | Verb::Image(ImageVerb::Save(verb)) => command::save::run(context, verb),
        Verb::Load(verb) | Verb::Image(ImageVerb::Load(verb)) => command::load::run(context, verb, out),
        Verb::Import(verb) | Verb::Image(ImageVerb::Import(verb)) => command::import::run(context, verb, out),
        Verb::Tag(verb) | Verb::Image(ImageVerb::Tag(verb)) => command::tag::run(context, verb),
        Verb::Rmi(verb) | Verb::Image(ImageVerb::Rm(verb)) => command::rmi::run(context, verb, out),
        Verb::History(verb) | Verb::Image(ImageVerb::History(verb)) => command::history::run(context, verb, out),
        Verb::Inspect(verb) => command::inspect::run(context, verb, out),
        Verb::Image(ImageVerb::Inspect(verb)) => command::inspect::image(context, verb, out),
        Verb::Container(ContainerVerb::Inspect(verb)) => command::inspect::container(context, verb, out),
        Verb::Mount(verb) => command::mount::run(context, verb, out),
        Verb::Umount(verb) => command::umount::run(context, verb),
        Verb::Events(verb) | Verb::System(SystemVerb::Events(verb)) => command::events::run(context, verb, out),
        Verb::Fsck(verb) => command::fsck::run(context, verb, out),
        Verb::Info(verb) => command::info::run(context, verb, out),
        // Taken care of before anything else.
        Verb::Runtime(_) => Ok(125),
        Verb::Bench(BenchVerb::Lookup(verb)) => command::bench::run(context, verb, out),
    }
}

fn finish(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(code) => ExitCode::from(code),
        // As for every filter: nobody reads any more, and that is no failure of ours.
        Err(failure) if output::is_closed_pipe(&failure.error) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
