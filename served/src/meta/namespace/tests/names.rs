use super::*;

#[test]
fn a_new_volume_has_a_root_and_nothing_else() {
    let world = World::new();
    let root = world.attr(ROOT);
    assert_eq!((root.kind, root.perm, root.nlink), (FileKind::Dir, 0o755, 2));
    assert_eq!(root.parent, ROOT);
    assert_eq!(world.list(ROOT, 0, 10), (vec![], true));
    world.check();
}

#[test]
fn a_second_volume_is_refused() {
    let mut world = World::new();
    let settings = Settings::default();
    assert_eq!(world.run(Action::CreateVolume { id: 8, settings }), Err(Errno::EEXIST));
    assert_eq!(super::super::volume(&world.store).unwrap().unwrap().id, 7);
}

#[test]
fn creating_touches_the_directory_and_tells_of_both() {
    let mut world = World::new();
    let reply = world.op(Op::Create {
        parent: ROOT,
        name: name("f"),
        new: NewInode::File,
        perm: 0o4666,
        umask: 0o027,
        uid: 10,
        gid: 20,
    });
    let [file, root] = attrs(reply).try_into().unwrap();
    assert_eq!((file.perm, file.uid, file.gid, file.nlink), (0o4640, 10, 20, 1));
    assert!(file.inline && file.size == 0 && file.allocated == 0);
    assert_eq!([file.atime, file.mtime, file.ctime, file.btime], [world.now(); 4]);
    assert_eq!((root.ino, root.mtime, root.ctime), (ROOT, world.now(), world.now()));
    assert_eq!((file.version, root.version), (world.index, world.index));
    assert_eq!(world.attr(file.ino), file);
    assert_eq!(world.lookup(ROOT, "f"), Ok(file.ino));
    assert_eq!(world.lookup(ROOT, "g"), Err(Errno::ENOENT));
    assert_eq!(world.lookup(file.ino, "g"), Err(Errno::ENOTDIR));
    assert_eq!(world.lookup(Ino(99), "g"), Err(Errno::ESTALE));
    assert_eq!(world.create(ROOT, "f", NewInode::Dir), Err(Errno::EEXIST));
    assert_eq!(world.create(file.ino, "x", NewInode::Dir), Err(Errno::ENOTDIR));
    assert_eq!(world.create(Ino(99), "x", NewInode::Dir), Err(Errno::ESTALE));
    world.check();
}

#[test]
fn a_refused_change_leaves_no_trace_but_its_answer() {
    let mut world = World::new();
    world.file(ROOT, "f");
    let before = world.dump();
    assert_eq!(world.create(ROOT, "f", NewInode::File), Err(Errno::EEXIST));
    let differing = world.dump().into_iter().filter(|pair| !before.contains(pair));
    let kinds: Vec<u8> = differing.map(|(key, _)| key[0]).collect();
    use crate::meta::keys::{REPLY, STATE, WINDOW};
    assert_eq!(kinds, [STATE, WINDOW, REPLY]);
}

#[test]
fn special_files_and_links_have_their_shape() {
    let mut world = World::new();
    let special = |kind, rdev| NewInode::Special(kind, rdev);
    let device = world.create(ROOT, "c", special(FileKind::Char, 0x105)).unwrap();
    let pipe = world.create(ROOT, "p", special(FileKind::Fifo, 0x105)).unwrap();
    assert_eq!((world.attr(device).rdev, world.attr(pipe).rdev), (0x105, 0));
    assert_eq!(world.create(ROOT, "x", special(FileKind::Dir, 0)), Err(Errno::EINVAL));
    let long = |n| NewInode::Symlink(vec![b'a'; n]);
    let link = world.create(ROOT, "l", long(4095)).unwrap();
    let attr = world.attr(link);
    assert_eq!((attr.kind, attr.perm, attr.size), (FileKind::Symlink, 0o777, 4095));
    let target = read(super::super::read_link(&world.store, link));
    assert_eq!(target, Ok(Response::Bytes(vec![b'a'; 4095])));
    let target = read(super::super::read_link(&world.store, pipe));
    assert_eq!(target, Err(Errno::EINVAL));
    assert_eq!(world.create(ROOT, "x", long(4096)), Err(Errno::ENAMETOOLONG));
    assert_eq!(world.create(ROOT, "x", long(0)), Err(Errno::ENOENT));
    world.unlink(ROOT, "l").unwrap();
    world.check();
}

