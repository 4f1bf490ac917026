//! Mistakes on the command line: one line that says what is wrong, exit code 1, nothing lost.

// A step that fails is a failed test.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn netfs(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_netfs"))
        .args(args)
        .env("XDG_RUNTIME_DIR", "/nonexistent")
        .output()
        .unwrap()
}

/// The one line of a failure.
fn failure(args: &[&str]) -> String {
    let out = netfs(args);
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    let text = String::from_utf8(out.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("netfs: "), "{text}");
    text
}

/// A client certificate in `dir`, and an empty mount point.
fn prepare(dir: &Path) -> (String, String) {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_string();
    for args in [
        vec!["pki", "init", &path("ca")],
        vec!["pki", "issue", &path("ca"), &path("me"), "--client", "me"],
    ] {
        assert!(netfs(&args).status.success());
    }
    std::fs::create_dir(dir.join("mnt")).unwrap();
    (path("me"), path("mnt"))
}

#[test]
fn sources_options_and_mount_points_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (me, mnt) = prepare(dir.path());
    let mount = |source: &str, target: &str, options: &str| {
        failure(&["mount", source, target, "--identity", &me, "-o", options])
    };
    assert!(mount("host", &mnt, "ro").contains("SERVER[:PORT]/VOLUME"));
    assert!(mount("host:0/v", &mnt, "ro").contains("not a port"));
    assert!(mount("host/v", &mnt, "nosush").contains("unknown mount option `nosush`"));
    assert!(mount("host/v", &mnt, "net.nonsense=1").contains("nonsense"));
    assert!(mount("host/v", &format!("{mnt}/no"), "ro").contains("mkdir -p"));
    std::fs::write(dir.path().join("file"), "").unwrap();
    let file = dir.path().join("file").to_str().unwrap().to_string();
    assert!(mount("host/v", &file, "ro").contains("not a directory"));
    assert!(mount("host/v", dir.path().to_str().unwrap(), "ro").contains("not empty"));
    assert!(mount("host/v", "/proc", "ro").contains("already"));
}

#[test]
fn certificates_are_checked_before_anything_is_tried() {
    let dir = tempfile::tempdir().unwrap();
    let (me, mnt) = prepare(dir.path());
    let text = failure(&["mount", "host/v", &mnt, "--identity", "/no/such/dir"]);
    assert!(text.contains("/no/such/dir"), "{text}");
    let text = failure(&["mount", "host/v", &mnt, "--ca", "a", "--cert", "b"]);
    assert!(text.contains("--key"), "{text}");
    std::fs::write(Path::new(&me).join("cert.pem"), "garbage").unwrap();
    let text = failure(&["mount", "host/v", &mnt, "--identity", &me]);
    assert!(text.contains("cert.pem"), "{text}");
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (me, mnt) = prepare(dir.path());
    // Bound and silent: nobody else can answer there.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = silent.local_addr().unwrap().to_string();
    let text = failure(&["mount", &format!("{server}/v"), &mnt, "--identity", &me, "--foreground"]);
    assert!(text.contains(&server) && text.contains("nothing answers"), "{text}");
    let text = failure(&["status", "--server", &server, "--identity", &me]);
    assert!(text.contains(&server) && text.contains("nothing answers"), "{text}");
    let text = failure(&["mount", "no.such.host.invalid/v", &mnt, "--identity", &me, "-f"]);
    assert!(text.contains("no.such.host.invalid"), "{text}");
}

#[test]
fn nothing_mounted_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    assert!(failure(&["umount", path]).contains("nothing is mounted"));
    assert!(failure(&["status", path]).contains("nothing is mounted"));
    assert!(failure(&["umount", "/proc"]).contains("not one of netfs"));
}

#[test]
fn a_state_directory_of_others_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (state, mnt) = (dir.path().join("state"), dir.path().join("mnt"));
    for d in [&state, &mnt] {
        std::fs::create_dir(d).unwrap();
    }
    let dev = || failure(&["dev", mnt.to_str().unwrap(), "--dir", state.to_str().unwrap()]);
    std::fs::write(state.join("thesis.tex"), "work").unwrap();
    assert!(dev().contains("thesis.tex"));
    assert_eq!(std::fs::read_to_string(state.join("thesis.tex")).unwrap(), "work");
}

#[test]
fn help_and_version_work() {
    for args in [
        ["--version"].as_slice(),
        &["--help"],
        &["mount", "--help"],
        &["dev", "--help"],
        &["pki", "issue", "--help"],
    ] {
        let out = netfs(args);
        assert!(out.status.success() && !out.stdout.is_empty(), "{args:?}");
    }
}
