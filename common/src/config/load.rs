//! Loading: file, environment, flags.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{Config, ConfigError, Field, FieldKind};

/// Where settings come from. Later ones win: file, environment, overrides.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    file: Option<PathBuf>,
    text: Option<String>,
    env: Vec<(String, String)>,
    overrides: Vec<String>,
}

impl Sources {
    /// Nothing but defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a file.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Takes a file's text instead of reading it; the path, if there is one, is only named in errors.
    #[must_use]
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.text = Some(text.into());
        self
    }

    /// Takes variables as those of a process; all but `NETFS_...` are ignored.
    #[must_use]
    pub fn env(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.env = variables.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
        // The order of the environment is nobody's intention.
        self.env.sort();
        self
    }

    /// Takes the variables of this process.
    #[must_use]
    pub fn process_env(self) -> Self {
        let variables = std::env::vars_os();
        self.env(
            variables.filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        )
    }

    /// Takes `section.key=value` flags.
    #[must_use]
    pub fn overrides(mut self, flags: impl IntoIterator<Item = String>) -> Self {
        self.overrides.extend(flags);
        self
    }

    /// Loads and checks a configuration.
    pub fn load<T: Config>(&self) -> Result<T, ConfigError> {
        self.load_raw().map_err(ConfigError::on_one_line)
    }

    fn load_raw<T: Config>(&self) -> Result<T, ConfigError> {
        let mut table = match (&self.text, &self.file) {
            (Some(text), path) => parse::<T>(path.as_deref().unwrap_or(Path::new("text")), text)?,
            (None, Some(path)) => read::<T>(path)?,
            (None, None) => Table::new(),
        };
        let defaults = Table::try_from(T::default())
            .map_err(|e| ConfigError::Conflict(format!("defaults: {e}")))?;
        // One after the other, so that an error is the fault of the last one set.
        for (name, text) in &self.env {
            let Some((section, key)) = variable::<T>(name)? else { continue };
            set::<T>(&mut table, &defaults, name, section, &key, text)?;
        }
        for flag in &self.overrides {
            let origin = format!("--set {flag}");
            let fail =
                |what: &str| ConfigError::Override { origin: origin.clone(), what: what.into() };
            let (path, text) =
                flag.split_once('=').ok_or_else(|| fail("write section.key=value"))?;
            let (section, key) =
                path.trim().split_once('.').ok_or_else(|| fail("write section.key=value"))?;
            let section = T::fields()
                .iter()
                .find(|field| field.name == section && matches!(field.kind, FieldKind::Section(_)))
                .ok_or_else(|| fail(&format!("there is no section `{section}`")))?;
            set::<T>(&mut table, &defaults, &origin, section.name, key, text.trim())?;
        }
        let config: T =
            table.try_into().map_err(|e: toml::de::Error| ConfigError::Conflict(one_line(&e)))?;
        config.validate().map_err(ConfigError::Conflict)?;
        Ok(config)
    }
}

const PREFIX: &str = "NETFS_";

/// The section and key that a variable sets, if its name begins with a section of this configuration. Other
/// `NETFS_` variables belong to others.
fn variable<T: Config>(name: &str) -> Result<Option<(&'static str, String)>, ConfigError> {
    let rest = name.strip_prefix(PREFIX).unwrap_or(name).to_ascii_lowercase();
    let sections = T::fields().iter().filter_map(|field| match field.kind {
        FieldKind::Section(fields) => Some((field.name, fields)),
        FieldKind::Value | FieldKind::List(_) => None,
    });
    for (section, fields) in sections {
        let Some(key) = rest.strip_prefix(section).and_then(|rest| rest.strip_prefix('_')) else {
            continue;
        };
        let known: &[Field] = fields();
        if !known.iter().any(|field| field.name == key) {
            return Err(ConfigError::Override {
                origin: name.into(),
                what: format!("section `{section}` has no setting `{key}`"),
            });
        }
        return Ok(Some((section, key.into())));
    }
    Ok(None)
}

/// Sets one value and checks that the whole can still be read.
fn set<T: Config>(
    table: &mut Table,
    defaults: &Table,
    origin: &str,
    section: &str,
    key: &str,
    text: &str,
) -> Result<(), ConfigError> {
    let fail = |what: String| ConfigError::Override { origin: origin.into(), what };
    let default = defaults.get(section).and_then(|section| section.get(key));
    let value = match default {
        // Settings without a default are texts.
        None | Some(Value::String(_)) => Value::String(text.into()),
        Some(default) => text
            .parse::<Value>()
            .map_err(|_| fail(format!("`{text}` is not of type {}", default.type_str())))?,
    };
    table
        .entry(section)
        .or_insert_with(|| Value::Table(Table::new()))
        .as_table_mut()
        .ok_or_else(|| fail(format!("`{section}` is no section")))?
        .insert(key.into(), value);
    let read: Result<T, _> = table.clone().try_into();
    read.map(drop).map_err(|e: toml::de::Error| fail(one_line(&e)))
}

fn read<T: Config>(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.into(), source })?;
    parse::<T>(path, &text)
}

fn parse<T: Config>(path: &Path, text: &str) -> Result<Table, ConfigError> {
    let fail = |error: &toml::de::Error| locate(path, text, error);
    // Read as what it is meant to be, because that error knows the place.
    toml::from_str::<T>(text).map_err(|e| fail(&e))?;
    toml::from_str(text).map_err(|e| fail(&e))
}

/// An error with its line and key.
fn locate(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = &text.as_bytes()[..start];
    let line = 1 + before.iter().filter(|b| **b == b'\n').count();
    ConfigError::File { path: path.into(), line, key: key_at(text, line), what: one_line(error) }
}

/// The key that a line sets, with its section.
fn key_at(text: &str, line: usize) -> String {
    let until: Vec<&str> = text.lines().take(line).collect();
    let header = |line: &str| {
        let line = line.trim();
        line.strip_prefix('[')
            .and_then(|rest| rest.split(']').next())
            .map(|name| name.trim_start_matches('[').trim().to_owned())
    };
    let current = until.last().copied().unwrap_or_default();
    if let Some(section) = header(current) {
        return section;
    }
    let section = until.iter().rev().find_map(|line| header(line));
    // A value over several lines belongs to the last key before it.
    let key = until.iter().rev().find_map(|line| {
        let (key, _) = line.split_once('=')?;
        (!key.trim_start().starts_with('#')).then(|| key.trim().to_owned())
    });
    match (section, key) {
        (Some(section), Some(key)) => format!("{section}.{key}"),
        (None, Some(key)) => key,
        (_, None) => current.trim().to_owned(),
    }
}

fn one_line(error: &toml::de::Error) -> String {
    error.message().lines().map(str::trim).collect::<Vec<_>>().join(" ")
}
