//! One row for each field of the file: name, type, reader, default and documentation.
//!
//! From the rows of a table, [`table!`] generates the public struct, the draft that is checked, the code that reads the
//! draft and converts it to the struct, and [`FieldDoc`] for the documentation. A new field is one row.

use std::{fmt, ops::Range};

use toml::{Spanned, de::DeValue};

use super::read::{Fields, Reader, Report};

/// The effect of an absent field.
pub(super) enum Absent<T> {
    /// An error; this line would be valid.
    Error(&'static str),
    /// The value is this string, read like one in the file.
    Text(&'static str),
    /// The value is this other TOML value, read like one in the file.
    Toml(&'static str),
    /// The value is this one, which the file cannot express; described for the documentation.
    Value(fn() -> T, &'static str),
    /// The value is computed after the table has been read; described for the documentation.
    Derived(&'static str),
}

/// A field as it was read, before the checks.
pub(super) struct Field<T> {
    /// `None` if the value is invalid, which has been reported, or not derived yet.
    value: Option<Spanned<T>>,
    is_given: bool,
}

impl<T> Field<T> {
    pub(super) fn read(
        report: &mut Report<'_>,
        fields: &mut Fields<'_, '_>,
        name: &'static str,
        reader: Reader<T>,
        absent: &Absent<T>,
    ) -> Self {
        if fields.raw(name).is_some() {
            return Self { value: fields.optional(report, name, reader), is_given: true };
        }
        let value = match absent {
            Absent::Error(example) => {
                fields.missing(report, name, example);
                None
            }
            Absent::Text(text) => Some(default(name, reader, &DeValue::String((*text).into()))),
            Absent::Toml(text) => {
                let value = DeValue::parse(text).unwrap_or_else(|error| panic!("default of {name}: {error}"));
                Some(default(name, reader, value.get_ref()))
            }
            Absent::Value(value, _) => Some(value()),
            Absent::Derived(_) => None,
        };
        Self { value: value.map(|value| Spanned::new(fields.span(), value)), is_given: false }
    }

    /// The value: given, or the default.
    pub(super) const fn as_ref(&self) -> Option<&Spanned<T>> {
        self.value.as_ref()
    }

    /// The value, if the file has it.
    pub(super) fn given(&self) -> Option<&Spanned<T>> {
        self.value.as_ref().filter(|_| self.is_given)
    }

    /// Sets a derived value, unless the field is given. `None`: the value cannot be derived, which has been reported.
    pub(super) fn derive(&mut self, span: Range<usize>, value: impl FnOnce() -> Option<T>) {
        if !self.is_given {
            self.value = value().map(|value| Spanned::new(span, value));
        }
    }

    pub(super) fn into_inner(self) -> Option<T> {
        self.value.map(Spanned::into_inner)
    }
}

/// Reads a default like a value of the file. A unit test reads all defaults.
fn default<T>(name: &'static str, reader: Reader<T>, value: &DeValue<'_>) -> T {
    match reader(name, value) {
        Ok(value) => value,
        Err(wrong) => unreachable!("default of {name}: {}", wrong.message),
    }
}

/// The documentation of a field.
pub struct FieldDoc {
    /// Its name in the file.
    pub name: &'static str,
    /// What it means, in Markdown; links are relative to `docs/`.
    pub meaning: &'static str,
    /// The effect of its absence.
    pub absent: AbsentDoc,
}

/// The effect of an absent field. Displays in Markdown.
pub enum AbsentDoc {
    /// The field is required.
    Required,
    /// This string.
    Text(&'static str),
    /// This other TOML value.
    Toml(&'static str),
    /// A value in words.
    Words(&'static str),
}

impl fmt::Display for AbsentDoc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Required => write!(f, "required"),
            Self::Text(text) => write!(f, "`\"{text}\"`"),
            Self::Toml(text) => write!(f, "`{text}`"),
            Self::Words(words) => write!(f, "{words}"),
        }
    }
}

impl<T> Absent<T> {
    pub(super) const fn doc(&self) -> AbsentDoc {
        match *self {
            Self::Error(_) => AbsentDoc::Required,
            Self::Text(text) => AbsentDoc::Text(text),
            Self::Toml(text) => AbsentDoc::Toml(text),
            Self::Value(_, words) | Self::Derived(words) => AbsentDoc::Words(words),
        }
    }
}

/// Declares a table of the file.
///
/// A row is `name: type = reader, absent;` below its documentation, and `name ["key"]: …` if the file calls it `key`.
/// After `tables` come the arrays of tables below this one: `name ["key"]: struct / draft;`. After `computed` comes a
/// field that is not in the file and is filled in later.
macro_rules! table {
    (
        $(#[$about:meta])*
        pub struct $Table:ident / $Draft:ident, $prefix:literal;
        $($(#[doc = $doc:literal])+ $name:ident $([$key:literal])?: $type:ty = $reader:expr, $absent:expr;)+
        $(tables $($(#[doc = $list_doc:literal])+ $list:ident [$list_key:literal]: $Sub:ident / $SubDraft:ident;)+)?
        $(computed $(#[doc = $computed_doc:literal])+ $computed:ident: $Computed:ty;)?
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $Table {
            $($(#[doc = $doc])+ pub $name: $type,)+
            $($($(#[doc = $list_doc])+ pub $list: Vec<$Sub>,)+)?
            $($(#[doc = $computed_doc])+ pub $computed: $Computed,)?
        }

        impl $Table {
            /// The documentation of its fields in the file.
            pub const FIELDS: &'static [FieldDoc] = &[$(FieldDoc {
                name: table!(@key $name $($key)?),
                meaning: concat!($($doc),+).trim_ascii(),
                absent: {
                    const ABSENT: Absent<$type> = $absent;
                    ABSENT.doc()
                },
            }),+];
        }

        /// The table with the positions of its fields in the file.
        pub(super) struct $Draft {
            pub(super) span: std::ops::Range<usize>,
            $(pub(super) $name: Field<$type>,)+
            $($(pub(super) $list: Vec<$SubDraft>,)+)?
        }

        impl $Draft {
            /// Reads the table, and reports all problems of single fields.
            pub(super) fn read(report: &mut Report<'_>, mut fields: Fields<'_, '_>) -> Self {
                $(let $name =
                    Field::read(report, &mut fields, table!(@key $name $($key)?), $reader, &$absent);)+
                $($(let $list = fields.tables(report, $list_key, concat!($prefix, $list_key, "."));
                let $list = $list.into_iter().map(|table| $SubDraft::read(report, table)).collect();)+)?
                let span = fields.span();
                fields.refuse_others(report);
                Self { span, $($name,)+ $($($list,)+)? }
            }

            /// The table. `None` only if the report says why.
            pub(super) fn finish(self) -> Option<$Table> {
                Some($Table {
                    $($name: self.$name.into_inner()?,)+
                    $($($list: self.$list.into_iter().map($SubDraft::finish).collect::<Option<_>>()?,)+)?
                    $($computed: Default::default(),)?
                })
            }
        }
    };
    (@key $name:ident) => { stringify!($name) };
    (@key $name:ident $key:literal) => { $key };
}
pub(super) use table;
