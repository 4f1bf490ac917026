//! The whole path for real: kernel, client, network, servers, disk. Needs root and /dev/fuse.

// A step that fails is a failed test.
#![allow(clippy::unwrap_used)]

mod harness;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::Dev;

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn names_are_made_found_moved_and_removed() {
    let dev = Dev::start();
    let root = dev.mountpoint();
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("a/f"), "hello").unwrap();
    fs::hard_link(root.join("a/f"), root.join("a/g")).unwrap();
    assert_eq!(fs::metadata(root.join("a/g")).unwrap().nlink(), 2);
    symlink("f", root.join("a/l")).unwrap();
    assert_eq!(fs::read_to_string(root.join("a/l")).unwrap(), "hello");
    assert_eq!(errno(fs::create_dir(root.join("a"))), libc::EEXIST);
    assert_eq!(errno(fs::remove_dir(root.join("a"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::metadata(root.join("nothing"))), libc::ENOENT);
    assert_eq!(errno(fs::metadata(root.join("x".repeat(256)))), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::metadata(root.join("a/f/x"))), libc::ENOTDIR);
    fs::rename(root.join("a/f"), root.join("a/b/h")).unwrap();
    assert_eq!(errno(fs::metadata(root.join("a/f"))), libc::ENOENT);
    assert_eq!(fs::read_to_string(root.join("a/b/h")).unwrap(), "hello");
    fs::remove_file(root.join("a/g")).unwrap();
    assert_eq!(fs::metadata(root.join("a/b/h")).unwrap().nlink(), 1);
    fs::remove_dir_all(root.join("a")).unwrap();
    assert_eq!(fs::read_dir(root).unwrap().count(), 0);
}

#[test]
fn a_long_listing_is_complete_while_entries_go() {
    let dev = Dev::start();
    let dir = dev.mountpoint().join("d");
    fs::create_dir(&dir).unwrap();
    for n in 0..1500 {
        File::create(dir.join(format!("file-{n}"))).unwrap();
    }
    let mut seen: Vec<String> = fs::read_dir(&dir)
        .unwrap()
        .map(|e| {
            let e = e.unwrap();
            assert!(e.metadata().unwrap().is_file());
            e.file_name().into_string().unwrap()
        })
        .collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 1500);
    for entry in fs::read_dir(&dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn data_is_written_read_cut_and_sparse() {
    let dev = Dev::start();
    let path = dev.mountpoint().join("data");
    let pattern: Vec<u8> = (0..10_000_000u32).map(|n| (n % 251) as u8).collect();
    fs::write(&path, &pattern).unwrap();
    assert!(fs::read(&path).unwrap() == pattern);
    let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.write_all_at(b"here", 5_000_000).unwrap();
    file.sync_all().unwrap();
    let mut four = [0; 4];
    file.read_exact_at(&mut four, 5_000_000).unwrap();
    assert_eq!(&four, b"here");
    file.set_len(3).unwrap();
    file.set_len(1 << 40).unwrap();
    file.read_exact_at(&mut four, 2).unwrap();
    assert_eq!(four, [2, 0, 0, 0]);
    file.seek(SeekFrom::End(-1)).unwrap();
    assert_eq!(file.read(&mut four).unwrap(), 1);
    assert!(file.metadata().unwrap().blocks() < 1000);
    let mut log = OpenOptions::new().append(true).open(&path).unwrap();
    log.write_all(b"end").unwrap();
    assert_eq!(log.metadata().unwrap().len(), (1 << 40) + 3);
}

#[test]
fn an_unlinked_file_lives_while_it_is_open() {
    let dev = Dev::start();
    let path = dev.mountpoint().join("gone");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all(b"still here").unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here");
}

#[test]
fn modes_and_set_id_bits_follow_the_rules() {
    let dev = Dev::start();
    let path = dev.mountpoint().join("tool");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).unwrap();
    let mode = |p: &Path| fs::metadata(p).unwrap().mode() & 0o7777;
    assert_eq!(mode(&path), 0o6755);
    std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
    assert_eq!(mode(&path), 0o755, "a new owner must not inherit set-id bits");
}

