//! The inodes of all volumes, gone through in the order of the chunks. Of each volume one page is held.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use netfs_common::attr::{Attr, FileKind};
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Ino};

use super::MAX_SUSPECTS;
use crate::meta::server::volume::Volume;

/// Inodes on one page. Reading it holds up everybody else.
const PAGE: usize = 512;

/// A file that is being looked at.
struct Current {
    attr: Attr,
    /// Chunks of its present contents that were seen.
    chunks: u64,
}

struct Cursor {
    volume: Arc<Volume>,
    page: VecDeque<Attr>,
    next: Option<Ino>,
    current: Option<Current>,
}

/// All of them.
pub(super) struct Files {
    volumes: BTreeMap<u64, Cursor>,
    notes: Notes,
}

/// What was noted on the way.
#[derive(Default)]
struct Notes {
    /// Files of which fewer chunks were seen than their data fills.
    lacking: BTreeSet<(Ino, u32)>,
    counted: u64,
}

/// Whether a file's data is counted, and in chunks.
fn counts(attr: &Attr) -> bool {
    attr.kind == FileKind::File && !attr.inline && attr.allocated > 0
}

/// How many chunks a file's data fills at least. Where there are holes it may be in more.
pub(super) fn fewest(attr: &Attr) -> u64 {
    if counts(attr) { attr.allocated.div_ceil(attr.chunk_size().max(1)) } else { 0 }
}

impl Files {
    pub(super) fn new(volumes: &[Arc<Volume>]) -> Files {
        let cursor = |volume: &Arc<Volume>| {
            let (page, next) = (VecDeque::new(), Some(Ino(0)));
            (volume.number(), Cursor { volume: volume.clone(), page, next, current: None })
        };
        let volumes = volumes.iter().map(cursor).collect();
        Files { volumes, notes: Notes::default() }
    }

    /// Files with data that were seen.
    pub(super) fn counted(&self) -> u64 {
        self.notes.counted
    }

    /// The inode of a chunk, as it was not long ago. Chunks of a volume come in ascending order.
    pub(super) async fn go_to(
        &mut self,
        volume: u64,
        chunk: ChunkId,
    ) -> Result<Option<Attr>, Errno> {
        let Some(cursor) = self.volumes.get_mut(&volume) else { return Ok(None) };
        if cursor.current.as_ref().is_none_or(|current| current.attr.ino != chunk.ino) {
            cursor.pass(Some(chunk.ino), &mut self.notes).await?;
        }
        let Some(current) = cursor.current.as_mut() else { return Ok(None) };
        current.chunks += u64::from(current.attr.generation == chunk.generation);
        Ok(Some(current.attr.clone()))
    }

    /// Goes to the end. Files of which fewer chunks were seen than their data fills, the first of them.
    pub(super) async fn finish(&mut self) -> Result<BTreeSet<(Ino, u32)>, Errno> {
        for cursor in self.volumes.values_mut() {
            cursor.pass(None, &mut self.notes).await?;
        }
        Ok(std::mem::take(&mut self.notes.lacking))
    }
}

impl Notes {
    fn passed(&mut self, Current { attr, chunks }: Current) {
        if !counts(&attr) {
            return;
        }
        self.counted += 1;
        if chunks < fewest(&attr) && self.lacking.len() < MAX_SUSPECTS {
            self.lacking.insert((attr.ino, attr.generation));
        }
    }
}

impl Cursor {
    /// Goes on to an inode, which is the current one then if it is there, or to the end.
    async fn pass(&mut self, to: Option<Ino>, notes: &mut Notes) -> Result<(), Errno> {
        if let Some(current) = self.current.take() {
            notes.passed(current);
        }
        loop {
            let Some(first) = self.page.front() else {
                let Some(from) = self.next else { return Ok(()) };
                self.page = self.volume.engine.inodes_from(from, PAGE)?.into();
                let last = self.page.back().filter(|_| self.page.len() >= PAGE);
                self.next = last.map(|last| Ino(last.ino.0 + 1));
                // Others have their turn.
                tokio::task::yield_now().await;
                continue;
            };
            if to.is_some_and(|to| first.ino > to) {
                return Ok(());
            }
            let Some(attr) = self.page.pop_front() else { continue };
            let found = to == Some(attr.ino);
            let current = Current { attr, chunks: 0 };
            if found {
                self.current = Some(current);
                return Ok(());
            }
            notes.passed(current);
        }
    }
}
