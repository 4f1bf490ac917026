//! Payloads in pages: a table of checksums, and behind it blocks that lie at whole pages of the file.
//!
//! A block between two checksums lies on two pages, and reading it costs the kernel half as much again as reading one page. So
//! the checksums of long records are by themselves, and those of records that are read often are kept in memory, 4 bytes for each block: then
//! a read of a block is one `pread` of one page. What is in memory is believed only if it fits: a block that does not is
//! compared with the table on disk before it is called damaged.

use std::io;
use std::sync::{Arc, Mutex};

use lru::LruCache;

use super::disk::{DiskFile, read_full, read_full_now};
use super::extent::Extent;
use super::format::{Block, CRC_LEN, ChunkSeed, LogPos, block_count, get_u32};
use super::read::{Patience, Step};
use super::segment_store::SegmentStore;
use super::sync::lock;

/// What a table takes in memory besides its checksums.
const ENTRY_BYTES: usize = 96;

/// The checksums of a record's blocks.
pub(super) type Table = Arc<[u32]>;

/// Tables of records that were read, by where their blocks begin. The one that came first goes first.
pub(super) struct Tables {
    most_bytes: usize,
    cached: Mutex<Cached>,
}

struct Cached {
    tables: LruCache<LogPos, Table>,
    bytes: usize,
}

fn bytes_of(table: &Table) -> usize {
    ENTRY_BYTES + size_of_val::<[u32]>(table)
}

impl Tables {
    pub(super) fn new(most_bytes: usize) -> Self {
        let cached = Cached { tables: LruCache::unbounded(), bytes: 0 };
        Self { most_bytes, cached: Mutex::new(cached) }
    }

    fn get(&self, at: LogPos) -> Option<Table> {
        // Without moving it to the front: that costs more than to read a table again once in a while.
        lock(&self.cached).tables.peek(&at).cloned()
    }

    pub(super) fn put(&self, at: LogPos, table: Table) {
        let cached = &mut *lock(&self.cached);
        cached.bytes += bytes_of(&table);
        if let Some(old) = cached.tables.put(at, table) {
            cached.bytes -= bytes_of(&old);
        }
        while cached.bytes > self.most_bytes
            && let Some((_, old)) = cached.tables.pop_lru()
        {
            cached.bytes -= bytes_of(&old);
        }
    }

    fn forget(&self, at: LogPos) {
        let cached = &mut *lock(&self.cached);
        if let Some(old) = cached.tables.pop(&at) {
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
    let mut bytes = vec![0; (CRC_LEN * block_count(offset, len)) as usize];
    let Some(position) = blocks_at.checked_sub(bytes.len() as u64) else {
        return Ok(Arc::default());
    };
    let got = match patience {
        Patience::Wait => read_full(file, &mut bytes, position),
        Patience::Now => read_full_now(file, &mut bytes, position),
    }?;
    let crcs = bytes[..got].chunks_exact(CRC_LEN as usize);
    Ok(crcs.map(|crc| get_u32(crc, 0)).collect())
}

impl SegmentStore {
    /// Reads a part of an extent in pages. The first block that is not what was written, if there is one.
    pub(super) fn read_pages(
        &self,
        step: &Step<'_>,
        (file, seed): (&dyn DiskFile, ChunkSeed),
        out: &mut [u8],
        buf: &mut Vec<u8>,
        patience: Patience,
    ) -> io::Result<Option<Block>> {
        let Extent { at, .. } = *step.e;
        if let Some(table) = self.tables.get(at) {
            if step.read_pages(file, (seed, &table), out, buf, patience)?.is_none() {
                return Ok(None);
            }
            self.tables.forget(at);
        }
        let table = read_table(file, at.at.into(), step.record, patience)?;
        let unsound = step.read_pages(file, (seed, &table), out, buf, patience)?;
        if unsound.is_none() {
            self.tables.put(at, table);
        }
        Ok(unsound)
    }
}

impl Step<'_> {
    /// Reads blocks that have no checksums in between.
    fn read_pages(
        &self,
        file: &dyn DiskFile,
        (seed, table): (ChunkSeed, &Table),
        out: &mut [u8],
        buf: &mut Vec<u8>,
        patience: Patience,
    ) -> io::Result<Option<Block>> {
        let whole = self.is_whole();
        let bytes = match whole {
            true => &mut *out,
            false => {
                buf.resize((self.last.at + self.last.len - self.first.at) as usize, 0);
                buf.as_mut_slice()
            }
        };
        let got = match patience {
            Patience::Wait => read_full(file, bytes, self.position()),
            Patience::Now => read_full_now(file, bytes, self.position()),
        }?;
        let unsound = self.blocks().find(|block| {
            let at = (block.at - self.first.at) as usize;
            let end = at + block.len as usize;
            let crc = || seed.crc(block.offset, &bytes[at..end]);
            end > got || table.get(self.number(block)).is_none_or(|stored| *stored != crc())
        });
        if !whole && unsound.is_none() {
            let skip = (self.from - self.first.offset) as usize;
            out.copy_from_slice(&buf[skip..skip + out.len()]);
        }
        Ok(unsound)
    }
}
