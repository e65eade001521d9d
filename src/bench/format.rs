//! Rows as text: for people in a table, for programs in all their fields.

use std::fmt::Write;

use serde_json::{Map, Value};

/// The fields of one row, in order; all rows of a table have the same.
pub type Row = Map<String, Value>;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Markdown,
    Csv,
    Json,
    Jsonl,
    Sql,
}

/// A column of a Markdown table: its title, and what a row has there. Numbers are aligned right.
pub type Column = (&'static str, fn(&Row) -> String);

/// The least width of a column of numbers and of one of text: later rows may need more than the first.
const NUMBER_WIDTH: usize = 9;
const TEXT_WIDTH: usize = 14;

/// Fields that hold text in SQL even where a row has nothing there; all others are numbers then.
const TEXTS: [&str; 2] = ["driver", "throttle_reasons"];

/// Rows that are written one by one, so that those before an interruption stand.
pub struct Table {
    format: Format,
    /// In SQL.
    name: &'static str,
    columns: Vec<Column>,
    /// Of the columns, by the first row.
    widths: Vec<usize>,
    rows: usize,
}

impl Table {
    pub fn new(format: Format, name: &'static str, columns: impl Into<Vec<Column>>) -> Self {
        Self { format, name, columns: columns.into(), widths: Vec::new(), rows: 0 }
    }

    /// One more row, with what must stand before it.
    pub fn row(&mut self, row: &Row) -> String {
        self.rows += 1;
        let is_first = self.rows == 1;
        match self.format {
            Format::Markdown => self.markdown(row, is_first),
            Format::Csv => csv(row, is_first),
            Format::Json => format!("{} {:#}", if is_first { "[\n" } else { ",\n" }, json(row)),
            Format::Jsonl => format!("{}\n", json(row)),
            Format::Sql => self.sql(row, is_first),
        }
    }

    /// Whether it has no row yet.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// What must stand after the last row.
    pub fn end(&self) -> &'static str {
        match (self.format, self.rows) {
            (Format::Json, 0) => "[]\n",
            (Format::Json, _) => "\n]\n",
            _ => "",
        }
    }

    fn markdown(&mut self, row: &Row, is_first: bool) -> String {
        let cells: Vec<String> = self.columns.iter().map(|(_, cell)| cell(row)).collect();
        let mut text = String::new();
        if is_first {
            let titles: Vec<String> =
                self.columns.iter().map(|(title, _)| (*title).to_owned()).collect();
            let width = |(title, cell): (&String, &String)| {
                let least = if is_number(cell) { NUMBER_WIDTH } else { TEXT_WIDTH };
                title.chars().count().max(cell.chars().count()).max(least)
            };
            self.widths = titles.iter().zip(&cells).map(width).collect();
            let rules: Vec<String> = cells
                .iter()
                .map(|cell| if is_number(cell) { "---:" } else { "---" }.to_owned())
                .collect();
            text += &self.line(&titles, &cells);
            text += &self.line(&rules, &cells);
        }
        text + &self.line(&cells, &cells)
    }

    /// Cells as wide as their column, numbers to the right; `examples` tell which are numbers.
    fn line(&self, cells: &[String], examples: &[String]) -> String {
        let cells = cells.iter().zip(examples).zip(&self.widths);
        let cells = cells.map(|((cell, example), width)| match is_number(example) {
            true => format!(" {cell:>width$} "),
            false => format!(" {cell:<width$} "),
        });
        format!("|{}|\n", cells.collect::<Vec<_>>().join("|"))
    }

    fn sql(&self, row: &Row, is_first: bool) -> String {
        let mut text = String::new();
        if is_first {
            let columns = row.iter().map(|(name, value)| {
                let name_in_quotes = quoted(name, '"', false);
                format!("  {name_in_quotes} {}", kind(name, value))
            });
            let columns: Vec<String> = columns.collect();
            let _ = writeln!(
                text,
                "CREATE TABLE IF NOT EXISTS {} (\n{}\n);\n",
                self.name,
                columns.join(",\n")
            );
        }
        // Some of the names are words of SQL.
        let names: Vec<String> = row.keys().map(|name| quoted(name, '"', false)).collect();
        let values: Vec<String> = row.values().map(literal).collect();
        let (names, values) = (names.join(", "), values.join(", "));
        let _ = writeln!(text, "INSERT INTO {} ({names}) VALUES ({values});", self.name);
        text
    }
}

