use netfs_common::attr::SetTime;

use super::*;

fn mtime(time: SetTime) -> SetAttr {
    SetAttr { mtime: Some(time), ..SetAttr::default() }
}

#[test]
fn times_are_set_and_ctime_never_runs_backwards() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.set(file, mtime(SetTime::To(at(-5)))).unwrap();
    let attr = world.attr(file);
    assert_eq!((attr.mtime, attr.ctime), (at(-5), world.now()));
    world.set(file, mtime(SetTime::Now)).unwrap();
    assert_eq!(world.attr(file).mtime, world.now());
    let bad = Timestamp { secs: 0, nanos: 1_000_000_000 };
    assert_eq!(errno(world.set(file, mtime(SetTime::To(bad)))), Errno::EINVAL);
    assert_eq!(errno(world.set(Ino(99), mtime(SetTime::Now))), Errno::ESTALE);

    let before = world.attr(file).ctime;
    world.index += 1;
    let action = Action::Mutate {
        session: world.session,
        seq: OpSeq(100),
        answered: OpSeq(0),
        op: Op::SetAttr { ino: file, set: mtime(SetTime::Now) },
    };
    let mut txn = Txn::new(&world.store);
    let command = Command { time: at(1), action };
    super::super::apply(&mut txn, LogIndex(world.index), command).unwrap().unwrap();
    world.store.commit(txn.into_batch()).unwrap();
    assert_eq!((world.attr(file).ctime, world.attr(file).mtime), (before, at(1)));
}

#[test]
fn a_command_at_an_impossible_time_is_refused() {
    let world = World::new();
    let time = Timestamp { secs: 0, nanos: u32::MAX };
    let action =
        Action::OpenSession { id: SessionId(5), description: String::new(), owner: String::new() };
    let mut txn = Txn::new(&world.store);
    let reply = super::super::apply(&mut txn, LogIndex(9), Command { time, action }).unwrap();
    assert_eq!(reply, Err(Errno::EINVAL));
}

#[test]
fn a_new_owner_does_not_get_a_programs_privileges() {
    let mut world = World::new();
    let (file, dir) = (world.file(ROOT, "f"), world.dir(ROOT, "d"));
    let perm = |perm| SetAttr { perm: Some(perm), ..SetAttr::default() };
    let owner = SetAttr { uid: Some(5), ..SetAttr::default() };
    for (ino, before, after) in
        [(file, 0o6775, 0o775), (file, 0o6765, 0o2765), (dir, 0o6775, 0o6775)]
    {
        world.set(ino, perm(before)).unwrap();
        world.set(ino, owner.clone()).unwrap();
        assert_eq!(world.attr(ino).perm, after);
    }
    world.set(file, SetAttr { perm: Some(0o4755), ..owner }).unwrap();
    assert_eq!((world.attr(file).perm, world.attr(file).uid), (0o4755, 5));
}

#[test]
fn only_files_have_a_length_to_set() {
    let mut world = World::new();
    let (dir, file) = (world.dir(ROOT, "d"), world.file(ROOT, "f"));
    let pipe = world.create(ROOT, "p", NewInode::Special(FileKind::Fifo, 0)).unwrap();
    assert_eq!(errno(world.cut(dir, 0)), Errno::EISDIR);
    assert_eq!(errno(world.cut(pipe, 0)), Errno::EINVAL);
    assert_eq!(errno(world.cut(file, 1 << 63)), Errno::EFBIG);
    world.cut(file, i64::MAX as u64).unwrap();
    assert_eq!(world.attr(file).size, i64::MAX as u64);
    world.cut(file, i64::MAX as u64).unwrap();
    assert_eq!((world.attr(file).mtime, world.attr(file).ctime), (world.now(), world.now()));
}
