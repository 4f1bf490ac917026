//! What is mounted: `SERVER[:PORT]/VOLUME`.

use std::fmt;
use std::str::FromStr;

/// The UDP port of a metadata server, unless another is named.
pub(super) const DEFAULT_PORT: u16 = 7400;

/// The longest name of a volume, in bytes; servers take no longer one.
const MAX_VOLUME: usize = 64;

/// A server's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerAddr {
    /// A name or an address, an IPv6 address without brackets.
    host: String,
    port: u16,
}

/// A server and a volume of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) server: ServerAddr,
    pub(super) volume: String,
}

/// Why a text names no source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// There is no slash.
    #[error(
        "`{0}` does not name a volume: write SERVER[:PORT]/VOLUME, for example files.example.org/home"
    )]
    NoVolume(String),
    /// The volume is not a name.
    #[error(
        "`{0}` is not the name of a volume: it must have 1 to 64 bytes, no `/` and no control characters"
    )]
    Volume(String),
    /// The server is not a name or an address.
    #[error(
        "`{0}` is not a server: write NAME, ADDRESS or [IPV6-ADDRESS], then :PORT if it is not {DEFAULT_PORT}"
    )]
    Server(String),
    /// The port is not a number.
    #[error("`{0}` is not a port: it must be a number from 1 to 65535")]
    Port(String),
}

impl FromStr for ServerAddr {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<ServerAddr, SourceError> {
        let bad = || SourceError::Server(text.to_string());
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(bad)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(bad()),
            }
        } else if text.matches(':').count() > 1 {
            // An IPv6 address needs brackets, or its last group could be a port.
            return Err(bad());
        } else {
            text.split_once(':').map_or((text, None), |(h, p)| (h, Some(p)))
        };
        let sound = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
        if host.is_empty() || !host.chars().all(sound) {
            return Err(bad());
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(p) => match p.parse() {
                Ok(0) | Err(_) => return Err(SourceError::Port(p.to_string())),
                Ok(port) => port,
            },
        };
        Ok(ServerAddr { host: host.to_string(), port })
    }
}

impl fmt::Display for ServerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Source, SourceError> {
        let (server, volume) =
            text.split_once('/').ok_or_else(|| SourceError::NoVolume(text.to_string()))?;
        let long = volume.is_empty() || volume.len() > MAX_VOLUME;
        if long || volume.contains('/') || volume.chars().any(char::is_control) {
            return Err(SourceError::Volume(volume.to_string()));
        }
        Ok(Source { server: server.parse()?, volume: volume.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(String, String), SourceError> {
        text.parse::<Source>().map(|s| (s.server.to_string(), s.volume))
    }

    fn ok(text: &str) -> (String, String) {
        parse(text).unwrap()
    }

    #[test]
    fn names_and_addresses_with_and_without_a_port() {
        assert_eq!(ok("host/vol"), ("host:7400".into(), "vol".into()));
        assert_eq!(ok("host.example.org:99/v"), ("host.example.org:99".into(), "v".into()));
        assert_eq!(ok("10.0.0.1:1/v"), ("10.0.0.1:1".into(), "v".into()));
        assert_eq!(ok("[::1]/v"), ("[::1]:7400".into(), "v".into()));
        assert_eq!(ok("[fe80::2]:5/v"), ("[fe80::2]:5".into(), "v".into()));
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        assert!(matches!(parse("host"), Err(SourceError::NoVolume(_))));
        assert!(matches!(parse("host:/vol"), Err(SourceError::Port(_))));
        assert!(matches!(parse("host/"), Err(SourceError::Volume(_))));
        assert!(matches!(parse("host/a/b"), Err(SourceError::Volume(_))));
        assert!(matches!(parse("host/a\nb"), Err(SourceError::Volume(_))));
        assert!(matches!(parse("/vol"), Err(SourceError::Server(_))));
        assert!(matches!(parse("fe80::1/v"), Err(SourceError::Server(_))));
        assert!(matches!(parse("[fe80::1/v"), Err(SourceError::Server(_))));
        assert!(matches!(parse("[host]/v"), Err(SourceError::Server(_))));
        assert!(matches!(parse("host:0/v"), Err(SourceError::Port(_))));
        assert!(matches!(parse("host:70000/v"), Err(SourceError::Port(_))));
        assert!(matches!(parse("a b/v"), Err(SourceError::Server(_))));
    }
}
