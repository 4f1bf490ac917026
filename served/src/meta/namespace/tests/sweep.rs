//! Chunks that belong to nobody, and the numbers of inodes that they take.

use netfs_common::map::{INODE_BITS, volume_of};

use super::*;
use crate::meta::keys;
use crate::meta::record;

const FIRST: u64 = 1 << INODE_BITS | 2;

fn world() -> World {
    World::with(Settings { first_ino: FIRST, ..Settings::default() })
}

fn sweep(world: &mut World, inos: impl IntoIterator<Item = u64>) {
    let gone = inos.into_iter().map(|ino| (Ino(ino), 0)).collect();
    assert_eq!(world.run(Action::Sweep { gone, tails: Vec::new() }), Ok(Response::Done));
}

fn removals(world: &World) -> usize {
    super::super::deletions(&world.store, 1000).unwrap().len()
}

#[test]
fn the_number_of_a_stray_chunk_is_left_out() {
    let mut world = world();
    let file = world.file(ROOT, "f");
    sweep(&mut world, [file.0 + 5000, file.0 + 10]);
    assert_eq!((world.state().next_ino, removals(&world)), (file.0 + 5001, 2));
    assert_eq!(world.file(ROOT, "g").0, file.0 + 5001);
    world.check();
}

#[test]
fn stray_chunks_take_few_numbers_however_they_are_chosen() {
    let mut world = world();
    let next = world.state().next_ino;
    // Each only a little above the one before, and all of them together as far as the next volume.
    for step in [1 << (INODE_BITS - 8), (1 << (INODE_BITS - 8)) - 1, 1 << 19] {
        sweep(&mut world, (1..=255).map(|n| next + n * step));
    }
    let left_out = world.state().next_ino - next;
    assert!(left_out < 3 << 20, "{left_out} numbers are left out");
    assert_eq!(volume_of(world.file(ROOT, "f")), 1);
    world.check();
}

#[test]
fn a_volume_without_numbers_is_full() {
    let mut world = world();
    let mut state = world.state();
    state.next_ino = (2 << INODE_BITS) - 1;
    let batch = [(keys::state(), Some(record::encode(&state).unwrap()))].into_iter().collect();
    world.store.commit(batch).unwrap();
    assert_eq!(volume_of(world.file(ROOT, "last")), 1);
    assert_eq!(world.create(ROOT, "more", NewInode::File), Err(Errno::ENOSPC));
    assert_eq!(world.create(ROOT, "more", NewInode::Dir), Err(Errno::ENOSPC));
    world.unlink(ROOT, "last").unwrap();
}

#[test]
fn numbers_that_are_left_out_are_those_of_the_volume() {
    let mut world = world();
    let file = world.file(ROOT, "f");
    let leave_out = |world: &mut World, below| world.run(Action::LeaveOut { below: Ino(below) });
    assert_eq!(leave_out(&mut world, file.0 + 5000), Ok(Response::Done));
    assert_eq!(world.file(ROOT, "g").0, file.0 + 5000);
    assert_eq!(leave_out(&mut world, file.0), Ok(Response::Done));
    assert_eq!(world.file(ROOT, "h").0, file.0 + 5001, "they never go back");
    assert_eq!(errno(leave_out(&mut world, 2 << INODE_BITS)), Errno::EINVAL);
    assert_eq!(world.file(ROOT, "i").0, file.0 + 5002);
    // Generations are left out too: of all files that there were.
    let (end, allocated) = (1000, 1000);
    let wrote = Op::WroteChunks { ino: file, generation: 0, end, allocated, mtime: at(1) };
    world.op(wrote).unwrap();
    world.cut(file, 0).unwrap();
    assert_eq!(world.attr(file).generation, 1 << 16);
    world.check();
}
