use netfs_common::wire::hello::MAX_LOST;

use super::*;
use crate::meta::record::{Deletion, Trim};

fn inline(ino: Ino, data: &[u8], size: u64) -> Op {
    Op::WriteInline { ino, generation: 0, data: data.to_vec(), size, mtime: at(500) }
}

fn wrote(ino: Ino, generation: u32, end: u64, allocated: i64) -> Op {
    Op::WroteChunks { ino, generation, end, allocated, mtime: at(500) }
}

#[test]
fn small_files_live_in_their_inode() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.op(inline(file, b"hello", 10)).unwrap();
    let (attr, data) = world.entry(file).unwrap();
    assert_eq!((attr.size, attr.allocated, data.unwrap()), (10, 512, b"hello".to_vec()));
    // The change is as old as the write, however late it arrives.
    assert_eq!(attr.mtime, at(500));
    assert_eq!(attr.ctime, attr.btime);
    assert_eq!(world.state().bytes, 512);
    assert_eq!(errno(world.op(inline(file, b"hello", 4))), Errno::EINVAL);
    assert_eq!(errno(world.op(inline(file, &[0; 101], 101))), Errno::EINVAL);
    assert_eq!(errno(world.op(inline(ROOT, b"", 0))), Errno::EISDIR);
    let other = Op::WriteInline { ino: file, generation: 1, data: vec![], size: 0, mtime: at(0) };
    assert_eq!(errno(world.op(other)), Errno::ESTALE);
    world.check();
}

#[test]
fn cutting_inline_data_cuts_the_bytes_and_extending_leaves_a_hole() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.op(inline(file, b"hello", 10)).unwrap();
    world.cut(file, 7).unwrap();
    assert_eq!(world.entry(file).unwrap().1.unwrap(), b"hello");
    world.cut(file, 2).unwrap();
    world.cut(file, 1 << 40).unwrap();
    let (attr, data) = world.entry(file).unwrap();
    assert_eq!((attr.size, attr.inline, data.unwrap()), (1 << 40, true, b"he".to_vec()));
    world.cut(file, 0).unwrap();
    let (attr, data) = world.entry(file).unwrap();
    assert_eq!((attr.allocated, attr.generation, data.unwrap()), (0, 0, vec![]));
    assert!(super::super::trims(&world.store).unwrap().is_empty());
    world.check();
}

#[test]
fn chunks_take_the_place_of_inline_data() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.op(inline(file, b"hello", 5)).unwrap();
    let [attr] = attrs(world.op(wrote(file, 0, 1000, 4096))).try_into().unwrap();
    assert_eq!((attr.size, attr.allocated, attr.inline), (1000, 4096, false));
    assert_eq!(world.state().bytes, 4096);
    assert_eq!(world.entry(file).unwrap().1, None);
    assert_eq!(errno(world.op(inline(file, b"late", 4))), Errno::ESTALE);
    assert_eq!(errno(world.op(wrote(file, 1, 1, 1))), Errno::ESTALE);
    assert_eq!(errno(world.op(wrote(file, 0, u64::MAX, 1))), Errno::EFBIG);
    world.op(wrote(file, 0, 10, -10000)).unwrap();
    assert_eq!((world.attr(file).size, world.attr(file).allocated), (1000, 0));
    world.check();
}

#[test]
fn a_cut_of_chunks_is_remembered_until_the_data_servers_have_made_it() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.op(wrote(file, 0, 1000, 1000)).unwrap();
    world.cut(file, 300).unwrap();
    let [(id, trim)] = super::super::trims_of(&world.store, file).unwrap().try_into().unwrap();
    let expected = Trim { ino: file, generation: 0, chunk_bits: 22, from: 300, end: 1000 };
    assert_eq!(trim, expected);
    world.check();
    for _ in 0..2 {
        world.run(Action::TrimDone { id, freed: 700 }).unwrap();
        assert_eq!((world.attr(file).allocated, world.state().bytes), (300, 300));
    }
    assert_eq!(super::super::trims(&world.store).unwrap(), []);
    world.cut(file, 5000).unwrap();
    assert_eq!(super::super::trims(&world.store).unwrap(), []);
    world.check();
}

#[test]
fn a_cut_that_was_made_twice_leaves_no_file_larger_than_its_length() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.op(wrote(file, 0, 1000, 1000)).unwrap();
    world.cut(file, 300).unwrap();
    let [(id, _)] = super::super::trims_of(&world.store, file).unwrap().try_into().unwrap();
    // Nobody knows what the first attempt has freed.
    world.run(Action::TrimDone { id, freed: 0 }).unwrap();
    assert_eq!((world.attr(file).allocated, world.state().bytes), (300, 300));
    // What was written beyond the cut since counts.
    world.cut(file, 200).unwrap();
    let [(id, _)] = super::super::trims_of(&world.store, file).unwrap().try_into().unwrap();
    world.op(wrote(file, 0, 900, 500)).unwrap();
    world.run(Action::TrimDone { id, freed: 100 }).unwrap();
    assert_eq!(world.attr(file).allocated, 700);
    world.check();
}

