use super::*;

fn forget(ino: Ino) -> Op {
    Op::Forget { inos: vec![ino] }
}

#[test]
fn an_open_file_outlives_its_name() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.set_xattr(file, b"user.a", b"v").unwrap();
    world.op(forget(file)).unwrap();
    assert_eq!(world.lookup(ROOT, "f"), Ok(file));
    world.unlink(ROOT, "f").unwrap();
    assert_eq!((world.attr(file).nlink, world.state().orphans), (0, 1));
    let op = Op::WriteInline { ino: file, generation: 0, data: vec![1], size: 1, mtime: at(1) };
    world.op(op).unwrap();
    assert_eq!(errno(world.link(file, ROOT, "again")), Errno::ENOENT);
    world.check();
    world.op(forget(file)).unwrap();
    assert_eq!(world.entry(file).unwrap_err(), Errno::ESTALE);
    let state = world.state();
    assert_eq!((state.orphans, state.inodes, state.bytes), (0, 1, 0));
    world.op(forget(file)).unwrap();
    world.check();
}

#[test]
fn an_orphans_chunks_are_removed_with_it() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let wrote = Op::WroteChunks { ino: file, generation: 0, end: 9, allocated: 9, mtime: at(1) };
    world.op(wrote).unwrap();
    world.unlink(ROOT, "f").unwrap();
    assert_eq!(super::super::deletions(&world.store, 9).unwrap(), []);
    world.op(forget(file)).unwrap();
    assert_eq!(super::super::deletions(&world.store, 9).unwrap()[0].1.ino, file);
    assert_eq!(world.state().bytes, 0);
    world.check();
}

#[test]
fn every_session_that_may_have_it_open_holds_an_orphan() {
    let mut world = World::new();
    world.open(2);
    let file = world.file(ROOT, "f");
    world.unlink(ROOT, "f").unwrap();
    world.open(3);
    world.op(forget(file)).unwrap();
    assert_eq!(world.attr(file).nlink, 0);
    world.op_as(3, 1, forget(file)).unwrap();
    assert_eq!(world.attr(file).nlink, 0);
    world.check();
    world.op_as(2, 1, forget(file)).unwrap();
    assert_eq!(world.entry(file).unwrap_err(), Errno::ESTALE);
    world.check();
}

#[test]
fn who_has_never_seen_an_orphan_can_be_made_to_let_go_of_it() {
    let mut world = World::new();
    world.open(2);
    world.open(3);
    let file = world.file(ROOT, "f");
    world.unlink(ROOT, "f").unwrap();
    let holds = vec![(SessionId(2), file), (SessionId(3), file), (SessionId(9), file)];
    world.run(Action::Release { holds: holds.clone() }).unwrap();
    assert_eq!(world.attr(file).nlink, 0, "who removed it may have it open");
    world.op(forget(file)).unwrap();
    assert_eq!(world.entry(file).unwrap_err(), Errno::ESTALE);
    world.run(Action::Release { holds }).unwrap();
    world.check();
}

#[test]
fn a_sessions_end_releases_what_it_held() {
    let mut world = World::new();
    world.open(2);
    let (file, dir) = (world.file(ROOT, "f"), world.dir(ROOT, "d"));
    world.unlink(ROOT, "f").unwrap();
    world.rmdir(ROOT, "d").unwrap();
    world.op(Op::EndSession).unwrap();
    assert_eq!((world.attr(file).nlink, world.attr(dir).nlink), (0, 0));
    assert_eq!(errno(world.unlink(ROOT, "x")), Errno::ESHUTDOWN);
    world.check();
    world.run(Action::ExpireSession { id: SessionId(2) }).unwrap();
    assert_eq!((world.state().orphans, world.state().sessions), (0, 0));
    assert_eq!(world.run(Action::ExpireSession { id: SessionId(2) }), Err(Errno::ESHUTDOWN));
    world.check();
}

#[test]
fn what_a_closed_session_had_stays_until_it_is_reaped() {
    let mut world = World::new();
    world.open(2);
    let file = world.file(ROOT, "f");
    world.unlink(ROOT, "f").unwrap();
    world.op(Op::EndSession).unwrap();
    let id = SessionId(2);
    world.run(Action::CloseSession { id }).unwrap();
    assert_eq!((world.state().orphans, world.state().sessions), (1, 0));
    assert_eq!(world.attr(file).nlink, 0);
    world.check();
    world.run(Action::CloseSession { id }).unwrap();
    world.run(Action::Reap { id }).unwrap();
    assert_eq!((world.state().orphans, world.state().sessions), (0, 0));
    assert_eq!(world.run(Action::CloseSession { id }), Err(Errno::ESHUTDOWN));
    world.check();
}

#[test]
fn a_session_with_very_many_orphans_goes_in_bounded_steps() {
    let mut world = World::new();
    for n in 0..3000 {
        world.file(ROOT, &n.to_string());
        world.unlink(ROOT, &n.to_string()).unwrap();
    }
    world.op(Op::EndSession).unwrap();
    let mut steps = 0;
    while let [id] = super::super::ended_sessions(&world.store).unwrap()[..] {
        assert_eq!(world.state().orphans, 3000 - 1024 * (steps + 1));
        world.check();
        let open = Action::OpenSession { id, description: String::new(), owner: String::new() };
        assert_eq!(world.run(open), Err(Errno::ESHUTDOWN));
        world.run(Action::Reap { id }).unwrap();
        steps += 1;
    }
    assert_eq!((steps, world.state().orphans, world.state().inodes), (2, 0, 1));
    world.check();
}
