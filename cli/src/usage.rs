//! What is wrong with a command line, with Docker's exit codes: 125 for flags, 1 for operands and verbs.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Command, CommandFactory};

use crate::args::Cli;

/// Shows help and version, or what is wrong with the command line `words`.
pub(crate) fn report(error: &clap::Error, words: impl Iterator<Item = OsString>) -> ExitCode {
    // A verb that only groups others is answered by its help, which is no complaint.
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // A closed pipe has no reader to tell.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let about_operands = is_about_operands(error);
    let text = match error.kind() {
        ErrorKind::MissingRequiredArgument
        | ErrorKind::UnknownArgument
        | ErrorKind::TooFewValues
        | ErrorKind::TooManyValues
        | ErrorKind::WrongNumberOfValues
            if about_operands =>
        {
            wrong_count(&mut verb_of(words))
        }
        _ => error.render().to_string(),
    };
    eprint!("strata: {}", text.strip_prefix("error: ").unwrap_or(&text));
    ExitCode::from(if about_operands { 1 } else { 125 })
}

/// Whether the mistake is in what is no flag and no value of one.
fn is_about_operands(error: &clap::Error) -> bool {
    let is_operand = |argument: &str| !argument.starts_with('-');
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => is_operand(argument),
        Some(ContextValue::Strings(arguments)) => arguments.iter().all(|argument| is_operand(argument)),
        _ => error.kind() == ErrorKind::InvalidSubcommand,
    }
}

/// Returns the verb that a command line is about, however little else of it makes sense.
fn verb_of(words: impl Iterator<Item = OsString>) -> Command {
    let mut command = Cli::command();
    command.build();
    let matches = Cli::command().ignore_errors(true).try_get_matches_from(words).unwrap_or_default();
    let mut next = matches.subcommand();
    while let Some((name, matches)) = next {
        let Some(verb) = command.find_subcommand(name) else { break };
        command = verb.clone();
        next = ArgMatches::subcommand(matches);
    }
    command
}

/// Says how many operands a verb takes.
fn wrong_count(verb: &mut Command) -> String {
    let usage = verb.render_usage().to_string();
    let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage);
    let name = verb.get_bin_name().unwrap_or("strata").to_owned();
    format!(
        "'{name}' {}\n\nUsage:  {usage}\n\nRun '{name} --help' for more information\n",
        requirement(least_operands(verb), most_operands(verb))
    )
}

fn least_operands(verb: &Command) -> usize {
    let required = verb.get_positionals().filter(|operand| operand.is_required_set());
    required.map(|operand| operand.get_num_args().map_or(1, |range| range.min_values())).sum()
}

fn most_operands(verb: &Command) -> Option<usize> {
    let most = verb.get_positionals().map(|operand| operand.get_num_args().map_or(1, |range| range.max_values()));
    Some(most.fold(0, usize::saturating_add)).filter(|most| *most < usize::MAX)
}

/// Docker's words for a number of operands; `None` is any.
fn requirement(least: usize, most: Option<usize>) -> String {
    let counted = |count: usize| format!("{count} argument{}", if count == 1 { "" } else { "s" });
    match (least, most) {
        (_, Some(0)) => "accepts no arguments".to_owned(),
        (least, Some(most)) if least == most => format!("requires {}", counted(least)),
        (0, Some(most)) => format!("requires at most {}", counted(most)),
        (least, Some(most)) => format!("requires at least {least} and at most {}", counted(most)),
        (least, None) => format!("requires at least {}", counted(least)),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// Exit codes and words of Docker 28.
    #[test]
    fn operands_are_counted_as_by_docker() {
        for (line, words) in [
            ("tag a", "'strata tag' requires 2 arguments"),
            ("tag a b c", "'strata tag' requires 2 arguments"),
            ("pull", "'strata pull' requires 1 argument"),
            ("pull a b", "'strata pull' requires 1 argument"),
            ("rmi", "'strata rmi' requires at least 1 argument"),
            ("rmi --force", "'strata rmi' requires at least 1 argument"),
            ("image rm", "'strata image rm' requires at least 1 argument"),
            ("images a b", "'strata images' requires at most 1 argument"),
            ("load x", "'strata load' accepts no arguments"),
            ("system df x", "'strata system df' accepts no arguments"),
            ("run", "'strata run' requires at least 1 argument"),
            ("run --rm", "'strata run' requires at least 1 argument"),
            ("exec", "'strata exec' requires at least 2 arguments"),
            ("exec a", "'strata exec' requires at least 2 arguments"),
            ("commit", "'strata commit' requires at least 1 and at most 2 arguments"),
            ("commit a b c", "'strata commit' requires at least 1 and at most 2 arguments"),
            ("--root /x import", "'strata import' requires at least 1 and at most 2 arguments"),
            ("container ls x", "'strata container ls' accepts no arguments"),
            ("cp a", "'strata cp' requires 2 arguments"),
            ("login a b", "'strata login' requires at most 1 argument"),
        ] {
            let words_of_line = || ["strata"].into_iter().chain(line.split(' ')).map(OsString::from);
            let error = Cli::try_parse_from(words_of_line()).unwrap_err();
            assert!(is_about_operands(&error), "{line}: {error:?}");
            let text = wrong_count(&mut verb_of(words_of_line()));
            assert_eq!(text.lines().next().unwrap(), words, "{line}: {:?}", error.kind());
        }
    }

    #[test]
    fn flags_are_told_from_operands() {
        for (line, operands) in [
            ("tag --bad a b", false),
            ("run -m", false),
            ("images --filter", false),
            ("ps --last=abc", false),
            ("manifest inspect --artifact-type x name", false),
            ("nosuch", true),
            ("image nosuch", true),
        ] {
            let words = ["strata"].into_iter().chain(line.split(' '));
            let error = Cli::try_parse_from(words).unwrap_err();
            assert_eq!(is_about_operands(&error), operands, "{line}: {error:?}");
        }
    }
}
