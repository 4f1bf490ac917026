use super::*;
use RenameMode::{Exchange, NoReplace, Replace, Whiteout};

#[test]
fn a_file_moves_and_keeps_its_inode() {
    let mut world = World::new();
    let (dir, file) = (world.dir(ROOT, "d"), world.file(ROOT, "f"));
    let reply = world.rename((ROOT, "f"), (dir, "g"), Replace);
    let [moved, from, to] = attrs(reply).try_into().unwrap();
    assert_eq!((moved.ino, moved.ctime, moved.nlink), (file, world.now(), 1));
    assert_eq!((from.ino, from.mtime), (ROOT, world.now()));
    assert_eq!((to.ino, to.mtime), (dir, world.now()));
    assert_eq!(world.lookup(dir, "g"), Ok(file));
    assert_eq!(world.lookup(ROOT, "f"), Err(Errno::ENOENT));
    assert_eq!(errno(world.rename((ROOT, "f"), (dir, "g"), Replace)), Errno::ENOENT);
    world.check();
}

#[test]
fn a_target_is_replaced_and_becomes_an_orphan() {
    let mut world = World::new();
    let (file, victim) = (world.file(ROOT, "f"), world.file(ROOT, "g"));
    let all = attrs(world.rename((ROOT, "f"), (ROOT, "g"), Replace));
    let gone = all.iter().find(|a| a.ino == victim).unwrap();
    assert_eq!((gone.nlink, gone.ctime), (0, world.now()));
    assert_eq!(world.lookup(ROOT, "g"), Ok(file));
    assert_eq!(world.names(ROOT), ["g"]);
    world.check();
}

#[test]
fn kinds_must_agree_and_directories_must_be_empty() {
    let mut world = World::new();
    let (full, empty) = (world.dir(ROOT, "full"), world.dir(ROOT, "empty"));
    world.file(full, "x");
    world.file(ROOT, "f");
    let mut fails = |from: &str, to: &str| errno(world.rename((ROOT, from), (ROOT, to), Replace));
    assert_eq!(fails("empty", "f"), Errno::ENOTDIR);
    assert_eq!(fails("f", "empty"), Errno::EISDIR);
    assert_eq!(fails("empty", "full"), Errno::ENOTEMPTY);
    world.rename((ROOT, "full"), (ROOT, "empty"), Replace).unwrap();
    assert_eq!(world.lookup(ROOT, "empty"), Ok(full));
    assert_eq!((world.attr(ROOT).nlink, world.attr(empty).nlink), (3, 0));
    world.check();
}

#[test]
fn names_of_one_inode_stay_both() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.link(file, ROOT, "g").unwrap();
    let before = world.attr(file);
    for mode in [Replace, Exchange] {
        assert_eq!(attrs(world.rename((ROOT, "f"), (ROOT, "g"), mode)), []);
    }
    assert_eq!(errno(world.rename((ROOT, "f"), (ROOT, "g"), NoReplace)), Errno::EEXIST);
    assert_eq!((world.names(ROOT), world.attr(file)), (vec!["f".into(), "g".into()], before));
    world.rename((ROOT, "f"), (ROOT, "f"), Replace).unwrap();
    world.check();
}

#[test]
fn a_directory_moves_with_its_parent_pointer() {
    let mut world = World::new();
    let (a, b) = (world.dir(ROOT, "a"), world.dir(ROOT, "b"));
    let moved = world.dir(a, "m");
    world.dir(b, "victim");
    world.rename((a, "m"), (b, "victim"), Replace).unwrap();
    assert_eq!(world.attr(moved).parent, b);
    assert_eq!((world.attr(a).nlink, world.attr(b).nlink), (2, 3));
    world.rename((b, "victim"), (a, "m"), NoReplace).unwrap();
    assert_eq!((world.attr(a).nlink, world.attr(b).nlink), (3, 2));
    world.check();
}

