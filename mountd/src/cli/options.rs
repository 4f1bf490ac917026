//! Mount options (`-o`).

use std::path::PathBuf;

use crate::fuse::MountFlags;

/// The end of the help text of commands that mount.
pub(super) const HELP: &str = "\
Mount options (-o):
  ro, rw                   read-only, or not
  nosuid, nodev, noexec    as in mount(8), with their opposites suid, dev, exec
  noatime, nodiratime, relatime, strictatime
                           which reads change access times [default: relatime]
  sync, dirsync            every change is stored before the call returns
  hard                     calls wait for a server that cannot be reached, and can be killed [default]
  soft                     calls fail with ETIMEDOUT after the time of timeo=
  timeo=TIME               how long `soft` waits: 30s, 500ms, or a number in tenths of a second as
                           for NFS [default: 60s]
  leave=TIME               how long unmounting waits for servers that do not answer while they lack
                           something that was written [default: 60s]
  allow_other              other users may use the mount [default for root]
  noallow_other            they may not
  readahead=SIZE           how far the kernel reads ahead, for root [default: 8M]
  dirty=SIZE               memory for written data that no server has yet [default: 64M]
  SECTION.KEY=VALUE        any setting of the configuration file, such as net.max_mtu=1452
  identity=DIR, ca=FILE, cert=FILE, key=FILE, config=FILE, log=FILE
                           as the flags of the same name, for /etc/fstab
  subtype=NAME, nosubtype  the type is shown as fuse.NAME, or plain fuse [default: netfs]
  remount                  change ro, nosuid and the like of a mount that is there
  _netdev, nofail, auto, noauto, user, x-*, comment=*
                           are for mount(8) and systemd, and accepted
SIZE is a number of bytes, or one with K, M or G behind it.";

/// What `-o` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountOptions {
    pub(super) flags: MountFlags,
    /// As given, for a remount.
    pub(super) words: Vec<String>,
    pub(super) allow_other: Option<bool>,
    pub(super) identity: Option<PathBuf>,
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) config: Option<PathBuf>,
    pub(super) log: Option<PathBuf>,
    pub(super) subtype: Option<String>,
    pub(super) remount: bool,
    /// Settings of the configuration, as `section.key=value`.
    pub(super) settings: Vec<String>,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            flags: MountFlags::default(),
            words: Vec::new(),
            allow_other: None,
            identity: None,
            ca: None,
            cert: None,
            key: None,
            config: None,
            log: None,
            subtype: Some("netfs".into()),
            remount: false,
            settings: Vec::new(),
        }
    }
}

/// Why an option is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Nobody knows it.
    #[error("unknown mount option `{0}`: `netfs mount --help` lists them")]
    Unknown(String),
    /// It needs a value.
    #[error("mount option `{0}` needs a value: `{0}=...`")]
    NoValue(String),
    /// The value is not one.
    #[error("mount option `{option}`: `{value}` is not {wanted}")]
    Value {
        /// The option.
        option: String,
        /// What was given.
        value: String,
        /// What it should be.
        wanted: &'static str,
    },
}

/// Words for `mount(8)`, `systemd` and `/etc/fstab`, which mean nothing here.
const FOR_OTHERS: &[&str] = &[
    "_netdev",
    "nofail",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "defaults",
    "default_permissions",
    "loud",
    "silent",
    "iversion",
    "noiversion",
    "nomand",
];

impl MountOptions {
    /// Reads the arguments of all `-o`; of two that contradict each other the later one counts.
    pub(super) fn parse(args: &[String]) -> Result<MountOptions, OptionError> {
        let mut options = MountOptions::default();
        for word in args.iter().flat_map(|a| a.split(',')).filter(|w| !w.is_empty()) {
            options.words.push(word.to_string());
            options.take(word)?;
        }
        Ok(options)
    }

