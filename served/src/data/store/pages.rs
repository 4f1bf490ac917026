//! Payloads in pages: a table of checksums, and behind it blocks that lie at whole pages of the file.
//!
//! A block between two checksums lies on two pages, and reading it costs the kernel half as much again as reading one page. So
//! the checksums of long records are by themselves, and those of records that are read often are kept in memory, 4 bytes for each block: then
//! a read of a block is one `pread` of one page. What is in memory is believed only if it fits: a block that does not is
//! compared with the table on disk before it is called damaged.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Mutex;

use super::disk::{DiskFile, read_full_onto};
use super::format::{Block, CRC_LEN, ChunkSeed, LogPos, block_count, get_u32};
use super::read::{Patience, STEP_BLOCKS, Step};
use super::segment_store::SegmentStore;
use super::sync::lock;

/// What a table takes in memory besides its checksums.
const ENTRY_BYTES: usize = 96;

/// The checksums of a record's blocks.
pub(super) type Table = Box<[u32]>;

/// Tables of records that were read, by where their blocks begin. The one that came first goes first: to keep count of which was
/// used last costs each small read more than to read a table again once in a while.
pub(super) struct Tables {
    most_bytes: usize,
    cached: Mutex<Cached>,
}

#[derive(Default)]
struct Cached {
    tables: HashMap<LogPos, Table, lru::DefaultHasher>,
    /// The tables as they came.
    order: VecDeque<LogPos>,
    bytes: usize,
}

fn bytes_of(table: &Table) -> usize {
    ENTRY_BYTES + size_of_val::<[u32]>(table)
}

impl Tables {
    pub(super) fn new(most_bytes: usize) -> Self {
        Self { most_bytes, cached: Mutex::default() }
    }

    /// Has the checksum of a block at hand soon. Of many gigabytes they are not in the processor's cache, and to fetch it from
    /// memory takes a tenth of the time of a small read, unless it happens while the system reads.
    fn expect(&self, at: LogPos, block: usize) {
        if let Some(crc) = lock(&self.cached).tables.get(&at).and_then(|table| table.get(block)) {
            prefetch(crc);
        }
    }

    /// Whether these are the checksums of a record's blocks from one on; not if they are not in memory.
    fn confirm(&self, at: LogPos, first: usize, found: &[u32]) -> bool {
        // Compared under the lock: that takes less than to share the table.
        let cached = lock(&self.cached);
        let stored = cached.tables.get(&at).and_then(|table| table.get(first..));
        stored.is_some_and(|stored| stored.starts_with(found))
    }

    pub(super) fn put(&self, at: LogPos, table: Table) {
        let cached = &mut *lock(&self.cached);
        cached.bytes += bytes_of(&table);
        match cached.tables.insert(at, table) {
            Some(old) => cached.bytes -= bytes_of(&old),
            None => cached.order.push_back(at),
        }
        while cached.bytes > self.most_bytes
            && let Some(first) = cached.order.pop_front()
            && let Some(old) = cached.tables.remove(&first)
        {
            cached.bytes -= bytes_of(&old);
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        lock(&self.cached).bytes
    }
}

/// Reads the table of a payload whose blocks begin at a position. Of one that the file does not have, nothing.
pub(super) fn read_table(
    file: &dyn DiskFile,
    blocks_at: u64,
    (offset, len): (u32, u32),
    patience: Patience,
) -> io::Result<Table> {
    let len = (CRC_LEN * block_count(offset, len)) as usize;
    let Some(position) = blocks_at.checked_sub(len as u64) else {
        return Ok(Table::default());
    };
    let mut bytes = Vec::with_capacity(len);
    read_full_onto(file, &mut bytes, len, position, patience == Patience::Wait)?;
    let crcs = bytes.chunks_exact(CRC_LEN as usize);
    Ok(crcs.map(|crc| get_u32(crc, 0)).collect())
}

/// Tells the processor that a value will be needed.
fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every processor of this kind has the instruction, and it is a hint that has no effect besides time.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

impl SegmentStore {
    /// Reads a part of an extent in pages, behind what `out` has. The first block that is not what was written, if there is one.
    pub(super) fn read_pages(
        &self,
        step: &Step<'_>,
        (file, seed): (&dyn DiskFile, ChunkSeed),
        out: &mut Vec<u8>,
        buf: &mut Vec<u8>,
        patience: Patience,
    ) -> io::Result<Option<Block>> {
        let wait = patience == Patience::Wait;
        let stored = (step.last.at + step.last.len - step.first.at) as usize;
        self.tables.expect(step.e.at, step.number(&step.first));
        let whole = step.is_whole();
        let bytes = if whole {
            let start = out.len();
            read_full_onto(file, out, stored, step.position(), wait)?;
            &out[start..]
        } else {
            buf.clear();
            read_full_onto(file, buf, stored, step.position(), wait)?;
            buf.as_slice()
        };
        let mut crcs = [0; STEP_BLOCKS as usize];
        let mut complete = 0;
        for (block, crc) in step.blocks().zip(&mut crcs) {
            let at = (block.at - step.first.at) as usize;
            let Some(data) = bytes.get(at..at + block.len as usize) else { break };
            *crc = seed.crc(block.offset, data);
            complete += 1;
        }
        let unsound = self.first_unsound(step, file, &crcs[..complete], patience)?;
        if !whole && unsound.is_none() {
            let skip = (step.from - step.first.offset) as usize;
            out.extend_from_slice(&buf[skip..skip + (step.to - step.from) as usize]);
        }
        Ok(unsound)
    }

    /// The first block of a step whose checksum is not the one that was found, or was not.
    fn first_unsound(
        &self,
        step: &Step<'_>,
        file: &dyn DiskFile,
        found: &[u32],
        patience: Patience,
    ) -> io::Result<Option<Block>> {
        let (at, number) = (step.e.at, step.number(&step.first));
        let all = step.number(&step.last) + 1 - number;
        if found.len() == all && self.tables.confirm(at, number, found) {
            return Ok(None);
        }
        let table = read_table(file, at.at.into(), step.record, patience)?;
        let stored = table.get(number..).unwrap_or_default();
        let sound = stored.iter().zip(found).take_while(|(stored, found)| stored == found).count();
        let unsound = step.blocks().nth(sound);
        if unsound.is_none() {
            self.tables.put(at, table);
        }
        Ok(unsound)
    }
}