#[test]
fn a_directory_cannot_go_below_itself() {
    let mut world = World::new();
    let a = world.dir(ROOT, "a");
    let b = world.dir(a, "b");
    let c = world.dir(b, "c");
    world.file(c, "f");
    for to in [a, b, c] {
        assert_eq!(errno(world.rename((ROOT, "a"), (to, "x"), Replace)), Errno::EINVAL);
    }
    assert_eq!(errno(world.rename((ROOT, "a"), (c, "f"), Exchange)), Errno::EINVAL);
    assert_eq!(errno(world.rename((c, "f"), (ROOT, "a"), Exchange)), Errno::EINVAL);
    assert_eq!(errno(world.rename((b, "c"), (ROOT, "a"), Replace)), Errno::ENOTEMPTY);
    world.rename((a, "b"), (ROOT, "b"), Replace).unwrap();
    world.rename((ROOT, "a"), (c, "a"), Replace).unwrap();
    world.check();
}

#[test]
fn exchange_swaps_any_kinds() {
    let mut world = World::new();
    let (a, b) = (world.dir(ROOT, "a"), world.dir(ROOT, "b"));
    let (dir, file) = (world.dir(a, "x"), world.file(b, "y"));
    world.file(dir, "inside");
    assert_eq!(errno(world.rename((a, "x"), (b, "none"), Exchange)), Errno::ENOENT);
    world.rename((a, "x"), (b, "y"), Exchange).unwrap();
    assert_eq!((world.lookup(a, "x"), world.lookup(b, "y")), (Ok(file), Ok(dir)));
    assert_eq!((world.attr(a).nlink, world.attr(b).nlink), (2, 3));
    assert_eq!((world.attr(dir).parent, world.attr(file).parent), (b, Ino(0)));
    assert_eq!((world.attr(dir).ctime, world.attr(file).ctime), (world.now(), world.now()));
    assert_eq!(world.list(b, 0, 9).0[0].kind, FileKind::Dir);
    world.rename((ROOT, "a"), (ROOT, "b"), Exchange).unwrap();
    assert_eq!((world.lookup(ROOT, "a"), world.lookup(ROOT, "b")), (Ok(b), Ok(a)));
    world.check();
}

#[test]
fn a_renamed_entry_keeps_its_place_in_the_listing() {
    let mut world = World::new();
    for text in ["a", "b", "c"] {
        world.file(ROOT, text);
    }
    let place = world.list(ROOT, 0, 1).0[0].cookie;
    world.rename((ROOT, "a"), (ROOT, "z"), Replace).unwrap();
    assert_eq!(world.names(ROOT), ["z", "b", "c"]);
    assert_eq!(world.list(ROOT, 0, 1).0[0].cookie, place);
    world.rename((ROOT, "z"), (ROOT, "c"), Replace).unwrap();
    assert_eq!(world.names(ROOT), ["c", "b"]);
    world.check();
}

#[test]
fn a_whiteout_stays_at_the_old_name() {
    let mut world = World::new();
    let (dir, file, victim) = (world.dir(ROOT, "d"), world.file(ROOT, "f"), world.file(ROOT, "v"));
    attrs(world.rename((ROOT, "f"), (dir, "g"), Whiteout { uid: 7, gid: 8 }));
    assert_eq!(world.lookup(dir, "g"), Ok(file));
    let left = world.lookup(ROOT, "f").unwrap();
    let left = world.attr(left);
    assert_eq!((left.kind, left.rdev, left.perm, left.nlink), (FileKind::Char, 0, 0, 1));
    assert_eq!((left.uid, left.gid), (7, 8));
    // What is replaced goes, and a directory can leave one too.
    attrs(world.rename((dir, "g"), (ROOT, "v"), Whiteout { uid: 0, gid: 0 }));
    assert_eq!(world.lookup(ROOT, "v"), Ok(file));
    assert_eq!(world.attr(victim).nlink, 0);
    attrs(world.rename((ROOT, "d"), (ROOT, "e"), Whiteout { uid: 0, gid: 0 }));
    assert_eq!(world.lookup(ROOT, "e"), Ok(dir));
    assert_eq!(world.names(dir), ["g"]);
    assert_eq!(world.names(ROOT), ["e", "f", "v", "d"]);
    world.check();
}
