//! Prints results as tables or as JSON.

use std::io::{self, Write as _};

use serde::Serialize;

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns and sentences
    Table,
    /// JSON, described in docs/api.md
    Json,
}

/// Prints a value as JSON, or as the lines of `table`.
pub fn print<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce(&T) -> Vec<String>,
) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match format {
        Format::Json => {
            serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
            writeln!(out)?;
        }
        Format::Table => {
            for line in table(value) {
                writeln!(out, "{line}")?;
            }
        }
    }
    out.flush()?;
    Ok(())
}

/// Columns as wide as their widest cell; numbers are aligned to the right.
pub fn columns(heads: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([heads[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let is_number = |column: usize| {
        !rows.is_empty()
            && rows.iter().all(|row| row.get(column).is_some_and(|cell| cell.parse::<u64>().is_ok()))
    };
    let numbers: Vec<bool> = (0..heads.len()).map(is_number).collect();
    let line = |cells: &[String]| {
        let mut line = String::new();
        for ((cell, width), number) in cells.iter().zip(&widths).zip(&numbers) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            line.push_str(&if *number { format!("{cell:>width$}") } else { format!("{cell:<width$}") });
        }
        line.trim_end().to_owned()
    };
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    std::iter::once(line(&heads)).chain(rows.iter().map(|row| line(row))).collect()
}

/// A duration such as `1h 5m`.
pub fn duration(seconds: u64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
}

/// A Unix time as a date.
pub fn date(unix: u64) -> String {
    // Tokens have 32-bit times: a later time never comes.
    if unix > u64::from(u32::MAX) {
        return "never".to_owned();
    }
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix);
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["long".to_owned(), "100".to_owned()]];
        assert_eq!(columns(&["name", "n"], &rows), ["name    n", "a       1", "long  100"]);
    }
}
