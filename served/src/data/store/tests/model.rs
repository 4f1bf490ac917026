//! Random operations, power failures and kills, beside a model that cannot fail.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use netfs_common::map::INODE_BITS;

use super::super::disk::Disk;
use super::super::disk::sim::{Dice, Holes, SimDisk};
use super::super::holes::Aim;
use super::super::snapshot::SNAPSHOT_FILE;
use super::super::{ChunkKey, ChunkVersion, SegmentStore, StoreConfig, StoreError};
use super::{KIB, assert_clean, assert_rebuilds, small, try_open};
use crate::data::codec::Codec;

const CHUNK: usize = 48 << 10;
const INOS: u64 = 3;
const CHUNKS: u64 = 3;

/// What the store should hold, with the version of the last change. A chunk that is not there is a hole.
#[derive(Clone, Default, PartialEq)]
struct Model(BTreeMap<ChunkKey, Content>);

/// Each of a volume of its own.
fn ino(n: u64) -> u64 {
    n << INODE_BITS | n
}

/// How each volume is stored.
struct Volumes(Vec<Codec>);

impl Volumes {
    fn random(dice: &mut Dice) -> Self {
        Self((0..INOS).map(|_| super::codecs::some_codec(dice.below(9), 12)).collect())
    }

    fn begin(&self, store: &SegmentStore) {
        for (volume, codec) in (1..).zip(&self.0) {
            store.set_codec(volume, Some(Arc::new(codec.clone())));
        }
    }
}

type Content = (Arc<Vec<u8>>, ChunkVersion);

/// What a bucket would hold: chunks as they were in some version.
type Objects = BTreeMap<(ChunkKey, ChunkVersion), Vec<u8>>;

thread_local! {
    static BUCKET: RefCell<Objects> = RefCell::default();
}

fn object(key: ChunkKey, version: ChunkVersion) -> Vec<u8> {
    BUCKET.with_borrow(|objects| objects[&(key, version)].clone())
}

/// All of a chunk, wherever it is, without bringing anything back.
fn read_wherever(store: &SegmentStore, key: ChunkKey) -> Vec<u8> {
    let Some(parts) = store.away(key) else { return store.read(key, 0, CHUNK as u64).unwrap() };
    let mut data = vec![0; CHUNK];
    let mut at = 0;
    let object = object(key, parts.object);
    for (offset, len) in parts.ranges {
        let (start, end) = (offset as usize, (offset + len) as usize);
        let here = store.read(key, at as u64, (start - at) as u64).unwrap();
        data[at..start].copy_from_slice(&here);
        let gone = store.read(key, offset.into(), len.into());
        assert!(matches!(gone, Err(StoreError::Away { .. })), "{gone:?}");
        data[start..end].copy_from_slice(&object[start..end]);
        at = end;
    }
    let here = store.read(key, at as u64, (CHUNK - at) as u64).unwrap();
    data[at..].copy_from_slice(&here);
    data
}

fn bring_back(store: &SegmentStore, key: ChunkKey) -> Result<(), StoreError> {
    let Some(parts) = store.away(key) else { return Ok(()) };
    let object = object(key, parts.object);
    let fill = |at: u32, out: &mut [u8]| out.copy_from_slice(&object[at as usize..][..out.len()]);
    store.bring_back(key, parts.object, fill)?;
    assert_eq!(store.away(key), None);
    Ok(())
}

fn send_away(store: &SegmentStore, key: ChunkKey) -> Result<(), StoreError> {
    let version = store.version(key);
    if version == ChunkVersion::UNKNOWN {
        return Ok(());
    }
    if store.away(key).is_none() {
        let data = read_wherever(store, key);
        BUCKET.with_borrow_mut(|objects| objects.insert((key, version), data));
    }
    store.send_away(key, version).map(drop)
}

fn all_keys() -> Vec<ChunkKey> {
    let keys = (1..=INOS).flat_map(|n| (0..CHUNKS).map(move |index| (ino(n), index)));
    keys.map(|(ino, index)| ChunkKey { ino, generation: 1, index }).collect()
}

impl Model {
    fn get(&self, key: &ChunkKey) -> Arc<Vec<u8>> {
        self.0.get(key).map_or_else(|| Arc::new(vec![0; CHUNK]), |(data, _)| data.clone())
    }

    fn version(&self, key: &ChunkKey) -> ChunkVersion {
        self.0.get(key).map_or(ChunkVersion::UNKNOWN, |(_, version)| *version)
    }

