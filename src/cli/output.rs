//! What goes to standard output: JSON lines and aligned tables.

use serde::Serialize;
use std::io::{self, BufWriter, IsTerminal, Write};

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

/// Buffered standard output. What is buffered when it is dropped is lost: call `flush`.
pub(super) struct Out {
    writer: BufWriter<io::Stdout>,
}

impl Out {
    pub(super) fn new() -> Out {
        Out { writer: BufWriter::with_capacity(64 << 10, io::stdout()) }
    }

    /// One JSON object on a line of its own.
    pub(super) fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.writer, value)?;
        self.writer.write_all(b"\n")
    }

    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        self.bytes(text.as_bytes())?;
        self.bytes(b"\n")
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes)
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Whether people watch standard output.
pub(super) fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether people watch standard error, so that progress makes sense.
pub(super) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// A table with aligned columns. Numbers go to the right.
pub(super) struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(heads: &[&'static str]) -> Table {
        Table { heads: heads.to_vec(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.heads.len());
        self.rows.push(cells);
    }

    /// The table as lines: its heads, then one line per row.
    pub(super) fn lines(&self) -> Vec<String> {
        let column = |at: usize| self.rows.iter().map(move |row| row[at].as_str());
        let shapes: Vec<(usize, bool)> = (self.heads.iter().enumerate())
            .map(|(at, head)| {
                let width = column(at).map(|cell| cell.chars().count()).max().unwrap_or(0).max(head.len());
                let numeric =
                    column(at).all(|cell| cell.starts_with(|c: char| c.is_ascii_digit()) && !cell.contains(':'));
                (width, numeric && !column(at).any(|cell| cell.contains(' ')))
            })
            .collect();
        let heads = self.heads.iter().map(ToString::to_string).collect();
        std::iter::once(&heads).chain(&self.rows).map(|cells| draw(cells, &shapes)).collect()
    }

    pub(super) fn print(&self, out: &mut Out) -> io::Result<()> {
        self.lines().iter().try_for_each(|line| out.line(line))
    }
}

fn draw(cells: &[String], shapes: &[(usize, bool)]) -> String {
    let mut line = String::new();
    for (cell, (width, right)) in cells.iter().zip(shapes) {
        let pad = " ".repeat(width - cell.chars().count());
        if *right {
            line.push_str(&pad);
            line.push_str(cell);
        } else {
            line.push_str(cell);
            line.push_str(&pad);
        }
        line.push_str("  ");
    }
    line.trim_end().to_string()
}

/// 1234567 as 1,234,567.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in a unit that fits.
pub(super) fn bytes_text(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// "1 record", "2 records".
pub(super) fn counted(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(count), if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_numbers_go_to_the_right() {
        let mut table = Table::new(&["TOPIC", "TAIL", "NOTE"]);
        table.row(vec!["a".into(), "5".into(), "x".into()]);
        table.row(vec!["access".into(), "1234".into(), String::new()]);
        assert_eq!(table.lines(), ["TOPIC   TAIL  NOTE", "a          5  x", "access  1234"]);
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