#[test]
fn emptying_a_file_gives_it_new_contents() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.op(wrote(file, 0, 1000, 1000)).unwrap();
    world.cut(file, 0).unwrap();
    let attr = world.attr(file);
    assert_eq!((attr.generation, attr.allocated, attr.inline), (1, 0, true));
    let [(id, deletion)] = super::super::deletions(&world.store, 9).unwrap().try_into().unwrap();
    assert_eq!(deletion, Deletion { ino: file, generation: 0, chunk_bits: 22, end: 1000 });
    assert_eq!(errno(world.op(wrote(file, 0, 1, 1))), Errno::ESTALE);
    world.op(wrote(file, 1, 1, 1)).unwrap();
    world.check();
    world.run(Action::ChunksDeleted { ids: vec![id] }).unwrap();
    assert_eq!(super::super::deletions(&world.store, 9).unwrap(), []);
    world.check();
}

#[test]
fn a_tail_that_was_never_reported_is_cut_and_nothing_else() {
    let mut world = World::new();
    let small = world.file(ROOT, "small");
    world.op(inline(small, b"hello", 5000)).unwrap();
    let before = world.attr(small);
    world.op(Op::CutTail { ino: small }).unwrap();
    let (after, data) = world.entry(small).unwrap();
    assert_eq!((after.generation, after.inline, data.unwrap()), (1, true, b"hello".to_vec()));
    assert_eq!((after.size, after.allocated), (before.size, before.allocated));
    assert_eq!((after.mtime, after.ctime), (before.mtime, before.ctime));
    let [(_, deletion)] = super::super::deletions(&world.store, 9).unwrap().try_into().unwrap();
    assert_eq!((deletion.ino, deletion.generation), (small, 0));

    let large = world.file(ROOT, "large");
    world.op(wrote(large, 0, 1000, 1000)).unwrap();
    world.op(Op::CutTail { ino: large }).unwrap();
    let [(id, trim)] = super::super::trims_of(&world.store, large).unwrap().try_into().unwrap();
    assert_eq!((trim.from, trim.end), (1000, 1000));
    world.run(Action::TrimDone { id, freed: 300 }).unwrap();
    assert_eq!((world.attr(large).allocated, world.attr(large).size), (1000, 1000));
    assert_eq!(errno(world.op(Op::CutTail { ino: ROOT })), Errno::EISDIR);
    world.check();
}

#[test]
fn every_loss_of_positions_is_remembered_up_to_a_limit() {
    let mut world = World::new();
    assert_eq!(super::super::lost(&world.store).unwrap().ranges, []);
    let mut expected = Vec::new();
    for _ in 0..MAX_LOST + 3 {
        let before = world.state().applied;
        world.index += 100;
        world.run(Action::SkipNumbers { inodes: 10 }).unwrap();
        expected.push((before, LogIndex(before.0 + 101)));
        world.file(ROOT, &world.index.to_string());
    }
    assert_eq!(super::super::lost(&world.store).unwrap().ranges, expected[3..]);
    world.check();
}

#[test]
fn generations_that_a_lost_log_may_have_given_out_are_not_given_again() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.run(Action::SkipNumbers { inodes: 10 }).unwrap();
    let mut seen = 0;
    for expected in [1 << 16, (1 << 16) + 1] {
        world.op(wrote(file, seen, 1000, 1000)).unwrap();
        world.cut(file, 0).unwrap();
        seen = world.attr(file).generation;
        assert_eq!(seen, expected);
    }
    let new = world.file(ROOT, "new");
    world.op(wrote(new, 0, 1000, 1000)).unwrap();
    world.cut(new, 0).unwrap();
    assert_eq!(world.attr(new).generation, 1);
    world.check();
}

#[test]
fn access_times_only_move_on() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let born = world.attr(file).atime;
    let times = vec![(file, at(1)), (Ino(99), at(1)), (ROOT, at(99_999))];
    world.op(Op::Accessed { times }).unwrap();
    assert_eq!((world.attr(file).atime, world.attr(ROOT).atime), (born, at(99_999)));
    let times = vec![(file, at(5)); 4097];
    assert_eq!(errno(world.op(Op::Accessed { times })), Errno::E2BIG);
    let times = vec![(ROOT, Timestamp { secs: 0, nanos: 1 << 31 })];
    assert_eq!(errno(world.op(Op::Accessed { times })), Errno::EINVAL);
    world.check();
}