    fn edit(&mut self, key: ChunkKey, version: ChunkVersion, change: impl FnOnce(&mut [u8])) {
        let mut data = self.get(&key);
        change(Arc::make_mut(&mut data).as_mut_slice());
        self.0.insert(key, (data, version));
    }

    fn of(store: &SegmentStore) -> Self {
        let read = |key| {
            let data = Arc::new(read_wherever(store, key));
            (key, (data, store.version(key)))
        };
        Self(all_keys().into_iter().map(read).collect())
    }

    /// Whether a store that shows `found` holds this.
    fn same(&self, found: &Self, except: Option<ChunkKey>) -> bool {
        let same = |key: &ChunkKey| {
            let (data, version) = (self.get(key), found.version(key));
            // Where nothing but zeros is there may be no chunk, and then there is no version.
            let gone = version == ChunkVersion::UNKNOWN && data.iter().all(|byte| *byte == 0);
            data == found.get(key) && (version == self.version(key) || gone)
        };
        all_keys().iter().all(|key| Some(*key) == except || same(key))
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write {
        key: ChunkKey,
        offset: usize,
        data: Vec<u8>,
        version: ChunkVersion,
    },
    Punch {
        key: ChunkKey,
        offset: usize,
        len: usize,
        version: ChunkVersion,
    },
    Stamp {
        key: ChunkKey,
        version: ChunkVersion,
    },
    Delete {
        ino: u64,
        from: u64,
    },
    DeleteOne {
        key: ChunkKey,
    },
    SendAway {
        key: ChunkKey,
    },
    BringBack {
        key: ChunkKey,
    },
    Copy {
        from: ChunkKey,
        from_offset: usize,
        to: ChunkKey,
        to_offset: usize,
        len: usize,
        version: ChunkVersion,
    },
}

impl Op {
    fn random(dice: &mut Dice) -> Self {
        let some_key = |dice: &mut Dice| ChunkKey {
            ino: ino(1 + dice.below(INOS)),
            generation: 1,
            index: dice.below(CHUNKS),
        };
        let range = |dice: &mut Dice| {
            let longest = [100, 5000, 5000, 20_000, CHUNK as u64][dice.below(5) as usize];
            let len = 1 + dice.below(longest) as usize;
            let mut offset = dice.below((CHUNK - len) as u64 + 1) as usize;
            if dice.below(2) == 0 {
                offset = offset / 4096 * 4096;
            }
            (offset, len)
        };
        let key = some_key(dice);
        let (offset, len) = range(dice);
        // One in eight has none; the others are all different, and in no order.
        let version = match dice.below(8) {
            0 => ChunkVersion::UNKNOWN,
            _ => ChunkVersion(dice.next()),
        };
        match dice.below(27) {
            0..12 => {
                let tag = dice.next();
                let data = (0..len as u64)
                    .map(|i| ((tag ^ (i / 7).wrapping_mul(tag | 1)) % 255) as u8 + 1)
                    .collect();
                Self::Write { key, offset, data, version }
            }
            12..16 => Self::Punch { key, offset, len, version },
            16..18 => Self::Delete { ino: key.ino, from: dice.below(CHUNKS) },
            18 => Self::DeleteOne { key },
            19 => Self::Stamp { key, version },
            22..25 => Self::SendAway { key },
            25 => Self::BringBack { key },
            _ => {
                let to_offset = dice.below((CHUNK - len) as u64 + 1) as usize;
                let (from_offset, to) = (offset, some_key(dice));
                Self::Copy { from: key, from_offset, to, to_offset, len, version }
            }
        }
    }

    fn run(&self, store: &SegmentStore, dice: &mut Dice) -> Result<(), StoreError> {
        let allocated = || {
            let all = store.list(ChunkKey::MIN, usize::MAX);
            all.iter().map(|info| info.allocated_bytes as i64).sum::<i64>()
        };
        let before = allocated();
        let grown = self.change(store, dice)?;
        assert_eq!(allocated() - before, grown, "{self:?} told a wrong growth");
        Ok(())
    }

