//! The class of files' data, which is the upper part of their generations.

use netfs_common::class::{self, Class};
use netfs_common::wire::meta::Replayed;

use super::*;

const COUNT: u32 = (1 << 29) - 1;

fn class_of(world: &World, ino: Ino) -> Option<u8> {
    Class::of(world.attr(ino).generation).replicas()
}

fn wrote(ino: Ino, generation: u32, end: u64) -> Op {
    Op::WroteChunks { ino, generation, end, allocated: end as i64, mtime: at(500) }
}

#[test]
fn what_is_made_in_a_directory_has_its_class_and_keeps_it() {
    let mut world = World::new();
    let (dir, before) = (world.dir(ROOT, "d"), world.file(ROOT, "before"));
    let old = world.dir(dir, "old");
    world.set_xattr(dir, class::XATTR, b"3\n").unwrap();
    assert!(!world.attr(dir).has_xattrs && world.attr(dir).ctime == world.now());
    let (file, sub) = (world.file(dir, "f"), world.dir(dir, "sub"));
    let link = world.create(dir, "s", NewInode::Symlink(b"f".to_vec())).unwrap();
    let deep = world.file(sub, "deep");
    let classes = [dir, file, sub, deep, link, old, before, ROOT].map(|ino| class_of(&world, ino));
    assert_eq!(classes, [Some(3), Some(3), Some(3), Some(3), None, None, None, None]);
    // Whatever becomes of it, and of the directory.
    world.set_xattr(dir, class::XATTR, b"5").unwrap();
    world.rename((dir, "f"), (ROOT, "g"), RenameMode::Replace).unwrap();
    world.link(deep, ROOT, "h").unwrap();
    world.rename((ROOT, "before"), (dir, "before"), RenameMode::Replace).unwrap();
    world.op(wrote(file, class::later(0, 0).unwrap(), 9)).unwrap_err();
    world.op(wrote(file, world.attr(file).generation, 900)).unwrap();
    world.cut(file, 500).unwrap();
    let trim = super::super::trims_of(&world.store, file).unwrap()[0].1;
    assert_eq!(Class::of(trim.generation).replicas(), Some(3));
    world.cut(file, 0).unwrap();
    let emptied = world.attr(file).generation;
    assert_eq!((class::count(emptied), class_of(&world, file)), (1, Some(3)));
    let deletion = super::super::deletions(&world.store, 9).unwrap()[0].1;
    assert_eq!(deletion.generation, Class::with_replicas(3).unwrap().first_generation());
    let classes = [dir, deep, sub, before].map(|ino| class_of(&world, ino));
    assert_eq!(classes, [Some(5), Some(3), Some(3), None]);
    world.check();
    world.op(Op::RemoveXattr { ino: dir, name: class::XATTR.to_vec() }).unwrap();
    let plain = world.file(dir, "plain");
    assert_eq!([dir, plain].map(|ino| world.attr(ino).generation), [0, 0]);
    world.check();
}

#[test]
fn only_directories_have_a_class_to_give_and_only_one_that_there_is() {
    let mut world = World::new();
    let (dir, file) = (world.dir(ROOT, "d"), world.file(ROOT, "f"));
    for bad in [&b"6"[..], b"", b"three", b"-1", b"\xff"] {
        assert_eq!(errno(world.set_xattr(dir, class::XATTR, bad)), Errno::EINVAL);
    }
    assert_eq!(errno(world.set_xattr(file, class::XATTR, b"2")), Errno::ENOTDIR);
    let with = |mode, value: &[u8]| Op::SetXattr {
        ino: dir,
        name: class::XATTR.to_vec(),
        value: value.to_vec(),
        mode,
    };
    assert_eq!(errno(world.op(with(XattrMode::Replace, b"2"))), Errno::ENODATA);
    world.op(with(XattrMode::Create, b"2")).unwrap();
    assert_eq!(errno(world.op(with(XattrMode::Create, b"3"))), Errno::EEXIST);
    world.op(with(XattrMode::Replace, b"0")).unwrap();
    let remove = Op::RemoveXattr { ino: dir, name: class::XATTR.to_vec() };
    assert_eq!(errno(world.op(remove)), Errno::ENODATA);
    assert_eq!(world.attr(dir).generation, 0);
    world.check();
}

#[test]
fn a_count_that_is_used_up_never_runs_into_the_class() {
    let mut world = World::new();
    world.set_xattr(ROOT, class::XATTR, b"2").unwrap();
    let file = world.file(ROOT, "f");
    let last = Class::with_replicas(2).unwrap().first_generation() | COUNT;
    let key = crate::meta::keys::inode(file);
    let mut inode: crate::meta::record::Inode =
        crate::meta::record::load(&world.store, &key).unwrap().unwrap();
    inode.attr.generation = last;
    let mut txn = Txn::new(&world.store);
    txn.put(key, crate::meta::record::encode(&inode).unwrap());
    world.store.commit(txn.into_batch()).unwrap();
    world.op(wrote(file, last, 9)).unwrap();
    assert_eq!(errno(world.cut(file, 0)), Errno::EFBIG);
    assert_eq!(world.attr(file).generation, last);
}

#[test]
fn a_file_that_is_made_again_after_a_failure_has_the_class_under_which_its_chunks_are() {
    let mut world = World::new();
    world.run(Action::SkipNumbers { inodes: 100 }).unwrap();
    let three = Class::with_replicas(3).unwrap().first_generation();
    let op = |text| Op::Create {
        parent: ROOT,
        name: name(text),
        new: NewInode::File,
        perm: 0o644,
        umask: 0,
        uid: 0,
        gid: 0,
    };
    let replay = |world: &mut World, seq, generation, ino, op| {
        let target = Some((Ino(ino), generation));
        let Replayed { seq, target, op, .. } =
            Replayed { at: LogIndex(1), seq: OpSeq(seq), time: at(5), target, op };
        world.run(Action::Replay { session: SessionId(1), seq, target, op })
    };
    // The setting of the directory is lost with a client that has died.
    replay(&mut world, 1, three, 50, op("f")).unwrap();
    assert_eq!(world.attr(Ino(50)).generation, three);
    // A class that there is not is nobody's.
    replay(&mut world, 2, 7 << 29, 51, op("g")).unwrap();
    assert_eq!(world.attr(Ino(51)).generation, 0);
    // Emptied, it gets the generation that it had, unless that is none of its own.
    let empty =
        |ino| Op::SetAttr { ino: Ino(ino), set: SetAttr { size: Some(0), ..SetAttr::default() } };
    world.seq = 10;
    world.op(wrote(Ino(50), three, 9)).unwrap();
    replay(&mut world, 12, three + 7, 50, empty(50)).unwrap();
    assert_eq!(world.attr(Ino(50)).generation, three + 7);
    world.seq = 12;
    world.op(wrote(Ino(50), three + 7, 9)).unwrap();
    replay(&mut world, 14, 900, 50, empty(50)).unwrap();
    let after = world.attr(Ino(50)).generation;
    assert_eq!(Class::of(after).replicas(), Some(3));
    assert!(class::is_later(after, three + 7) && after != 900);
    world.check();
}