#[test]
fn set_group_id_directories_pass_their_group_on() {
    let mut world = World::new();
    let dir = world.dir(ROOT, "d");
    let set = SetAttr { perm: Some(0o2775), gid: Some(77), ..SetAttr::default() };
    world.set(dir, set).unwrap();
    let (file, sub) = (world.file(dir, "f"), world.dir(dir, "s"));
    assert_eq!((world.attr(file).gid, world.attr(file).perm), (77, 0o644));
    assert_eq!((world.attr(sub).gid, world.attr(sub).perm), (77, 0o2755));
}

#[test]
fn links_count_names_and_end_at_a_limit() {
    let mut world = World::new();
    let (dir, file) = (world.dir(ROOT, "d"), world.file(ROOT, "f"));
    let [attr, parent] = attrs(world.link(file, dir, "g")).try_into().unwrap();
    assert_eq!((attr.nlink, attr.ctime, parent.ino), (2, world.now(), dir));
    assert!(attr.mtime < attr.ctime);
    assert_eq!(errno(world.link(file, dir, "g")), Errno::EEXIST);
    assert_eq!(errno(world.link(dir, ROOT, "h")), Errno::EPERM);
    assert_eq!(errno(world.link(Ino(99), ROOT, "h")), Errno::ESTALE);
    let [_, attr] = attrs(world.unlink(dir, "g")).try_into().unwrap_or_else(|v: Vec<Attr>| {
        panic!("{v:?}");
    });
    assert_eq!(attr.ino, dir);
    assert_eq!(world.attr(file).nlink, 1);
    for n in 1..super::super::MAX_LINKS {
        world.link(file, dir, &n.to_string()).unwrap();
    }
    assert_eq!(errno(world.link(file, dir, "more")), Errno::EMLINK);
    world.check();
}

#[test]
fn directories_count_their_subdirectories() {
    let mut world = World::new();
    let dir = world.dir(ROOT, "d");
    world.dir(dir, "a");
    world.file(dir, "f");
    assert_eq!((world.attr(dir).nlink, world.attr(ROOT).nlink), (3, 3));
    assert_eq!(errno(world.rmdir(ROOT, "d")), Errno::ENOTEMPTY);
    assert_eq!(errno(world.rmdir(dir, "f")), Errno::ENOTDIR);
    assert_eq!(errno(world.rmdir(dir, "x")), Errno::ENOENT);
    assert_eq!(errno(world.unlink(dir, "a")), Errno::EISDIR);
    assert_eq!(errno(world.unlink(dir, "x")), Errno::ENOENT);
    world.rmdir(dir, "a").unwrap();
    world.unlink(dir, "f").unwrap();
    let [gone, root] = attrs(world.rmdir(ROOT, "d")).try_into().unwrap();
    assert_eq!((gone.ino, gone.nlink, gone.ctime), (dir, 0, world.now()));
    assert_eq!((root.nlink, root.mtime), (2, world.now()));
    assert_eq!(world.create(dir, "x", NewInode::File), Err(Errno::ENOENT));
    world.check();
}