/// Does something as another user: in a thread, since the system call changes nobody else.
fn as_user<T: Send>(uid: u32, what: impl FnOnce() -> T + Send) -> T {
    let work = || {
        // SAFETY: it takes numbers only. (The function of the C library would change all threads.)
        let done = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
        assert_eq!(done, 0);
        what()
    };
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

/// Sets the number of replicas of a directory, or takes it back. 0, or an error.
fn set_replicas(dir: &File, value: Option<&str>) -> i32 {
    let (fd, name) = (dir.as_raw_fd(), c"netfs.replicas".as_ptr());
    let done = match value {
        // SAFETY: all of it outlives the call, and the value has that length.
        Some(value) => unsafe { libc::fsetxattr(fd, name, value.as_ptr().cast(), value.len(), 0) },
        // SAFETY: as above.
        None => unsafe { libc::fremovexattr(fd, name) },
    };
    if done == 0 { 0 } else { errno::<()>(Err(std::io::Error::last_os_error())) }
}

#[test]
fn a_directory_s_replicas_are_set_by_its_owner_and_root() {
    let dev = Dev::start();
    let path = dev.mountpoint().join("d");
    fs::create_dir(&path).unwrap();
    std::os::unix::fs::chown(&path, Some(1000), Some(1000)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let dir = File::open(&path).unwrap();
    assert_eq!(set_replicas(&dir, Some("1")), 0);
    assert_eq!(as_user(1000, || set_replicas(&dir, None)), 0);
    assert_eq!(as_user(1000, || set_replicas(&dir, Some("1"))), 0);
    assert_eq!(as_user(1001, || set_replicas(&dir, Some("1"))), libc::EPERM);
    assert_eq!(as_user(1001, || set_replicas(&dir, None)), libc::EPERM);
    let said = dev.netfs(&["set", path.to_str().unwrap(), "--replicas", "1"]);
    assert!(said.contains("from now on has one replica"), "{said}");
}

#[test]
fn everything_is_there_after_a_stop_and_a_start() {
    let mut dev = Dev::start();
    fs::create_dir(dev.mountpoint().join("d")).unwrap();
    fs::write(dev.mountpoint().join("d/small"), "small").unwrap();
    let large = vec![7u8; 9 << 20];
    fs::write(dev.mountpoint().join("d/large"), &large).unwrap();
    dev.restart();
    assert_eq!(fs::read_to_string(dev.mountpoint().join("d/small")).unwrap(), "small");
    assert!(fs::read(dev.mountpoint().join("d/large")).unwrap() == large);
}

#[test]
fn a_second_mount_from_elsewhere_shows_the_same_files() {
    let dev = Dev::start();
    fs::write(dev.mountpoint().join("f"), "by the first").unwrap();
    let other = dev.dir().join("other");
    fs::create_dir(&other).unwrap();
    let target = other.to_str().unwrap();
    let log = dev.dir().join("log").to_str().unwrap().to_string();
    let identity = dev.identity();
    dev.netfs(&["mount", &dev.source(), target, "--identity", &identity, "--log", &log]);
    assert_eq!(fs::read_to_string(other.join("f")).unwrap(), "by the first");
    fs::write(other.join("f"), "by the second").unwrap();
    assert_eq!(fs::read_to_string(dev.mountpoint().join("f")).unwrap(), "by the second");
    let status = dev.netfs(&["status", target]);
    assert!(status.contains(target) && status.contains("process"), "{status}");
    let server = dev.netfs(&["status", "--server", &dev.address(), "--identity", &dev.identity()]);
    assert!(server.contains("volume"), "{server}");
    dev.netfs(&["umount", target]);
    assert_eq!(fs::read_dir(&other).unwrap().count(), 0);
}

#[test]
fn a_busy_mount_says_who_uses_it() {
    let dev = Dev::start();
    let open = File::create(dev.mountpoint().join("f")).unwrap();
    let text = dev.fails(&["umount", dev.mountpoint().to_str().unwrap()]);
    assert!(text.contains("busy") && text.contains(&std::process::id().to_string()), "{text}");
    drop(open);
}

#[test]
fn a_killed_daemon_leaves_a_mount_that_is_recognised_and_cleaned() {
    let mut dev = Dev::start();
    fs::write(dev.mountpoint().join("f"), "kept").unwrap();
    File::open(dev.mountpoint().join("f")).unwrap().sync_all().unwrap();
    dev.kill();
    assert_eq!(errno(fs::read_dir(dev.mountpoint())), libc::ENOTCONN);
    let target = dev.mountpoint().to_str().unwrap().to_string();
    assert!(dev.fails(&["status", &target]).contains("umount -l"));
    // The next start cleans up by itself.
    dev.restart();
    assert_eq!(fs::read_to_string(dev.mountpoint().join("f")).unwrap(), "kept");
}

/// A program that works in a directory.
struct Dweller(Child);

impl Dweller {
    fn of(dir: &Path) -> Dweller {
        Dweller(Command::new("cat").current_dir(dir).stdin(Stdio::piped()).spawn().unwrap())
    }

    /// Where the kernel says that it is; `getcwd` fails where this ends in ` (deleted)`.
    fn place(&self) -> PathBuf {
        fs::read_link(format!("/proc/{}/cwd", self.0.id())).unwrap()
    }
}

impl Drop for Dweller {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// Something else mounted on a directory of the mount.
struct Bound<'a>(&'a Path);

impl Bound<'_> {
    fn of<'a>(source: &Path, target: &'a Path) -> Bound<'a> {
        let status = Command::new("mount").arg("--bind").arg(source).arg(target).status().unwrap();
        assert!(status.success());
        Bound(target)
    }

    fn is_there(&self) -> bool {
        self.0.join("elsewhere").exists()
    }
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0).status().unwrap();
    }
}

