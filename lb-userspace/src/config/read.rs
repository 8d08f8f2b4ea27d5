//! Reads the fields of a TOML table, and collects all problems instead of stopping at the first.

use std::{collections::BTreeSet, ops::Range, path::Path};

use miette::NamedSource;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Config, ConfigError, Invalid, Problem, Warning};

/// The problems found so far.
pub(super) struct Report<'i> {
    pub(super) text: &'i str,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

/// A problem of a value, and how to fix it.
pub(super) struct Wrong {
    pub(super) message: String,
    pub(super) hint: String,
}

/// Reads a value that is given as such.
pub(super) type Reader<T> = fn(&str, &DeValue<'_>) -> Result<T, Wrong>;

impl<'i> Report<'i> {
    pub(super) const fn new(text: &'i str) -> Self {
        Self { text, problems: Vec::new(), warnings: Vec::new() }
    }

    pub(super) fn problem(&mut self, field: &str, span: Range<usize>, wrong: Wrong) {
        let problem = self.at(field, span, wrong);
        self.problems.push(problem);
    }

    /// A problem with two positions in the file.
    pub(super) fn conflict(
        &mut self,
        field: &str,
        span: Range<usize>,
        first: (Range<usize>, &str),
        wrong: Wrong,
    ) {
        let mut problem = self.at(field, span, wrong);
        problem.other = Some((first.0, first.1.to_owned()));
        self.problems.push(problem);
    }

    pub(super) fn warn(&mut self, field: &str, span: Range<usize>, wrong: Wrong) {
        let warning = self.at(field, span, wrong);
        self.warnings.push(warning);
    }

    /// The line of a byte, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        1 + self.text[..offset].matches('\n').count()
    }

    fn at(&self, field: &str, span: Range<usize>, wrong: Wrong) -> Problem {
        let start = span.start.min(self.text.len());
        let line_start = self.text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        Problem {
            field: field.to_owned(),
            line: self.line(start),
            column: 1 + self.text[line_start..start].chars().count(),
            message: wrong.message,
            hint: wrong.hint,
            span,
            other: None,
        }
    }

    /// Returns the configuration if it has no problem.
    pub(super) fn finish(mut self, path: &Path, config: Option<Config>) -> Result<Config, ConfigError> {
        match config {
            Some(mut config) if self.problems.is_empty() => {
                config.warnings = self.warnings.into_iter().map(Warning).collect();
                Ok(config)
            }
            _ => {
                self.problems.sort_by_key(|problem| problem.span.start);
                let source = NamedSource::new(path.display().to_string(), self.text.to_owned());
                Err(ConfigError::Invalid(Box::new(Invalid { problems: self.problems, source })))
            }
        }
    }
}

/// A table whose fields are being taken.
pub(super) struct Fields<'t, 'i> {
    /// `service.` for the fields of a service.
    prefix: &'static str,
    span: Range<usize>,
    table: &'t DeTable<'i>,
    known: BTreeSet<&'static str>,
}

/// Parses the file. `None` if it is not TOML, which is reported.
pub(super) fn root<'i>(report: &mut Report<'i>) -> Option<DeTable<'i>> {
    let (root, errors) = DeTable::parse_recoverable(report.text);
    for error in &errors {
        let wrong = Wrong {
            message: format!("not TOML: {}", error.message()),
            hint: "see https://toml.io".to_owned(),
        };
        report.problem("", error.span().unwrap_or(0..0), wrong);
    }
    // The fields that the parser finds in a broken file are guesses.
    errors.is_empty().then(|| root.into_inner())
}

impl<'t, 'i> Fields<'t, 'i> {
    pub(super) const fn new(prefix: &'static str, span: Range<usize>, table: &'t DeTable<'i>) -> Self {
        Self { prefix, span, table, known: BTreeSet::new() }
    }

    /// The full name of a field, for messages.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Position of the table.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The value in the file.
    pub(super) fn raw(&mut self, name: &'static str) -> Option<&'t Spanned<DeValue<'i>>> {
        self.known.insert(name);
        self.table.iter().find(|(key, _)| key.get_ref() == name).map(|(_, value)| value)
    }

    /// An optional field. An invalid one is reported, and counts as absent.
    pub(super) fn optional<T>(
        &mut self,
        report: &mut Report<'_>,
        name: &'static str,
        read: Reader<T>,
    ) -> Option<Spanned<T>> {
        let value = self.raw(name)?;
        let path = self.path(name);
        match read(&path, value.get_ref()) {
            Ok(read) => Some(Spanned::new(value.span(), read)),
            Err(wrong) => {
                report.problem(&path, value.span(), wrong);
                None
            }
        }
    }

    /// Reports that a required field is missing; `example` is a valid line.
    pub(super) fn missing(&self, report: &mut Report<'_>, name: &str, example: &str) {
        let wrong = Wrong {
            message: format!("`{}` is missing", self.path(name)),
            hint: format!("add a line like `{example}`"),
        };
        report.problem(&self.path(name), self.span(), wrong);
    }

    /// An array of tables, each with its position.
    pub(super) fn tables(
        &mut self,
        report: &mut Report<'_>,
        name: &'static str,
        prefix: &'static str,
    ) -> Vec<Fields<'t, 'i>> {
        let path = self.path(name);
        let Some(value) = self.raw(name) else { return Vec::new() };
        let mut tables = Vec::new();
        let elements = match value.get_ref() {
            DeValue::Array(elements) => elements.as_ref(),
            _ => std::slice::from_ref(value),
        };
        for element in elements {
            match element.get_ref() {
                DeValue::Table(table) if value.get_ref().is_array() => {
                    tables.push(Fields::new(prefix, element.span(), table));
                }
                other => {
                    let wrong = Wrong {
                        message: format!("`{path}` is {}, not a list of tables", described(other)),
                        hint: format!("begin each with a line `[[{path}]]`"),
                    };
                    report.problem(&path, element.span(), wrong);
                }
            }
        }
        tables
    }

    /// Reports all fields that were not read.
    pub(super) fn refuse_others(self, report: &mut Report<'_>) {
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if self.known.contains(name) {
                continue;
            }
            let nearest = self.known.iter().map(|known| (distance(name, known), known)).min();
            let hint = match nearest {
                Some((steps, known)) if steps <= 1 + known.len() / 4 => format!("did you mean `{known}`?"),
                _ => format!("known fields: {}", self.known.iter().copied().collect::<Vec<_>>().join(", ")),
            };
            let path = self.path(name);
            report.problem(
                &path,
                key.span(),
                Wrong { message: format!("`{path}` is not a known field"), hint },
            );
        }
    }
}

/// A value, for messages.
pub(super) fn described(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{:?}", text.as_ref()),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substitution = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
