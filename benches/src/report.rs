//! Text tables, and what a run wrote so far.

use crate::measure::{Cost, median};

/// Collects the text of a run.
#[derive(Debug, Default)]
pub struct Report {
    text: String,
}

impl Report {
    /// Adds text and shows it at once.
    #[expect(clippy::print_stdout, reason = "the program's output")]
    pub fn say(&mut self, text: impl AsRef<str>) {
        println!("{}", text.as_ref());
        self.text.push_str(text.as_ref());
        self.text.push('\n');
    }

    /// Adds a table: the first row names the columns.
    pub fn table(&mut self, rows: &[Vec<String>]) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for row in rows {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            self.say(cells.collect::<Vec<_>>().join("  ").trim_end());
        }
        self.say("");
    }

    /// Everything said.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Seconds with three digits that matter.
pub fn seconds(time: std::time::Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds >= 10.0 { format!("{seconds:.1}") } else { format!("{seconds:.2}") }
}

/// Milliseconds.
pub fn millis(time: std::time::Duration) -> String {
    let millis = time.as_secs_f64() * 1e3;
    if millis >= 100.0 { format!("{millis:.0}") } else { format!("{millis:.1}") }
}

/// A row of costs: median, least and greatest time, CPU time, peak memory.
pub fn spread(name: &str, costs: &[Cost]) -> Vec<String> {
    let middle = median(costs);
    let walls = || costs.iter().map(|cost| cost.wall);
    row([
        name,
        &millis(middle.wall),
        &millis(walls().min().unwrap_or_default()),
        &millis(walls().max().unwrap_or_default()),
        &millis(middle.cpu),
        &format!("{:.1}", middle.peak as f64 / 1024.0),
    ])
}

/// A row of a table.
pub fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}