#[test]
fn names_in_use_outlive_the_cache_of_names() {
    let dev = Dev::start_with("cache.entries=1000");
    let (work, bound) = (dev.mountpoint().join("w/deep"), dev.mountpoint().join("b"));
    let source = dev.dir().join("source");
    fs::create_dir_all(&work).unwrap();
    fs::create_dir(&bound).unwrap();
    fs::create_dir(&source).unwrap();
    fs::write(source.join("elsewhere"), "").unwrap();
    fs::write(work.join("gone"), "").unwrap();
    let dweller = Dweller::of(&work);
    let mounted = Bound::of(&source, &bound);
    for n in 0..1500 {
        assert!(!dev.mountpoint().join(format!("absent-{n}")).exists());
    }
    assert_eq!(dweller.place(), work);
    assert!(mounted.is_there());
    // A name that the kernel was told to ask for again is still one that can go and come.
    fs::remove_file(work.join("gone")).unwrap();
    assert!(!work.join("gone").exists());
    fs::write(dev.mountpoint().join("absent-3"), "").unwrap();
    assert!(dev.mountpoint().join("absent-3").exists());
    assert_eq!(fs::read_dir(dev.mountpoint()).unwrap().count(), 3);
}

#[test]
fn names_in_use_outlive_a_second_client_and_a_new_server() {
    let mut dev = Dev::start();
    let (work, bound) = (dev.mountpoint().join("w"), dev.mountpoint().join("b"));
    fs::create_dir(&work).unwrap();
    fs::create_dir(&bound).unwrap();
    fs::write(work.join("moved"), "").unwrap();
    let source = dev.dir().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("elsewhere"), "").unwrap();
    let other = dev.dir().join("other");
    fs::create_dir(&other).unwrap();
    let (first, mounted) = (Dweller::of(&work), Bound::of(&source, &bound));
    let target = other.to_str().unwrap();
    let log = dev.dir().join("log").to_str().unwrap().to_string();
    let identity = dev.identity();
    dev.netfs(&["mount", &dev.source(), target, "--identity", &identity, "--log", &log]);
    fs::rename(other.join("w/moved"), other.join("w/there")).unwrap();
    assert!(!work.join("moved").exists() && work.join("there").exists());
    assert_eq!(first.place(), work);
    assert!(mounted.is_there());
    drop((first, mounted));
    let (work, bound) = (other.join("w"), other.join("b"));
    let (second, mounted) = (Dweller::of(&work), Bound::of(&source, &bound));
    dev.kill();
    dev.restart();
    assert!(work.join("there").exists());
    assert_eq!(second.place(), work);
    assert!(mounted.is_there());
    drop((second, mounted));
    dev.netfs(&["umount", target]);
}

