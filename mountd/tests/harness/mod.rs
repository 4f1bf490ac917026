//! A `netfs dev` of one's own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// A running `netfs dev`; stopped, and its traces removed, when dropped.
pub(crate) struct Dev {
    dir: tempfile::TempDir,
    options: &'static str,
    child: Option<(Child, BufReader<ChildStdout>)>,
}

impl Dev {
    /// Starts on an empty state.
    pub(crate) fn start() -> Dev {
        Dev::start_with("rw")
    }

    /// As [`Dev::start`], with mount options.
    pub(crate) fn start_with(options: &'static str) -> Dev {
        // SAFETY: the call has no arguments and cannot fail.
        let root = unsafe { libc::geteuid() } == 0;
        assert!(root && Path::new("/dev/fuse").exists(), "this test needs root and /dev/fuse");
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        let mut dev = Dev { dir, options, child: None };
        dev.run();
        dev
    }

    fn run(&mut self) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_netfs"))
            .args(["dev", "mnt", "--dir", "state", "-o", self.options])
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("Ready") {
            line.clear();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "netfs dev ended before it was up");
        }
        self.child = Some((child, lines));
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn mountpoint(&self) -> &Path {
        // Leaked once per test: a path that outlives borrows of the harness is simpler to use.
        Box::leak(self.dir.path().join("mnt").into_boxed_path())
    }

    fn state(&self, name: &str) -> PathBuf {
        self.dir.path().join("state").join(name)
    }

    pub(crate) fn identity(&self) -> String {
        self.state("identity/client").to_str().unwrap().to_string()
    }

    /// Where the metadata server listens.
    pub(crate) fn address(&self) -> String {
        let text = fs::read_to_string(self.state("servers.toml")).unwrap();
        let line = text.lines().find(|l| l.starts_with("meta")).unwrap();
        line.split('"').nth(1).unwrap().to_string()
    }

    /// What a second client mounts.
    pub(crate) fn source(&self) -> String {
        format!("{}/dev", self.address())
    }

    fn command(&self, args: &[&str]) -> std::process::Output {
        Command::new(env!("CARGO_BIN_EXE_netfs")).args(args).output().unwrap()
    }

    /// Runs a command that must succeed.
    pub(crate) fn netfs(&self, args: &[&str]) -> String {
        let out = self.command(args);
        assert!(out.status.success(), "{args:?}: {out:?}");
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs a command that must fail with one line.
    pub(crate) fn fails(&self, args: &[&str]) -> String {
        let out = self.command(args);
        let text = String::from_utf8(out.stderr).unwrap();
        assert_eq!((out.status.code(), text.lines().count()), (Some(1), 1), "{args:?}: {text}");
        text
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some((mut child, _)) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Ends it in order, if it runs, and starts it again.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.run();
    }

    fn stop(&mut self) {
        if let Some((mut child, _lines)) = self.child.take() {
            // SAFETY: the process is a child that has not been waited for, so its number is its own.
            unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
            assert!(child.wait().unwrap().success());
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.kill();
        } else {
            self.stop();
        }
        // Does nothing unless the daemon left its mount behind.
        let target = self.dir.path().join("mnt");
        let _ = self.command(&["umount", "-l", target.to_str().unwrap()]);
    }
}
