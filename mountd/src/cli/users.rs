//! Who uses a mount: what `EBUSY` is about.

use std::fs;
use std::path::{Path, PathBuf};

/// The most programs that are named.
const MOST: usize = 5;

/// Programs with their directory, their program file or an open file below a mount point, as text
/// to append to a message; empty when none can be seen.
pub(super) fn of(target: &Path) -> String {
    let mut found = Vec::new();
    let Ok(processes) = fs::read_dir("/proc") else { return String::new() };
    for process in processes.filter_map(Result::ok) {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if pid != std::process::id() && uses(&process.path(), target) {
            let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{} ({pid})", comm.trim()));
        }
        if found.len() > MOST {
            break;
        }
    }
    if found.is_empty() {
        return String::new();
    }
    let more = if found.len() > MOST { " and others" } else { "" };
    found.truncate(MOST);
    format!(", used by {}{more}", found.join(", "))
}

/// Only links are read, nothing they lead to: a mount that hangs does not matter.
fn uses(process: &Path, target: &Path) -> bool {
    let below = |link: PathBuf| fs::read_link(link).is_ok_and(|to| to.starts_with(target));
    if ["cwd", "root", "exe"].iter().any(|l| below(process.join(l))) {
        return true;
    }
    ["fd", "map_files"].iter().any(|dir| {
        fs::read_dir(process.join(dir))
            .is_ok_and(|links| links.filter_map(Result::ok).any(|l| below(l.path())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_is_a_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let me = PathBuf::from(format!("/proc/{}", std::process::id()));
        assert!(!uses(&me, &path));
        let _open = fs::File::create(path.join("f")).unwrap();
        assert!(uses(&me, &path));
    }

    #[test]
    fn programs_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let mut child =
            std::process::Command::new("sleep").arg("60").current_dir(&path).spawn().unwrap();
        let text = of(&path);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(text, format!(", used by sleep ({})", child.id()));
        assert_eq!(of(&path), "");
    }
}
