//! Reads the records of one segment in order, and finds its way again behind damage.

use std::io;

use super::disk::{DiskFile, read_full};
use super::error::StoreError;
use super::format::{
    BLOCK, CRC_LEN, ChunkSeed, Form, RECORD_ALIGN, RECORD_HEADER_LEN, RECORD_MAGIC, RecordHeader,
    SegmentId, SegmentSeed, block_in, get_u32, segment_name,
};
use super::packed::verify_packed;
use super::pages::{Table, read_table};
use super::read::Patience;

/// What is at a position of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Item {
    /// A record with a valid header, complete as far as the file's length tells.
    Record { at: u64, header: RecordHeader },
    /// Nothing that can be understood, up to the next valid record or the end.
    Damage { from: u64, to: u64, unreadable: bool },
}

const WINDOW: usize = 64 << 10;
const PAGE: u64 = 4096;

/// Walks over a segment.
pub(super) struct Scanner<'a> {
    file: &'a dyn DiskFile,
    segment: SegmentId,
    seed: SegmentSeed,
    at: u64,
    end: u64,
    window: Vec<u8>,
    window_at: u64,
    /// The last record was so long that the next header is all that is worth reading.
    sparse: bool,
    /// A read failed since the last item: what is in the window is not what is on disk.
    unreadable: bool,
}

impl<'a> Scanner<'a> {
    /// Scans from a record's begin up to `end`, which must be within the file.
    pub(super) fn new(
        file: &'a dyn DiskFile,
        segment: SegmentId,
        seed: SegmentSeed,
        from: u64,
        end: u64,
    ) -> Self {
        Self {
            file,
            segment,
            seed,
            at: from,
            end,
            window: Vec::new(),
            window_at: 0,
            sparse: false,
            unreadable: false,
        }
    }

    /// Where the next item begins.
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    /// The next item, `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Item>, StoreError> {
        if self.at >= self.end {
            return Ok(None);
        }
        self.unreadable = false;
        if let Some(header) = self.header_at(self.at)? {
            let at = self.at;
            self.at += header.footprint();
            self.sparse = header.footprint() >= WINDOW as u64 / 4;
            return Ok(Some(Item::Record { at, header }));
        }
        self.sparse = false;
        let from = self.at;
        self.at = (from + 1).next_multiple_of(RECORD_ALIGN);
        while self.at < self.end && self.header_at(self.at)?.is_none() {
            self.at += RECORD_ALIGN;
        }
        self.at = self.at.min(self.end);
        Ok(Some(Item::Damage { from, to: self.at, unreadable: self.unreadable }))
    }

    fn header_at(&mut self, at: u64) -> Result<Option<RecordHeader>, StoreError> {
        if at + RECORD_HEADER_LEN as u64 > self.end {
            return Ok(None);
        }
        let window_end = self.window_at + self.window.len() as u64;
        if at < self.window_at || at + RECORD_HEADER_LEN as u64 > window_end {
            self.fill(at)?;
        }
        let start = (at - self.window_at) as usize;
        let bytes = &self.window[start..];
        if bytes.len() < RECORD_HEADER_LEN || bytes[..4] != RECORD_MAGIC {
            return Ok(None);
        }
        let header = RecordHeader::decode(bytes, self.seed, at);
        Ok(header.filter(|h| at + h.footprint() <= self.end))
    }

    fn fill(&mut self, at: u64) -> Result<(), StoreError> {
        let window = if self.sparse { RECORD_HEADER_LEN } else { WINDOW };
        let want = window.min((self.end - at) as usize);
        self.window.clear();
        self.window.resize(want, 0);
        self.window_at = at;
        match read_full(self.file, &mut self.window, at) {
            Ok(n) => self.window.truncate(n),
            Err(e) if is_medium_error(&e) => self.fill_by_page(at)?,
            Err(e) => return Err(StoreError::io("read", segment_name(self.segment))(e)),
        }
        Ok(())
    }

    /// Some of the window cannot be read: leaves zeros, which are no record, only where that is so.
    fn fill_by_page(&mut self, at: u64) -> Result<(), StoreError> {
        self.unreadable = true;
        let mut done = 0;
        while done < self.window.len() {
            let page_end = (at + done as u64 + 1).next_multiple_of(PAGE) - at;
            let to = self.window.len().min(page_end as usize);
            if let Err(e) = read_full(self.file, &mut self.window[done..to], at + done as u64) {
                if !is_medium_error(&e) {
                    return Err(StoreError::io("read", segment_name(self.segment))(e));
                }
                self.window[done..to].fill(0);
            }
            done = to;
        }
        Ok(())
    }
}

/// Whether a failed read means that these bytes are lost, rather than that the store cannot work.
pub(super) fn is_medium_error(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EIO | libc::EILSEQ | libc::ENODATA))
}

/// A range of a record's payload, in the chunk.
pub(super) type BadRange = (u32, u32);

/// Checks the payload of the record at `at`; returns the blocks that are not what was written, neighbours joined.
pub(super) fn verify_payload(
    file: &dyn DiskFile,
    at: u64,
    h: &RecordHeader,
) -> io::Result<Vec<BadRange>> {
    const STEP_BLOCKS: u32 = 64;
    let mut bad: Vec<BadRange> = Vec::new();
    if h.stored() == 0 {
        return Ok(bad);
    }
    if let Form::Packed { offset, len, .. } = h.form {
        return verify_packed(file, at, h, (offset, len));
    }
    let seed = ChunkSeed::new(&h.key);
    let (record, data_at) = ((h.offset, h.len), h.data_at(at));
    let in_pages = matches!(h.form, Form::Pages { .. });
    let table = match in_pages {
        false => Table::default(),
        true => match read_table(file, data_at, record, Patience::Wait) {
            Err(e) if is_medium_error(&e) => Table::default(),
            other => other?,
        },
    };
    let crc_len = if in_pages { 0 } else { CRC_LEN };
    let end = h.offset + h.len;
    let mut buf = Vec::new();
    let mut from = h.offset;
    while from < end {
        let to = (from / BLOCK * BLOCK + STEP_BLOCKS * BLOCK).min(end);
        let first = block_in(in_pages, record, from);
        let last = block_in(in_pages, record, to - 1);
        buf.clear();
        buf.resize((last.at + last.len + crc_len - first.at) as usize, 0);
        let got = match read_full(file, &mut buf, data_at + u64::from(first.at)) {
            Ok(n) => n,
            Err(e) if is_medium_error(&e) => 0,
            Err(e) => return Err(e),
        };
        let mut x = from;
        while x < to {
            let block = block_in(in_pages, record, x);
            let start = (block.at - first.at) as usize;
            let stop = start + block.len as usize;
            let stored = match in_pages {
                true => table.get((block.offset / BLOCK - h.offset / BLOCK) as usize).copied(),
                false => (stop + CRC_LEN as usize <= got).then(|| get_u32(&buf, stop)),
            };
            let sound = stop <= got
                && stored.is_some_and(|crc| seed.crc(block.offset, &buf[start..stop]) == crc);
            if !sound {
                match bad.last_mut() {
                    Some((offset, len)) if *offset + *len == block.offset => *len += block.len,
                    _ => bad.push((block.offset, block.len)),
                }
            }
            x = block.offset + block.len;
        }
        from = to;
    }
    Ok(bad)
}
