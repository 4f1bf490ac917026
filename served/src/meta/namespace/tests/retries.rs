use super::*;
use crate::meta::keys;

fn create(text: &str) -> Op {
    let (parent, name) = (ROOT, name(text));
    Op::Create { parent, name, new: NewInode::File, perm: 0, umask: 0, uid: 0, gid: 0 }
}

fn call(world: &mut World, seq: u64, answered: u64, op: Op) -> Reply {
    let (session, seq, answered) = (SessionId(1), OpSeq(seq), OpSeq(answered));
    world.run(Action::Mutate { session, seq, answered, op })
}

fn kept(world: &World) -> usize {
    world.dump().iter().filter(|(key, _)| key[0] == keys::REPLY).count()
}

#[test]
fn a_change_that_comes_twice_is_made_once() {
    let mut world = World::new();
    let first = target(call(&mut world, 1, 0, create("f")).unwrap());
    call(&mut world, 2, 0, Op::Unlink { parent: ROOT, name: name("f") }).unwrap();
    let again = call(&mut world, 1, 0, create("f"));
    // The attributes are those of now.
    let [file, _] = attrs(again.clone()).try_into().unwrap();
    assert_eq!((target(again.unwrap()), file.ino, file.nlink), (first, first, 0));
    assert_eq!(world.lookup(ROOT, "f"), Err(Errno::ENOENT));
    world.check();
}

#[test]
fn an_error_is_remembered_as_well() {
    let mut world = World::new();
    let unlink = || Op::Unlink { parent: ROOT, name: name("f") };
    assert_eq!(call(&mut world, 1, 0, unlink()), Err(Errno::ENOENT));
    call(&mut world, 2, 0, create("f")).unwrap();
    assert_eq!(call(&mut world, 1, 0, unlink()), Err(Errno::ENOENT));
    world.lookup(ROOT, "f").unwrap();
}

#[test]
fn answers_that_arrived_are_dropped_and_late_copies_are_refused() {
    let mut world = World::new();
    for seq in 1..=300 {
        call(&mut world, seq, 0, create(&seq.to_string())).unwrap();
    }
    assert_eq!(kept(&world), 300);
    call(&mut world, 301, 300, create("a")).unwrap();
    assert_eq!(kept(&world), 300 - 64 + 1);
    assert_eq!(call(&mut world, 5, 0, create("5")), Err(Errno::ESTALE));
    assert_eq!(call(&mut world, 299, 0, create("299")), Err(Errno::ESTALE));
    world.check();
    for seq in 302..310 {
        call(&mut world, seq, seq - 1, create(&seq.to_string())).unwrap();
    }
    assert_eq!(kept(&world), 1);
    world.check();
}

#[test]
fn changes_may_arrive_out_of_order() {
    let mut world = World::new();
    call(&mut world, 3, 0, create("c")).unwrap();
    call(&mut world, 1, 0, create("a")).unwrap();
    call(&mut world, 2, 0, create("b")).unwrap();
    assert_eq!(world.names(ROOT), ["c", "a", "b"]);
    world.check();
}

#[test]
fn impossible_numbers_are_refused() {
    let mut world = World::new();
    assert_eq!(call(&mut world, 5, 5, create("f")), Err(Errno::EPROTO));
    assert_eq!(call(&mut world, 0, 0, create("f")), Err(Errno::EPROTO));
    assert_eq!(call(&mut world, 65_537, 0, create("f")), Err(Errno::EPROTO));
    call(&mut world, u64::MAX, u64::MAX - 1, create("f")).unwrap();
    world.check();
}

#[test]
fn a_stranger_is_told_so() {
    let mut world = World::new();
    assert_eq!(errno(world.op_as(9, 1, create("f"))), Errno::ESHUTDOWN);
    world.open(9);
    world.open(9);
    assert_eq!(world.state().sessions, 2);
    world.op_as(9, 1, create("f")).unwrap();
    world.check();
}