    fn take(&mut self, word: &str) -> Result<(), OptionError> {
        if self.flags.apply(word) || FOR_OTHERS.contains(&word) || is_comment(word) {
            return Ok(());
        }
        let (key, value) = word.split_once('=').map_or((word, None), |(k, v)| (k, Some(v)));
        let needed = || match value {
            Some(v) if !v.is_empty() => Ok(v),
            _ => Err(OptionError::NoValue(key.to_string())),
        };
        let wrong = |wanted| OptionError::Value {
            option: key.to_string(),
            value: value.unwrap_or_default().to_string(),
            wanted,
        };
        let path = || needed().map(|v| Some(PathBuf::from(v)));
        let sized = || {
            let wanted = "a size: a number of bytes, or one with K, M or G behind it";
            size(needed()?).ok_or_else(|| wrong(wanted))
        };
        match (key, value) {
            ("allow_other", None) => self.allow_other = Some(true),
            ("noallow_other", None) => self.allow_other = Some(false),
            ("soft", None) => self.set("mount.on_outage", "error"),
            ("hard", None) => self.set("mount.on_outage", "wait"),
            ("remount", None) => self.remount = true,
            ("nosubtype", None) => self.subtype = None,
            ("subtype", _) => {
                let name = needed()?;
                let sound = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                if !name.chars().all(sound) {
                    return Err(wrong("a name of letters, digits, `-`, `_` and `.`"));
                }
                self.subtype = Some(name.to_string());
            }
            ("timeo", _) => {
                let wanted = "a time: 30s, 500ms, 2m, or a number in tenths of a second";
                let time = time_ms(needed()?).ok_or_else(|| wrong(wanted))?;
                self.set("mount.outage_timeout_ms", time);
            }
            ("leave", _) => {
                let wanted = "a time: 30s, 500ms, 2m, or a number in tenths of a second";
                let time = time_ms(needed()?).ok_or_else(|| wrong(wanted))?;
                self.set("mount.leave_timeout_ms", time);
            }
            ("readahead", _) => self.set("mount.read_ahead_kb", sized()? >> 10),
            ("dirty", _) => self.set("cache.dirty_bytes", sized()?),
            (k, Some(_)) if k.contains('.') => self.settings.push(word.to_string()),
            ("identity", _) => self.identity = path()?,
            ("ca", _) => self.ca = path()?,
            ("cert", _) => self.cert = path()?,
            ("key", _) => self.key = path()?,
            ("config", _) => self.config = path()?,
            ("log", _) => self.log = path()?,
            _ => return Err(OptionError::Unknown(word.to_string())),
        }
        Ok(())
    }
}

impl MountOptions {
    fn set(&mut self, key: &str, value: impl std::fmt::Display) {
        self.settings.push(format!("{key}={value}"));
    }
}

fn is_comment(word: &str) -> bool {
    ["x-", "X-", "comment="].iter().any(|p| word.starts_with(p))
}

/// `4096`, `8M`.
fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// `30s`, `500ms`, `2m` in milliseconds; a bare number counts tenths of a second. At most a day.
fn time_ms(text: &str) -> Option<u64> {
    let (digits, unit_ms) = if let Some(d) = text.strip_suffix("ms") {
        (d, 1)
    } else if let Some(d) = text.strip_suffix('s') {
        (d, 1000)
    } else if let Some(d) = text.strip_suffix('m') {
        (d, 60_000)
    } else {
        (text, 100)
    };
    let ms = digits.parse::<u64>().ok()?.checked_mul(unit_ms)?;
    (1..=86_400_000).contains(&ms).then_some(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MountOptions, OptionError> {
        MountOptions::parse(&[text.to_string()])
    }

    #[test]
    fn later_options_win_across_several_flags() {
        let o = MountOptions::parse(&["ro,soft".into(), "rw,hard".into()]).unwrap();
        assert!(!o.flags.read_only());
        assert_eq!(o.words, ["ro", "soft", "rw", "hard"]);
    }

    #[test]
    fn unknown_options_are_refused_by_name() {
        assert_eq!(parse("ro,nosush"), Err(OptionError::Unknown("nosush".into())));
        assert_eq!(parse("soft=1"), Err(OptionError::Unknown("soft=1".into())));
        assert_eq!(parse("timeo"), Err(OptionError::NoValue("timeo".into())));
        assert_eq!(parse("ca="), Err(OptionError::NoValue("ca".into())));
    }

    #[test]
    fn words_for_others_are_accepted() {
        let o = parse("_netdev,nofail,x-systemd.automount,comment=hello,defaults,,noauto").unwrap();
        assert_eq!(o.flags, MountFlags::default());
    }

    fn setting(option: &str) -> String {
        parse(option).unwrap().settings.join(" ")
    }

    #[test]
    fn times_have_units() {
        assert_eq!(setting("timeo=600"), "mount.outage_timeout_ms=60000");
        assert_eq!(setting("timeo=5s"), "mount.outage_timeout_ms=5000");
        assert_eq!(setting("timeo=250ms"), "mount.outage_timeout_ms=250");
        assert_eq!(setting("timeo=2m"), "mount.outage_timeout_ms=120000");
        for bad in ["timeo=0", "timeo=x", "timeo=-1s", "timeo=99999999999s", "timeo=1d"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(setting("readahead=16M"), "mount.read_ahead_kb=16384");
        assert_eq!(setting("dirty=2g"), format!("cache.dirty_bytes={}", 2u64 << 30));
        assert_eq!(setting("dirty=4096"), "cache.dirty_bytes=4096");
        for bad in ["readahead=x", "dirty=99999999999999999999", "dirty=M", "dirty=-1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn settings_pass_through() {
        assert_eq!(setting("net.max_mtu=1452"), "net.max_mtu=1452");
        assert_eq!(setting("soft,hard"), "mount.on_outage=error mount.on_outage=wait");
    }

    #[test]
    fn the_shown_type_can_be_chosen() {
        assert_eq!(parse("").unwrap().subtype.as_deref(), Some("netfs"));
        assert_eq!(parse("nosubtype").unwrap().subtype, None);
        assert_eq!(parse("subtype=x").unwrap().subtype.as_deref(), Some("x"));
        assert!(parse("subtype=a b").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = parse(&text);
        }
    }
}
