//! Declaring settings once: type, default and documentation from the same lines.

use std::fmt::Write as _;

use serde::Serialize;

/// What a field of a configuration is.
#[derive(Debug, Clone, Copy)]
pub enum FieldKind {
    /// A plain value.
    Value,
    /// A section of further fields.
    Section(fn() -> &'static [Field]),
    /// A list of sections. The fields are of one entry.
    List(fn() -> &'static [Field]),
}

/// A setting's name and documentation.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its key.
    pub name: &'static str,
    /// Its documentation, a line each.
    pub docs: &'static [&'static str],
    /// What it is.
    pub kind: FieldKind,
    /// What to show for a setting that has no default, or for an entry of a list.
    pub example: Option<&'static str>,
}

/// Something made of documented settings.
pub trait Settings: Default + Serialize {
    /// Its fields, in the order in which they are shown.
    fn fields() -> &'static [Field];
}

/// Declares a struct of settings. `as section`, `as list` mark fields that are sections themselves, `e.g.` gives an
/// example for a setting without a default.
macro_rules! settings {
    (
        $(#[doc = $struct_doc:literal])*
        pub struct $name:ident {
            $(
                $(#[doc = $doc:literal])*
                pub $field:ident: $type:ty $(as $kind:ident $(of $entry:ty)?)? = $default:expr
                    $(, e.g. $example:literal)?;
            )*
        }
    ) => {
        $(#[doc = $struct_doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $(
                $(#[doc = $doc])*
                pub $field: $type,
            )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $crate::config::Settings for $name {
            fn fields() -> &'static [$crate::config::Field] {
                &[$($crate::config::Field {
                    name: stringify!($field),
                    docs: &[$($doc),*],
                    kind: settings!(@kind $type $(, $kind $(, $entry)?)?),
                    example: settings!(@example $($example)?),
                },)*]
            }
        }
    };
    (@kind $type:ty) => { $crate::config::FieldKind::Value };
    (@kind $type:ty, section) => {
        $crate::config::FieldKind::Section(<$type as $crate::config::Settings>::fields)
    };
    (@kind $type:ty, list, $entry:ty) => {
        $crate::config::FieldKind::List(<$entry as $crate::config::Settings>::fields)
    };
    (@example) => { None };
    (@example $example:literal) => { Some($example) };
}
pub(super) use settings;

/// The defaults as a TOML file with every setting explained. What has no default is shown as a comment.
pub fn render<T: Settings>() -> Result<String, toml::ser::Error> {
    let defaults = toml::Table::try_from(T::default())?;
    let mut out = String::new();
    for field in T::fields() {
        if !out.is_empty() {
            out.push('\n');
        }
        comment(&mut out, field.docs);
        match field.kind {
            FieldKind::Value => value(&mut out, field, &defaults, ""),
            FieldKind::Section(fields) => {
                let empty = toml::Table::new();
                let section = defaults.get(field.name).and_then(|v| v.as_table());
                line(&mut out, format_args!("[{}]", field.name));
                for inner in fields() {
                    comment(&mut out, inner.docs);
                    value(&mut out, inner, section.unwrap_or(&empty), "");
                }
            }
            FieldKind::List(fields) => {
                line(&mut out, format_args!("# [[{}]]", field.name));
                for inner in fields() {
                    comment(&mut out, inner.docs);
                    value(&mut out, inner, &toml::Table::new(), "# ");
                }
            }
        }
    }
    Ok(out)
}

fn comment(out: &mut String, docs: &[&str]) {
    for doc in docs {
        line(out, format_args!("#{doc}"));
    }
}

fn value(out: &mut String, field: &Field, defaults: &toml::Table, prefix: &str) {
    match (defaults.get(field.name), field.example) {
        (Some(value), _) => line(out, format_args!("{prefix}{} = {value}", field.name)),
        (None, Some(example)) => line(out, format_args!("# {} = {example}", field.name)),
        (None, None) => line(out, format_args!("# {} =", field.name)),
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{text}");
}
