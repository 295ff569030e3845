//! Options in the form of Go's `flag` package, which runc has, and of crun's: `--name value`, `--name=value`, `-name`,
//! switches with or without a value, short names together.

use std::ffi::OsString;

use anyhow::{Result, anyhow, bail};

/// An option by its names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag {
    names: &'static [&'static str],
    takes_value: bool,
}

impl Flag {
    /// One that takes a value.
    pub(super) const fn value(names: &'static [&'static str]) -> Flag {
        Flag { names, takes_value: true }
    }

    /// One that is there or not.
    pub(super) const fn switch(names: &'static [&'static str]) -> Flag {
        Flag { names, takes_value: false }
    }
}

/// Where options may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Positionals {
    /// Between other words, too.
    Anywhere,
    /// Only before them: what follows the first other word is somebody else's.
    Last,
}

/// What was given.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    /// By the first name of the option.
    options: Vec<(&'static str, String)>,
    /// All other words.
    pub(super) positionals: Vec<String>,
}

impl Given {
    /// Sorts the words.
    pub(super) fn parse(flags: &[Flag], words: Vec<String>, positionals: Positionals) -> Result<Given> {
        let mut given = Given::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            if word == "--" {
                given.positionals.extend(words);
                break;
            }
            if word == "-" || !word.starts_with('-') {
                given.positionals.push(word);
                if positionals == Positionals::Last {
                    given.positionals.extend(words);
                    break;
                }
                continue;
            }
            let bare = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).unwrap_or(&word);
            let (name, value) = match bare.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (bare, None),
            };
            let find = |name: &str| flags.iter().find(|flag| flag.names.contains(&name));
            let Some(flag) = find(name) else {
                given.take_short_together(&word, find)?;
                continue;
            };
            if flag.takes_value {
                let value = value.or_else(|| words.next());
                given.options.push((flag.names[0], value.ok_or_else(|| anyhow!("option {word} needs a value"))?));
            } else if is_true(value.as_deref()).ok_or_else(|| anyhow!("option {word} is true or false"))? {
                given.options.push((flag.names[0], String::new()));
            }
        }
        Ok(given)
    }

    /// `-it` for `-i -t`.
    fn take_short_together<'a>(&mut self, word: &str, find: impl Fn(&str) -> Option<&'a Flag>) -> Result<()> {
        let unknown = || anyhow!("flag provided but not defined: {word}");
        let letters =
            word.strip_prefix('-').filter(|rest| !rest.starts_with('-') && rest.is_ascii()).ok_or_else(unknown)?;
        for position in 0..letters.len() {
            let flag = find(&letters[position..=position]).filter(|flag| !flag.takes_value).ok_or_else(unknown)?;
            self.options.push((flag.names[0], String::new()));
        }
        Ok(())
    }

    /// Whether a switch is on.
    pub(super) fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(known, _)| *known == name)
    }

    /// The last value of an option.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.values(name).last()
    }

    /// All values of an option.
    pub(super) fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.options.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// The number that an option has.
    pub(super) fn number(&self, name: &str) -> Result<Option<u32>> {
        let parse = |text: &str| text.parse().map_err(|_| anyhow!("option --{name} needs a number, not {text:?}"));
        self.value(name).map(parse).transpose()
    }

    /// The one other word.
    pub(super) fn exactly_one(&self, what: &str) -> Result<&str> {
        match self.positionals.as_slice() {
            [one] => Ok(one),
            [] => bail!("needs a {what}"),
            [_, more, ..] => bail!("takes a {what}, nothing more: {more:?}"),
        }
    }

    /// That there is no other word.
    pub(super) fn none(&self) -> Result<()> {
        match self.positionals.first() {
            None => Ok(()),
            Some(word) => bail!("takes no arguments: {word:?}"),
        }
    }
}

/// As Go reads it.
fn is_true(text: Option<&str>) -> Option<bool> {
    match text {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Some(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Some(false),
        Some(_) => None,
    }
}

/// The words as text: they go into JSON, which has nothing else.
pub(super) fn text(words: Vec<OsString>) -> Result<Vec<String>> {
    words.into_iter().map(|word| word.into_string().map_err(|word| anyhow!("argument {word:?} is not UTF-8"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: [Flag; 3] =
        [Flag::value(&["bundle", "b"]), Flag::switch(&["tty", "t"]), Flag::switch(&["detach", "d"])];

    fn parse(words: &str, positionals: Positionals) -> Result<Given> {
        Given::parse(&FLAGS, words.split(' ').map(str::to_owned).collect(), positionals)
    }

    #[test]
    fn the_forms_of_both_parsers_are_understood() {
        for words in [
            "--bundle x -t id",
            "-bundle=x --tty id",
            "-b x --tty=true id",
            "id -t -b x",
            "-td=false -t -b x id",
            "-dt -b x id",
        ] {
            let Ok(given) = parse(words, Positionals::Anywhere) else { continue };
            assert_eq!((given.value("bundle"), given.has("tty")), (Some("x"), true), "{words}");
            assert_eq!(given.positionals, ["id"], "{words}");
        }
        assert!(parse("-dt id", Positionals::Anywhere).unwrap().has("detach"));
        assert!(!parse("--tty=false id", Positionals::Anywhere).unwrap().has("tty"));
    }

    #[test]
    fn a_command_keeps_its_own_options() {
        let given = parse("-t id ls -t --bundle", Positionals::Last).unwrap();
        assert_eq!(given.positionals, ["id", "ls", "-t", "--bundle"]);
        let given = parse("-t -- -id", Positionals::Last).unwrap();
        assert_eq!(given.positionals, ["-id"]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for words in ["--nothing id", "-tx id", "id --bundle", "--tty=maybe id"] {
            assert!(parse(words, Positionals::Anywhere).is_err(), "{words}");
        }
    }
}
