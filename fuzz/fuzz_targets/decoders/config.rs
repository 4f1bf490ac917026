//! Configuration, from the file, the environment and flags. No input may panic, and every complaint is one line.

use netfs_common::config::{
    ByteSize, ClientConfig, Config, ConfigError, ServedConfig, Sources, render,
};

fn judge<T>(outcome: Result<T, ConfigError>) {
    if let Err(error) = outcome {
        let text = error.to_string();
        assert!(!text.contains(['\n', '\r']), "{text:?}");
    }
}

fn load<T: Config>(kind: u8, text: &str) {
    let lines = || text.lines().map(str::to_owned);
    let sources = match kind % 4 {
        0 => Sources::new().text(text),
        1 => Sources::new().text(changed::<T>(text)),
        2 => {
            let pair = |line: String| {
                let (name, value) = line.split_once('=')?;
                Some((format!("NETFS_{name}"), value.to_owned()))
            };
            Sources::new().env(lines().filter_map(pair))
        }
        _ => Sources::new().overrides(lines()),
    };
    judge(sources.load::<T>());
}

/// The file with all defaults, of which some lines are replaced.
fn changed<T: Config>(text: &str) -> String {
    let whole = render::<T>().expect("the defaults can be shown");
    let mut all: Vec<String> = whole.lines().map(str::to_owned).collect();
    for line in text.lines() {
        let Some(first) = line.chars().next() else { continue };
        let at = first as usize % all.len();
        let rest = &line[first.len_utf8()..];
        match rest.strip_prefix('=') {
            // A value only.
            Some(_) => {
                let key = all[at].split('=').next().unwrap_or_default().to_owned();
                all[at] = key + rest;
            }
            None => all[at] = rest.to_owned(),
        }
    }
    all.join("\n")
}

pub(crate) fn run(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match kind % 9 {
        0..4 => load::<ServedConfig>(*kind % 9, text),
        4..8 => load::<ClientConfig>(*kind % 9, text),
        _ => {
            if let Ok(size) = text.parse::<ByteSize>() {
                assert_eq!(size.to_string().parse(), Ok(size));
            }
        }
    }
}
