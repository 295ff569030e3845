//! What every listing verb offers: a table, JSON lines, a template, or identifiers alone.

use std::io::{self, Write};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::table::Table;
use super::template::Template;

/// One column a listing can show.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    /// The name in templates and JSON.
    pub(crate) field: &'static str,
    /// The header in tables.
    pub(crate) header: &'static str,
}

/// The shape that was asked for with `--format`.
#[derive(Debug)]
pub(crate) enum Format {
    /// A table of the default columns.
    Table,
    /// A table whose cells a template makes.
    TableOf(Template),
    /// One JSON object per line.
    Json,
    /// A line made by a template.
    Line(Template),
}

impl Format {
    /// Reads the value of `--format`. Shared, as the argument parser copies its values.
    pub(crate) fn parse(text: &str) -> Result<Arc<Format>, String> {
        let text = text.trim_start();
        Ok(Arc::new(match text {
            "" | "table" => Format::Table,
            "json" => Format::Json,
            _ => match text.strip_prefix("table ") {
                Some(cells) => Format::TableOf(Template::parse(cells)?),
                None => Format::Line(Template::parse(text)?),
            },
        }))
    }
}

impl Format {
    /// Whether a template of it names `field`, one of `columns`.
    pub(crate) fn names(&self, field: &str, columns: &[Column]) -> bool {
        let (Format::TableOf(template) | Format::Line(template)) = self else { return false };
        let others = columns.iter().filter(|column| column.field != field);
        let row = others.map(|column| (column.field.to_owned(), Value::from("x"))).collect();
        // A field that is not there is an error.
        template.render(&Value::Object(row)).is_err()
    }
}

/// The rows of a listing and how to show them.
#[derive(Debug)]
pub(crate) struct List<'a> {
    /// Every column that templates may name.
    pub(crate) columns: &'a [Column],
    /// The fields a plain table shows, in order.
    pub(crate) shown: &'a [&'a str],
    /// One object per row; its fields are those of `columns`.
    pub(crate) rows: Vec<Map<String, Value>>,
}

impl List<'_> {
    /// Writes the listing in the given shape.
    pub(crate) fn write(self, format: &Format, out: &mut impl Write) -> anyhow::Result<()> {
        match format {
            Format::Table => write!(out, "{}", self.table())?,
            Format::TableOf(template) => self.write_table_of(template, out)?,
            Format::Json => {
                for row in self.rows {
                    writeln!(out, "{}", Value::Object(row))?;
                }
            }
            Format::Line(template) => {
                for row in self.rows {
                    writeln!(out, "{}", template.render(&Value::Object(row)).map_err(anyhow::Error::msg)?)?;
                }
            }
        }
        Ok(())
    }

    fn table(&self) -> Table {
        let header = |field: &&str| {
            self.columns.iter().find(|column| column.field == *field).map_or("", |column| column.header).to_owned()
        };
        let mut table = Table::new(self.shown.iter().map(header));
        for row in &self.rows {
            table.push(self.shown.iter().map(|field| text(row.get(*field))));
        }
        table
    }

    fn write_table_of(&self, template: &Template, out: &mut impl Write) -> anyhow::Result<()> {
        let header: Map<String, Value> =
            self.columns.iter().map(|column| (column.field.to_owned(), Value::from(column.header))).collect();
        let render = |row: &Map<String, Value>| -> anyhow::Result<Vec<String>> {
            let line = template.render(&Value::Object(row.clone())).map_err(anyhow::Error::msg)?;
            Ok(line.split('\t').map(str::to_owned).collect())
        };
        let mut table = Table::new(render(&header)?);
        for row in &self.rows {
            table.push(render(row)?);
        }
        write!(out, "{table}")?;
        Ok(())
    }
}

fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// Writes to standard output; a reader that has gone away is a quiet end, as for every filter.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(format: &str) -> String {
        let columns = [Column { field: "ID", header: "IMAGE ID" }, Column { field: "Tag", header: "TAG" }];
        let row = |id: &str, tag: &str| -> Map<String, Value> {
            [("ID".to_owned(), Value::from(id)), ("Tag".to_owned(), Value::from(tag))].into_iter().collect()
        };
        let list = List { columns: &columns, shown: &["Tag", "ID"], rows: vec![row("1", "a"), row("2", "b")] };
        let mut out = Vec::new();
        list.write(&Format::parse(format).unwrap(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_shape() {
        assert_eq!(show(""), "TAG       IMAGE ID\na         1\nb         2\n");
        assert_eq!(show("table"), show(""));
        assert_eq!(show("json"), "{\"ID\":\"1\",\"Tag\":\"a\"}\n{\"ID\":\"2\",\"Tag\":\"b\"}\n");
        assert_eq!(show("{{.ID}}-{{.Tag}}"), "1-a\n2-b\n");
        assert_eq!(show(r"table {{.ID}}\t{{.Tag}}"), "IMAGE ID   TAG\n1          a\n2          b\n");
        assert_eq!(show("{{json .}}"), show("json"));
    }
}