fn is_number(cell: &str) -> bool {
    let cell = cell.trim_start();
    cell.is_empty() || cell.starts_with(|first: char| first.is_ascii_digit() || first == '-')
}

fn json(row: &Row) -> Value {
    Value::Object(row.clone())
}

fn csv(row: &Row, is_first: bool) -> String {
    let fields: Vec<String> = row.values().map(|value| quoted(&plain(value), '"', true)).collect();
    let names: Vec<&str> = row.keys().map(String::as_str).collect();
    let head = if is_first { names.join(",") + "\n" } else { String::new() };
    format!("{head}{}\n", fields.join(","))
}

/// A value as bare text; lists as JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(yes) => u8::from(*yes).to_string(), // as llama-bench has it
        value => value.to_string(),
    }
}

/// `text` in quotes, those inside doubled; as it is where that is allowed and means the same.
fn quoted(text: &str, quote: char, may_be_bare: bool) -> String {
    if may_be_bare && !text.contains([',', '"', '\n', '\r']) {
        return text.to_owned();
    }
    format!("{quote}{}{quote}", text.replace(quote, &format!("{quote}{quote}")))
}

fn kind(name: &str, value: &Value) -> &'static str {
    match value {
        Value::Bool(_) => "INTEGER",
        Value::Number(number) if number.is_u64() || number.is_i64() => "INTEGER",
        Value::Null if !TEXTS.contains(&name) => "REAL",
        Value::Number(_) => "REAL",
        _ => "TEXT",
    }
}

fn literal(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Bool(value) => u8::from(*value).to_string(),
        Value::Number(number) => number.to_string(),
        value => quoted(&plain(value), '\'', false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const COLUMNS: [Column; 2] =
        [("name", |row| plain(&row["name"])), ("n", |row| plain(&row["n"]))];

    fn rows() -> Vec<Row> {
        let row = |name: &str, n: Value| {
            let row = json!({ "name": name, "n": n, "list": [1, 2] });
            row.as_object().unwrap().clone()
        };
        vec![row("it's \"a\", b", json!(1.5)), row("c", Value::Null)]
    }

    fn text(format: Format) -> String {
        let mut table = Table::new(format, "t", COLUMNS);
        let text: String = rows().iter().map(|row| table.row(row)).collect();
        text + table.end()
    }

    #[test]
    fn every_format_holds_every_row() {
        let expected: Vec<Value> = rows().into_iter().map(Value::Object).collect();
        let array: Vec<Value> = serde_json::from_str(&text(Format::Json)).unwrap();
        assert_eq!(array, expected);
        let lines: Vec<Value> =
            text(Format::Jsonl).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines, expected);
        let csv = "name,n,list\n\"it's \"\"a\"\", b\",1.5,\"[1,2]\"\nc,,\"[1,2]\"\n";
        assert_eq!(text(Format::Csv), csv);
        let sql = text(Format::Sql);
        assert!(sql.contains("  \"name\" TEXT,\n  \"n\" REAL,\n  \"list\" TEXT\n"), "{sql}");
        assert!(sql.contains("VALUES ('it''s \"a\", b', 1.5, '[1,2]');"), "{sql}");
        assert!(sql.contains("VALUES ('c', NULL, '[1,2]');"), "{sql}");
        let markdown = text(Format::Markdown);
        assert_eq!(markdown.lines().count(), 4, "{markdown}");
        assert!(
            markdown.starts_with("| name           |         n |\n| ---            |      ---: |")
        );
        assert_eq!(Table::new(Format::Json, "t", COLUMNS).end(), "[]\n");
    }
}
