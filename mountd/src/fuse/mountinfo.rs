//! The mounts of this process, as `/proc/self/mountinfo` lists them: nothing here touches a mount.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Where it is.
    pub target: PathBuf,
    /// Which part of the file system is shown there: all of it is `/`.
    pub root: PathBuf,
    /// Its file system type, such as `fuse.netfs`.
    pub kind: String,
    /// What was mounted, verbatim.
    pub source: String,
    /// Its device number as `major:minor`.
    pub device: String,
    /// Its options, those of the mount and those of the file system.
    pub options: Vec<String>,
}

impl MountEntry {
    /// Whether it looks like one of ours.
    pub fn is_fuse(&self) -> bool {
        self.kind == "fuse" || self.kind.starts_with("fuse.")
    }
}

/// All mounts, the uppermost last.
///
/// # Errors
/// When `/proc` is not there.
pub fn all() -> io::Result<Vec<MountEntry>> {
    let text = fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// The uppermost mount at a place.
///
/// # Errors
/// When `/proc` is not there.
pub fn at(target: &Path) -> io::Result<Option<MountEntry>> {
    Ok(all()?.into_iter().rev().find(|m| m.target == target))
}

/// One line: `ID PARENT MAJ:MIN ROOT TARGET OPTIONS [TAG...] - TYPE SOURCE SUPER_OPTIONS`.
fn parse(line: &[u8]) -> Option<MountEntry> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-")?;
    let text = |f: &[u8]| String::from_utf8_lossy(&unescape(f)).into_owned();
    let mut options: Vec<String> = text(fields.get(5)?).split(',').map(str::to_string).collect();
    options.extend(text(fields.get(dash + 3)?).split(',').map(str::to_string));
    Some(MountEntry {
        target: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
        root: PathBuf::from(OsString::from_vec(unescape(fields.get(3)?))),
        kind: text(fields.get(dash + 1)?),
        source: text(fields.get(dash + 2)?),
        device: text(fields.get(2)?),
        options,
    })
}

/// Undoes the octal escapes of blank, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = |d: &[u8]| {
            d.iter().try_fold(0u8, |v, b| {
                matches!(b, b'0'..=b'7').then(|| v.wrapping_mul(8).wrapping_add(b - b'0'))
            })
        };
        match (first, tail.get(..3).and_then(octal)) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// An absolute path without symbolic links in the directory above. The last part is not touched:
/// it may be a mount that does not answer.
///
/// # Errors
/// When the directory above does not exist.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => {
            let mut full = fs::canonicalize(parent)?;
            full.push(name);
            if let Ok(link) = fs::read_link(&full) {
                return resolve(&full.parent().unwrap_or(Path::new("/")).join(link));
            }
            Ok(full)
        }
        // The root, or a path that ends in `..`.
        _ => fs::canonicalize(&absolute),
    }
}

/// A mount point as the name of a file.
pub fn file_name_of(target: &Path) -> OsString {
    let mut name = Vec::new();
    for b in target.as_os_str().as_bytes().iter().skip(1) {
        match b {
            b'/' => name.push(b'-'),
            // As systemd does, so that two mount points never share a name.
            b'-' | b'\\' => name.extend_from_slice(format!("\\x{b:02x}").as_bytes()),
            _ => name.push(*b),
        }
    }
    if name.is_empty() {
        name.push(b'-');
    }
    OsString::from_vec(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let line = b"97 29 0:52 / /mnt/a\\040b rw,nosuid,relatime shared:5 master:1 - fuse.netfs host:1/vol rw,user_id=0,allow_other";
        let m = parse(line).unwrap();
        assert_eq!(m.target, Path::new("/mnt/a b"));
        assert_eq!(m.kind, "fuse.netfs");
        assert_eq!(m.source, "host:1/vol");
        assert_eq!(m.device, "0:52");
        assert!(m.options.contains(&"nosuid".to_string()));
        assert!(m.options.contains(&"allow_other".to_string()));
        assert!(m.is_fuse());
    }

    #[test]
    fn a_line_without_tags_and_garbage() {
        assert!(parse(b"1 0 8:1 / / rw - ext4 /dev/sda1 rw").is_some());
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"1 0 8:1 / / rw ext4 /dev/sda1 rw"), None);
    }

    #[test]
    fn only_octal_escapes_are_escapes() {
        assert_eq!(unescape(b"a\\134b\\011"), b"a\\b\t");
        assert_eq!(unescape(b"a\\9\\"), b"a\\9\\");
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(at(Path::new("/")).unwrap().is_some());
        assert!(at(Path::new("/no/such/mount")).unwrap().is_none());
    }

    #[test]
    fn mount_points_have_names_of_their_own() {
        assert_eq!(file_name_of(Path::new("/mnt/a-b")), "mnt-a\\x2db");
        assert_ne!(file_name_of(Path::new("/mnt-a")), file_name_of(Path::new("/mnt/a")));
        assert_eq!(file_name_of(Path::new("/")), "-");
    }

    #[test]
    fn paths_are_resolved_without_touching_the_last_part() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
        assert_eq!(resolve(&real.join("link/missing")).unwrap(), real.join("missing"));
        assert_eq!(resolve(&real.join("link")).unwrap(), real);
        assert!(resolve(&real.join("no/dir")).is_err());
    }
}
