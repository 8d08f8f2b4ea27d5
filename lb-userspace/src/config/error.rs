//! Errors of a configuration, for a terminal and for a log.

use std::{error::Error, fmt, io, ops::Range, path::PathBuf};

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file does not exist.
    #[error("{}: there is no such file; create it, or use another one with `-c FILE`", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("{}: cannot be read: {source}; {}", path.display(), hint_of_io(source))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file is not UTF-8.
    #[error("{}: byte {offset} is not UTF-8; is this a configuration file? Save it as UTF-8", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The first invalid byte.
        offset: usize,
    },
    /// The configuration is invalid.
    #[error(transparent)]
    Invalid(Box<Invalid>),
}

impl ConfigError {
    pub(super) fn unreadable(path: PathBuf, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            _ => Self::Unreadable { path, source },
        }
    }

    /// The error for a terminal: with the lines of the file, and markers at the problems.
    pub fn report(&self, colours: bool) -> String {
        let Self::Invalid(invalid) = self else { return self.to_string() };
        let theme = if colours { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let handler = GraphicalReportHandler::new_themed(theme).with_width(110).without_cause_chain();
        let mut page = String::new();
        for (i, problem) in invalid.problems.iter().enumerate() {
            if i > 0 {
                page.push('\n');
            }
            let shown = Shown { problem, source: &invalid.source };
            handler.render_report(&mut page, &shown).expect("a string takes all that is written to it");
        }
        page
    }
}

fn hint_of_io(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run as root, or let this user read it",
        io::ErrorKind::IsADirectory => "it is a directory; use a file in it",
        _ => "check the disk and the path",
    }
}

/// All problems of a file. Displays as one line for each problem.
#[derive(Debug)]
pub struct Invalid {
    /// At least one problem, ordered by line.
    pub problems: Vec<Problem>,
    pub(super) source: NamedSource<String>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            let end = if i == 0 { "" } else { "\n" };
            write!(f, "{end}{}:{problem}", self.source.name())?;
        }
        Ok(())
    }
}

impl Error for Invalid {}

/// A problem. Displays as `line:column: message; hint`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field, such as `service.max_ttl`; empty if the file is not TOML.
    pub field: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The problem.
    pub message: String,
    /// How to fix it.
    pub hint: String,
    pub(super) span: Range<usize>,
    /// A related position in the file.
    pub(super) other: Option<(Range<usize>, String)>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, column, message, hint, .. } = self;
        write!(f, "{line}:{column}: {message}; {hint}")
    }
}

/// A setting that is allowed but probably not intended. Displays as a line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub Problem);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "configuration line {}: {}; {}", self.0.line, self.0.message, self.0.hint)
    }
}

/// A problem with the text of its file.
#[derive(Debug)]
struct Shown<'a> {
    problem: &'a Problem,
    source: &'a NamedSource<String>,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem.message)
    }
}

impl Error for Shown<'_> {}

impl Diagnostic for Shown<'_> {
    fn help<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        Some(Box::new(&self.problem.hint))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let here = LabeledSpan::new_primary_with_span(Some("here".to_owned()), self.problem.span.clone());
        let other = self.problem.other.as_ref();
        let other = other.map(|(span, text)| LabeledSpan::at(span.clone(), text.as_str()));
        Some(Box::new(std::iter::once(here).chain(other)))
    }
}