#[test]
fn listings_go_on_where_they_stopped_while_entries_come_and_go() {
    let mut world = World::new();
    for n in 0..10 {
        world.file(ROOT, &format!("f{n}"));
    }
    let (first, end) = world.list(ROOT, 0, 4);
    assert_eq!((first.len(), end, first[0].cookie), (4, false, 3));
    world.unlink(ROOT, "f3").unwrap();
    world.unlink(ROOT, "f4").unwrap();
    world.file(ROOT, "f3");
    let (rest, end) = world.list(ROOT, first[3].cookie, 4096);
    let names: Vec<_> = rest.iter().map(|e| e.name.as_bytes().escape_ascii().to_string()).collect();
    assert_eq!((names.join(" "), end), ("f5 f6 f7 f8 f9 f3".into(), true));
    // A place is never given out again.
    assert_eq!(rest[5].cookie, 13);
    let (none, end) = world.list(ROOT, 13, 1);
    assert_eq!((none.len(), end), (0, true));
    world.check();
}

#[test]
fn a_full_volume_makes_no_more_inodes() {
    let mut world = World::with(Settings { max_inodes: 2, ..Settings::default() });
    world.file(ROOT, "f");
    assert_eq!(world.create(ROOT, "g", NewInode::File), Err(Errno::ENOSPC));
    let (file, forget) = (world.lookup(ROOT, "f").unwrap(), |ino| Op::Forget { inos: vec![ino] });
    world.unlink(ROOT, "f").unwrap();
    assert_eq!(world.create(ROOT, "g", NewInode::File), Err(Errno::ENOSPC));
    world.op(forget(file)).unwrap();
    assert_ne!(world.file(ROOT, "g"), file);
    world.check();
}

/// A store that counts what is read from it.
struct Counting<'s> {
    store: &'s MemoryStore,
    values: std::cell::Cell<usize>,
}

impl Read for Counting<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<bytes::Bytes>, StoreError> {
        self.values.set(self.values.get() + 1);
        self.store.get(key)
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        let pairs = self.store.range(from, to, limit)?;
        self.values.set(self.values.get() + 1 + pairs.len());
        Ok(pairs)
    }
}

/// Reads and writes of a change that is tried and thrown away.
fn cost(world: &World, op: Op) -> (usize, usize) {
    let counting = Counting { store: &world.store, values: Default::default() };
    let mut txn = Txn::new(&counting);
    let (seq, answered) = (OpSeq(world.seq + 1), OpSeq(world.seq));
    let action = Action::Mutate { session: world.session, seq, answered, op };
    let command = Command { time: at(1), action };
    super::super::apply(&mut txn, LogIndex(world.index + 1), command).unwrap().unwrap();
    (counting.values.get(), txn.into_batch().len())
}

#[test]
fn no_step_in_a_directory_of_very_many_entries_costs_more_than_in_a_small_one() {
    let mut world = World::new();
    let dir = world.dir(ROOT, "d");
    let mut costs = Vec::new();
    for n in 0..100_000 {
        world.file(dir, &format!("file-{n}"));
        if n == 10 || n == 99_999 {
            let to = |parent, text| Op::Rename {
                parent: dir,
                name: name("file-7"),
                new_parent: parent,
                new_name: name(text),
                mode: RenameMode::Replace,
            };
            let (parent, new) = (dir, NewInode::File);
            let ops = [
                Op::Create { parent, name: name("x"), new, perm: 0, umask: 0, uid: 0, gid: 0 },
                Op::Unlink { parent, name: name("file-3") },
                to(dir, "y"),
                to(ROOT, "y"),
                to(dir, "file-5"),
            ];
            costs.push(ops.map(|op| cost(&world, op)));
        }
    }
    assert_eq!(costs[0], costs[1]);
    assert!(costs[0].iter().all(|(reads, writes)| *reads < 20 && *writes < 20), "{costs:?}");
    assert_eq!(errno(world.rmdir(ROOT, "d")), Errno::ENOTEMPTY);

    let counting = Counting { store: &world.store, values: Default::default() };
    let part = read(super::super::read_dir(&counting, dir, 50_000, 1000, false)).unwrap();
    let Response::Listing { entries, end: false, .. } = part else { panic!("{part:?}") };
    assert_eq!(entries.len(), 1000);
    assert!(counting.values.get() < 1010);
    assert_eq!(world.attr(dir).size, 64 * 100_000_u64.next_multiple_of(64));
}