/// A second client of the same volume; to be unmounted.
fn second_mount(dev: &Dev) -> PathBuf {
    let other = dev.dir().join("other");
    fs::create_dir(&other).unwrap();
    let target = other.to_str().unwrap();
    let log = dev.dir().join("log").to_str().unwrap().to_string();
    let identity = dev.identity();
    dev.netfs(&["mount", &dev.source(), target, "--identity", &identity, "--log", &log]);
    other
}

#[test]
fn a_file_opened_before_a_second_client_came_shows_what_that_one_writes() {
    let dev = Dev::start();
    let path = dev.mountpoint().join("log");
    fs::write(&path, [b'A'; 100]).unwrap();
    let file = File::open(&path).unwrap();
    let mut seen = vec![0; 200];
    assert_eq!(file.read_at(&mut seen, 0).unwrap(), 100);
    let other = second_mount(&dev);
    // Now the kernel has its page again.
    assert_eq!(file.read_at(&mut seen, 0).unwrap(), 100);
    let writer = OpenOptions::new().write(true).open(other.join("log")).unwrap();
    writer.write_all_at(&[b'B'; 50], 100).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 150);
    assert_eq!(file.read_at(&mut seen, 0).unwrap(), 150);
    assert_eq!((&seen[..100], &seen[100..150]), (&[b'A'; 100][..], &[b'B'; 50][..]));
    writer.write_all_at(b"CCCC", 0).unwrap();
    file.read_at(&mut seen, 0).unwrap();
    assert_eq!(&seen[..4], b"CCCC");
    drop(writer);
    dev.netfs(&["umount", other.to_str().unwrap()]);
}

#[test]
fn with_a_second_client_a_write_takes_set_id_bits() {
    let dev = Dev::start();
    let other = second_mount(&dev);
    let path = dev.mountpoint().join("tool");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    fs::set_permissions(dev.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let write = format!("printf y >> {}", path.display());
    let status = Command::new("sh").args(["-c", &write]).uid(65534).status().unwrap();
    assert!(status.success());
    assert_eq!(fs::metadata(other.join("tool")).unwrap().mode() & 0o7777, 0o777);
    dev.netfs(&["umount", other.to_str().unwrap()]);
}

#[test]
fn unmounting_ends_without_a_server() {
    let mut dev = Dev::start();
    let other = second_mount(&dev);
    let target = other.to_str().unwrap();
    fs::write(other.join("f"), "stored").unwrap();
    // Otherwise it would be waited for.
    File::open(other.join("f")).unwrap().sync_all().unwrap();
    dev.kill();
    let begun = Instant::now();
    dev.netfs(&["umount", target]);
    assert!(begun.elapsed() < Duration::from_secs(50), "{:?}", begun.elapsed());
    assert_eq!(fs::read_dir(&other).unwrap().count(), 0);
    // The dead daemon's mount is cleaned up by the next one.
    dev.restart();
    assert_eq!(fs::read_to_string(dev.mountpoint().join("f")).unwrap(), "stored");
}

#[test]
fn programs_of_others_work() {
    let dev = Dev::start();
    let script = "set -e; mkdir r; cd r; git init -q; echo a > a; git add a; \
                  git -c user.name=n -c user.email=e commit -q -m m; git fsck --strict 2>&1; \
                  cp -a .git ../copy; tar cf ../t.tar .; mkdir ../u; tar xf ../t.tar -C ../u; \
                  diff -r . ../u; ln -s a l; mkfifo p; test -p p";
    let out =
        Command::new("sh").arg("-c").arg(script).current_dir(dev.mountpoint()).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    assert_eq!(out.status.signal(), None);
}
