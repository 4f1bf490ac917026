//! Which mount a path is on, and where in it, by the path's text alone: nothing at or below a mount point is touched, since the
//! mount may be the one that hangs.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use super::error::CliError;
use crate::fuse::mountinfo::{self, MountEntry};

/// As the kernel has it.
const MAX_LINKS: usize = 40;

/// A place in a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    /// Where the volume is mounted.
    pub(super) target: PathBuf,
    /// Names from there on.
    pub(super) names: Vec<Vec<u8>>,
    /// The path in full.
    pub(super) path: PathBuf,
}

/// Finds a path.
pub(super) fn find(path: &Path) -> Result<Spot, CliError> {
    let mounts = mountinfo::all().map_err(CliError::system("/proc/self/mountinfo"))?;
    let cwd = if path.is_absolute() { PathBuf::from("/") } else { working_directory()? };
    let full = walk(&cwd.join(path), &mounts, |p| std::fs::read_link(p).ok())
        .ok_or_else(|| CliError::Links(path.to_path_buf()))?;
    locate(full, &mounts).map_err(CliError::NotOnMount)
}

/// The working directory, by its name alone.
fn working_directory() -> Result<PathBuf, CliError> {
    // The kernel knows the name without asking the file system.
    match std::fs::read_link("/proc/self/cwd") {
        Ok(dir) if dir.is_absolute() && !dir.as_os_str().as_bytes().ends_with(b" (deleted)") => {
            Ok(dir)
        }
        found => match std::env::var_os("PWD").map(PathBuf::from).filter(|p| p.is_absolute()) {
            Some(dir) => Ok(dir),
            None => Err(CliError::System {
                what: "the working directory",
                error: found.err().unwrap_or_else(|| std::io::ErrorKind::NotFound.into()),
            }),
        },
    }
}

fn below<'a>(path: &'a Path, mounts: &'a [MountEntry]) -> impl Iterator<Item = &'a MountEntry> {
    mounts.iter().filter(move |m| path.starts_with(&m.target))
}

/// Follows symbolic links as far as the first mount that may hang; from there on by the text. `None`: too many links.
fn walk(
    path: &Path,
    mounts: &[MountEntry],
    read_link: impl Fn(&Path) -> Option<PathBuf>,
) -> Option<PathBuf> {
    let parts = |p: &Path| -> Vec<OsString> {
        let names =
            p.components().filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
        names.map(|c| c.as_os_str().to_owned()).collect()
    };
    let mut rest: VecDeque<OsString> = parts(path).into();
    let (mut at, mut links) = (PathBuf::from("/"), 0);
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        at.push(&part);
        if below(&at, mounts).any(MountEntry::is_fuse) {
            continue;
        }
        let Some(link) = read_link(&at) else { continue };
        links += 1;
        if links > MAX_LINKS {
            return None;
        }
        if link.is_absolute() {
            at = PathBuf::from("/");
        } else {
            at.pop();
        }
        for part in parts(&link).into_iter().rev() {
            rest.push_front(part);
        }
    }
    Some(at)
}

/// The mount of a full path; the path if it is on none of ours.
fn locate(path: PathBuf, mounts: &[MountEntry]) -> Result<Spot, PathBuf> {
    // The uppermost of several at one place is the last.
    let mount = below(&path, mounts).max_by_key(|m| m.target.as_os_str().len());
    let Some(mount) = mount.filter(|m| m.kind == "fuse.netfs") else { return Err(path) };
    let names = |p: &Path| -> Vec<Vec<u8>> {
        let names = p.components().filter(|c| matches!(c, Component::Normal(_)));
        names.map(|c| c.as_os_str().to_owned().into_vec()).collect()
    };
    // A part of the volume may be shown at another place as well (`mount --bind`); the daemon knows the first.
    let whole = |m: &&MountEntry| m.device == mount.device && m.root == Path::new("/");
    let first = if mount.root == Path::new("/") { None } else { mounts.iter().find(whole) };
    let inside = path.strip_prefix(&mount.target).unwrap_or(Path::new(""));
    let all = names(&mount.root).into_iter().chain(names(inside)).collect();
    Ok(Spot { target: first.unwrap_or(mount).target.clone(), names: all, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(target: &str, kind: &str, device: &str, root: &str) -> MountEntry {
        MountEntry {
            target: target.into(),
            root: root.into(),
            kind: kind.into(),
            source: "s".into(),
            device: device.into(),
            options: Vec::new(),
        }
    }

    fn mounts() -> Vec<MountEntry> {
        vec![
            mount("/", "ext4", "8:1", "/"),
            mount("/mnt/a", "fuse.netfs", "0:50", "/"),
            mount("/mnt/a/deep/b", "fuse.netfs", "0:51", "/"),
            mount("/bound", "fuse.netfs", "0:50", "/dir"),
            mount("/mnt/a/tmp", "tmpfs", "0:60", "/"),
        ]
    }

    fn found(path: &str) -> Result<(String, String), PathBuf> {
        let links = |p: &Path| {
            assert!(!p.starts_with("/mnt/a") && !p.starts_with("/bound"), "{p:?} was touched");
            match p.to_str() {
                Some("/home/link") => Some("../mnt/a/dir".into()),
                Some("/abs") => Some("/mnt".into()),
                Some("/loop") => Some("/loop".into()),
                _ => None,
            }
        };
        let full = walk(Path::new(path), &mounts(), links).ok_or(PathBuf::from("too many"))?;
        let spot = locate(full, &mounts())?;
        let names: Vec<_> = spot.names.iter().map(|n| String::from_utf8_lossy(n)).collect();
        Ok((spot.target.to_str().unwrap().into(), names.join("/")))
    }

    #[test]
    fn a_path_is_found_by_its_text() {
        let ok = |t: &str, n: &str| Ok((t.to_string(), n.to_string()));
        assert_eq!(found("/mnt/a"), ok("/mnt/a", ""));
        assert_eq!(found("/mnt/a/x/./y/../z"), ok("/mnt/a", "x/z"));
        assert_eq!(found("/mnt/a/deep/b/f"), ok("/mnt/a/deep/b", "f"));
        assert_eq!(found("/mnt/a/deep/bee"), ok("/mnt/a", "deep/bee"));
        assert_eq!(found("/home/link/f"), ok("/mnt/a", "dir/f"));
        assert_eq!(found("/abs/a/f"), ok("/mnt/a", "f"));
        assert_eq!(found("/bound/f"), ok("/mnt/a", "dir/f"), "a part of it, mounted elsewhere");
    }

    #[test]
    fn what_is_on_no_mount_of_ours_is_refused() {
        assert_eq!(found("/mnt/ab/f"), Err("/mnt/ab/f".into()));
        assert_eq!(found("/mnt/a/../other"), Err("/mnt/other".into()));
        assert_eq!(found("/mnt/a/tmp/f"), Err("/mnt/a/tmp/f".into()));
        assert_eq!(found("/loop/f"), Err("too many".into()));
    }

    #[test]
    fn the_working_directory_has_a_name() {
        assert_eq!(working_directory().unwrap(), std::env::current_dir().unwrap());
    }
}
