//! Columns of text, aligned as Docker aligns them.

use std::fmt;

use super::human::printable;

/// Rows of cells; every column is as wide as its widest cell and three spaces, at least ten.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Starts a table with its header.
    pub(crate) fn new<T: Into<String>>(header: impl IntoIterator<Item = T>) -> Table {
        let mut table = Table::default();
        table.push(header);
        table
    }

    /// Adds a row below the others.
    pub(crate) fn push<T: Into<String>>(&mut self, row: impl IntoIterator<Item = T>) {
        self.rows.push(row.into_iter().map(|cell| printable(&cell.into())).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MINIMUM: usize = 10;
        const GAP: usize = 3;
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let widest = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
            MINIMUM.max(widest.unwrap_or(0) + GAP)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                line.push_str(cell);
                if column + 1 < row.len() {
                    line.extend(std::iter::repeat_n(' ', widths[column] - cell.chars().count()));
                }
            }
            writeln!(formatter, "{line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_the_last_one_is_not_padded() {
        let mut table = Table::new(["REPOSITORY", "TAG", "SIZE"]);
        table.push(["debian", "12", "117MB"]);
        table.push(["a-rather-long-name", "é", "1B"]);
        assert_eq!(
            table.to_string(),
            "REPOSITORY           TAG       SIZE\n\
             debian               12        117MB\n\
             a-rather-long-name   é         1B\n"
        );
    }
}
