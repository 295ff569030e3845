//! How far a long operation has come: a line per layer on a terminal, plain lines elsewhere, nothing for quick ones.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use strata_engine::{Progress, ProgressEvent};

use crate::output::human;

/// Nothing is shown before this much time has passed.
const PATIENCE: Duration = Duration::from_millis(250);
/// On a terminal, lines are drawn at most this often.
const INTERVAL: Duration = Duration::from_millis(80);

/// Shows progress on standard error. Dropping it removes the lines it has drawn.
#[derive(Debug)]
pub(crate) struct Bars {
    kind: Kind,
    /// Guards drawing too: layers report from several threads.
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Silent,
    Plain,
    Terminal,
}

#[derive(Debug)]
struct State {
    started: Instant,
    drawn: Option<Instant>,
    /// How many lines are on the terminal.
    lines: usize,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    name: String,
    bytes: u64,
    total: Option<u64>,
    done: bool,
}

impl Bars {
    /// Prepares to show progress, unless `quiet`.
    pub(crate) fn new(quiet: bool) -> Bars {
        let kind = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Kind::Silent,
            (false, true) => Kind::Terminal,
            (false, false) => Kind::Plain,
        };
        let state = State { started: Instant::now(), drawn: None, lines: 0, layers: Vec::new() };
        Bars { kind, state: Mutex::new(state) }
    }
}

impl Progress for Bars {
    fn report(&self, event: ProgressEvent<'_>) {
        if self.kind == Kind::Silent {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let finished = state.note(event);
        if state.started.elapsed() < PATIENCE {
            return;
        }
        match (self.kind, finished) {
            (Kind::Plain, Some(number)) => eprintln!("{}", state.layers[number].plain()),
            (Kind::Terminal, _) if state.drawn.is_none_or(|drawn| drawn.elapsed() >= INTERVAL) => state.draw(),
            _ => {}
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.lines > 0 {
            // Up over what was drawn, and erase to the end of the screen.
            eprint!("\x1b[{}A\r\x1b[J", state.lines);
        }
    }
}

impl State {
    /// Takes note of an event; returns the layer that it finished.
    fn note(&mut self, event: ProgressEvent<'_>) -> Option<usize> {
        match event {
            ProgressEvent::Started { layer, bytes } => {
                let number = self.layer(layer);
                self.layers[number].total = bytes;
                None
            }
            ProgressEvent::Advanced { layer, bytes } => {
                let number = self.layer(layer);
                self.layers[number].bytes = bytes;
                None
            }
            ProgressEvent::Finished { layer } => {
                let number = self.layer(layer);
                let layer = &mut self.layers[number];
                layer.done = true;
                // The last report of bytes came a little before.
                layer.bytes = layer.total.unwrap_or(layer.bytes);
                Some(number)
            }
            ProgressEvent::Waiting { layer } => {
                self.layer(layer);
                None
            }
            ProgressEvent::Uploaded { layer, .. } => {
                let number = self.layer(layer);
                self.layers[number].done = true;
                Some(number)
            }
            ProgressEvent::Present { .. }
            | ProgressEvent::Pulling { .. }
            | ProgressEvent::Early { .. }
            | ProgressEvent::NotEarly { .. }
            | ProgressEvent::Retrying { .. } => None,
        }
    }

    fn layer(&mut self, name: &str) -> usize {
        match self.layers.iter().position(|layer| layer.name == human::printable(name)) {
            Some(number) => number,
            None => {
                self.layers.push(Layer { name: human::printable(name), bytes: 0, total: None, done: false });
                self.layers.len() - 1
            }
        }
    }

    fn draw(&mut self) {
        let rows = crate::terminal::size().map_or(24, |(rows, _)| usize::from(rows));
        let columns = crate::terminal::size().map_or(80, |(_, columns)| usize::from(columns));
        // What is finished scrolls away first when the screen is low.
        let shown = self.layers.len().min(rows.saturating_sub(1));
        let mut text = String::new();
        if self.lines > 0 {
            text.push_str(&format!("\x1b[{}A", self.lines));
        }
        for layer in &self.layers[self.layers.len() - shown..] {
            text.push_str(&format!("\r\x1b[2K{}\n", layer.bar(columns)));
        }
        self.lines = shown;
        self.drawn = Some(Instant::now());
        // A terminal that is gone cannot be told.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

impl Layer {
    fn short(&self) -> &str {
        let name = self.name.strip_prefix("sha256:").unwrap_or(&self.name);
        name.get(..12).unwrap_or(name)
    }

    fn plain(&self) -> String {
        format!("{}: loaded, {}", self.short(), human::size(self.bytes))
    }

    fn bar(&self, columns: usize) -> String {
        const FRAME: usize = 40;
        let numbers = match self.total {
            Some(total) => format!("{:>7}/{}", human::size(self.bytes), human::size(total)),
            None => format!("{:>7}", human::size(self.bytes)),
        };
        if self.done {
            return format!("{}: done {numbers}", self.short());
        }
        let width = columns.saturating_sub(FRAME).min(50);
        let Some(total) = self.total.filter(|total| *total > 0 && width > 4) else {
            return format!("{}: {numbers}", self.short());
        };
        let done = usize::try_from(self.bytes.min(total) * width as u64 / total).unwrap_or(width);
        format!("{}: [{}{}] {numbers}", self.short(), "=".repeat(done), " ".repeat(width - done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fits_its_terminal() {
        let mut layer =
            Layer { name: "sha256:0123456789abcdef".to_owned(), bytes: 50_000, total: Some(100_000), done: false };
        assert_eq!(layer.bar(60), "0123456789ab: [==========          ]    50kB/100kB");
        assert_eq!(layer.bar(10), "0123456789ab:    50kB/100kB");
        layer.bytes = 200_000;
        assert!(layer.bar(60).contains("[====================]"));
        layer.done = true;
        assert_eq!(layer.plain(), "0123456789ab: loaded, 200kB");
    }

    #[test]
    fn layers_are_told_apart_by_name() {
        let mut state = State { started: Instant::now(), drawn: None, lines: 0, layers: Vec::new() };
        assert_eq!(state.note(ProgressEvent::Started { layer: "a", bytes: Some(3) }), None);
        assert_eq!(state.note(ProgressEvent::Started { layer: "b", bytes: None }), None);
        assert_eq!(state.note(ProgressEvent::Advanced { layer: "a", bytes: 2 }), None);
        assert_eq!(state.note(ProgressEvent::Finished { layer: "b" }), Some(1));
        assert_eq!((state.layers[0].bytes, state.layers[1].done), (2, true));
    }
}