    fn change(&self, store: &SegmentStore, dice: &mut Dice) -> Result<i64, StoreError> {
        match self {
            Self::Write { key, offset, data, version } => {
                let cut = dice.below(data.len() as u64 + 1) as usize;
                store.write(*key, *offset as u64, &[&data[..cut], &data[cut..]], *version)
            }
            Self::Punch { key, offset, len, version } => {
                store.punch(*key, *offset as u64, *len as u64, *version)
            }
            Self::Stamp { key, version } => store.stamp(*key, *version).map(|_| 0),
            Self::Delete { ino, from } => store.delete_chunks(*ino, 1, *from),
            Self::DeleteOne { key } => store.delete_chunk(*key),
            Self::SendAway { key } => send_away(store, *key).map(|()| 0),
            Self::BringBack { key } => bring_back(store, *key).map(|()| 0),
            Self::Copy { from, from_offset, to, to_offset, len, version } => {
                bring_back(store, *from)?;
                let (source, target) = (*from_offset as u64, *to_offset as u64);
                store.copy(*from, source, *to, target, *len as u64, *version)
            }
        }
    }

    fn apply(&self, model: &mut Model) {
        match self {
            Self::Write { key, offset, data, version } => {
                model.edit(*key, *version, |c| {
                    c[*offset..offset + data.len()].copy_from_slice(data);
                });
            }
            Self::Punch { key, offset, len, version } => {
                model.edit(*key, *version, |c| c[*offset..offset + len].fill(0))
            }
            Self::Stamp { key, version } => model.edit(*key, *version, |_| {}),
            Self::DeleteOne { key } => drop(model.0.remove(key)),
            Self::SendAway { .. } | Self::BringBack { .. } => {}
            Self::Delete { ino, from } => model.0.retain(|k, _| k.ino != *ino || k.index < *from),
            Self::Copy { from, from_offset, to, to_offset, len, version } => {
                let data = model.get(from)[*from_offset..from_offset + len].to_vec();
                model.edit(*to, *version, |c| {
                    c[*to_offset..to_offset + len].copy_from_slice(&data);
                });
            }
        }
    }

    /// The chunk that changes in several records, of which some may be lost.
    fn in_steps(&self) -> Option<ChunkKey> {
        match self {
            Self::Copy { to, .. } => Some(*to),
            _ => None,
        }
    }
}

/// The states that a crash may leave: after the last flush, and after each operation since.
struct History {
    states: Vec<(Model, Option<Op>)>,
}

impl History {
    fn now(&self) -> &Model {
        &self.states.last().unwrap().0
    }

    fn accepts(&self, found: &Model) -> bool {
        let whole = self.states.iter().any(|(state, _)| state.same(found, None));
        whole
            || self.states.windows(2).any(|pair| {
                let [(before, _), (after, Some(op))] = pair else { return false };
                let Some(key) = op.in_steps() else { return false };
                let (old, new, is) = (before.get(&key), after.get(&key), found.get(&key));
                let each = is.iter().zip(old.iter().zip(new.iter()));
                // A part of a change must not pass for the whole, nor for what was before.
                found.version(&key) == ChunkVersion::UNKNOWN
                    && before.same(found, Some(key))
                    && each.into_iter().all(|(is, (old, new))| is == old || is == new)
            })
    }
}

fn check_extents(store: &SegmentStore, model: &Model) {
    for key in all_keys() {
        let extents = store.extents(key);
        let mut covered = vec![false; CHUNK];
        for (offset, len) in &extents {
            covered[*offset as usize..(offset + len) as usize].fill(true);
        }
        let data = model.get(&key);
        assert!(
            data.iter().zip(&covered).all(|(byte, covered)| *byte == 0 || *covered),
            "data outside of extents"
        );
        assert_eq!(store.allocated_bytes(key), extents.iter().map(|(_, len)| len).sum::<u64>());
    }
}

/// With `sweeps`, something is made of what is dead whenever it pleases the dice.
pub(super) fn one_history(seed: u64, sweeps: Option<Aim>) {
    let mut dice = Dice(seed);
    BUCKET.with_borrow_mut(BTreeMap::clear);
    let disk = SimDisk::new(seed ^ 0xd15c, 64 << 20);
    if sweeps == Some(Aim::Slots) && seed.is_multiple_of(2) {
        // The store finds that out by itself.
        disk.set_holes(Holes::None);
    }
    let mut store = try_open(&disk, small()).unwrap().0;
    let volumes = Volumes::random(&mut dice);
    volumes.begin(&store);
    let mut history = History { states: vec![(Model::default(), None)] };
    for _ in 0..4 {
        // Half of the lives end in the middle of some change.
        let fuse = (dice.below(2) == 0).then(|| 1 + dice.below(200));
        disk.set_fuse(fuse);
        let mut failed = false;
        for _ in 0..dice.below(60) {
            let result = match dice.below(24) {
                0 | 1 => store.flush().inspect(|()| {
                    let now = history.now().clone();
                    history.states = vec![(now, None)];
                }),
                2..6 => store.reclaim_step().map(drop),
                6 => store.checkpoint(),
                8..11 if let Some(aim) = sweeps => store.sweep_all(aim).map(drop),
                7 => {
                    if read_wherever(&store, all_keys()[0]) != *history.now().get(&all_keys()[0]) {
                        panic!("seed {seed}: a read is wrong");
                    }
                    Ok(())
                }
                _ => {
                    let op = Op::random(&mut dice);
                    let mut next = history.now().clone();
                    op.apply(&mut next);
                    history.states.push((next, Some(op.clone())));
                    op.run(&store, &mut dice)
                }
            };
            if let Err(e) = result {
                assert!(fuse.is_some(), "seed {seed}: {e}");
                failed = true;
                break;
            }
        }
        if !failed {
            let found = Model::of(&store);
            assert!(
                history.now().same(&found, None),
                "seed {seed}: content is wrong while running"
            );
            check_extents(&store, &found);
            assert_rebuilds(&store, &disk);
        }
        store = restart(seed, (store, &volumes), &disk, &mut dice, &mut history);
    }
}

/// Ends the process, or the power; opens again, possibly interrupted; compares.
fn restart(
    seed: u64,
    (store, volumes): (SegmentStore, &Volumes),
    disk: &SimDisk,
    dice: &mut Dice,
    history: &mut History,
) -> SegmentStore {
    drop(store);
    disk.set_fuse(None);
    let power_fails = dice.below(4) > 0;
    if power_fails {
        disk.power_cycle();
    }
    if dice.below(3) == 0 {
        disk.set_fuse(Some(1 + dice.below(12)));
        drop(try_open(disk, small()));
        disk.set_fuse(None);
        disk.power_cycle();
    }
    assert_clean(disk);
    // The versions come from the log alone then.
    if dice.below(3) == 0 && disk.list().unwrap().iter().any(|name| name == SNAPSHOT_FILE) {
        disk.remove(SNAPSHOT_FILE).unwrap();
    }
    let (store, report) = try_open(disk, small()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    volumes.begin(&store);
    assert!(report.is_clean() && report.snapshot_fault.is_none(), "seed {seed}: {report:?}");
    let found = Model::of(&store);
    assert!(
        history.accepts(&found),
        "seed {seed}: after a crash the content is no prefix of what was done"
    );
    check_extents(&store, &found);
    assert_clean(disk);
    assert_rebuilds(&store, disk);
    history.states = vec![(found, None)];
    store
}

#[test]
fn random_histories_with_crashes_agree_with_the_model() {
    let first = std::env::var("NETFS_STORE_SEED").ok().and_then(|s| s.parse().ok());
    let count = std::env::var("NETFS_STORE_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(200);
    let seeds = first.map_or(1..count + 1, |seed: u64| seed..seed + 1);
    // 1507: a reclaimed segment ended in a record that nothing proved durable.
    for seed in seeds.chain(first.is_none().then_some(1507)) {
        for sweeps in [None, Some(Aim::Holes), Some(Aim::Slots)] {
            let result = std::panic::catch_unwind(|| one_history(seed, sweeps));
            assert!(result.is_ok(), "NETFS_STORE_SEED={seed} shows it, with sweeps: {sweeps:?}");
        }
    }
}

#[test]
fn a_store_under_churn_keeps_its_size() {
    let disk = SimDisk::new(1, 2 << 20);
    let config = StoreConfig { reserve_bytes: 128 * KIB, ..small() };
    let store = try_open(&disk, config).unwrap().0;
    let mut dice = Dice(9);
    for round in 0..600 {
        let key = all_keys()[dice.below(9) as usize];
        store.write(key, 0, &[vec![round as u8; CHUNK]], ChunkVersion(round)).unwrap();
    }
    super::reclaim_all(&store);
    let usage = store.usage().unwrap();
    assert_eq!(usage.live_bytes, 9 * CHUNK as u64);
    assert!(usage.dead_bytes < 128 * KIB, "{usage:?}");
    assert_clean(&disk);
}
