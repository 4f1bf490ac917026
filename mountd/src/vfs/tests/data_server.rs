//! A data server in memory: what is not flushed is lost in a crash.

use std::collections::BTreeMap;

use bytes::Bytes;
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, InstanceId, SessionId};
use netfs_common::wire::data::{Op, Reply, Span};

/// Per byte: data or a hole.
type Chunk = Vec<Option<u8>>;

#[derive(Debug)]
pub(super) struct DataStore {
    pub(super) instance: InstanceId,
    now: BTreeMap<ChunkId, Chunk>,
    durable: BTreeMap<ChunkId, Chunk>,
    /// Nothing of these sessions happens any more.
    pub(super) fenced: Vec<SessionId>,
    /// Writes fail with this.
    pub(super) refuse: Option<Errno>,
}

impl Default for DataStore {
    fn default() -> Self {
        DataStore {
            instance: InstanceId(100),
            now: BTreeMap::new(),
            durable: BTreeMap::new(),
            fenced: Vec::new(),
            refuse: None,
        }
    }
}

fn set(map: &mut BTreeMap<ChunkId, Chunk>, id: ChunkId, at: u64, cells: &[Option<u8>]) -> i64 {
    let chunk = map.entry(id).or_default();
    let end = at as usize + cells.len();
    if chunk.len() < end {
        chunk.resize(end, None);
    }
    let part = &mut chunk[at as usize..end];
    let before = part.iter().flatten().count() as i64;
    part.copy_from_slice(cells);
    part.iter().flatten().count() as i64 - before
}

fn get(map: &BTreeMap<ChunkId, Chunk>, id: ChunkId, at: u64, len: u64) -> Vec<Option<u8>> {
    let chunk = map.get(&id);
    (at..at + len).map(|i| chunk.and_then(|c| c.get(i as usize).copied()).flatten()).collect()
}

impl DataStore {
    pub(super) fn crash(&mut self) {
        self.now = self.durable.clone();
        self.instance = InstanceId(self.instance.0 + 1);
    }

    /// A cut by the metadata server: complete, and durable.
    pub(super) fn cut(&mut self, ino: netfs_common::id::Ino, from: u64, chunk_size: u64) -> i64 {
        let mut freed = 0;
        for map in [&mut self.durable, &mut self.now] {
            freed = 0;
            for (id, chunk) in map.iter_mut().filter(|(id, _)| id.ino == ino) {
                let start = id.index * chunk_size;
                let keep = from.saturating_sub(start).min(chunk.len() as u64) as usize;
                freed += chunk[keep..].iter().flatten().count() as i64;
                chunk.truncate(keep);
            }
        }
        freed
    }

    /// The chunks that a span touches, and where in the file they begin.
    fn chunks_of(&self, span: Span) -> Vec<(u64, ChunkId)> {
        let Span { ino, generation, chunk_bits, from, to } = span;
        let id = |index| ChunkId { ino, generation, index };
        let chunks = self.now.range(id(from >> chunk_bits)..=id((to - 1) >> chunk_bits));
        chunks.map(|(id, _)| (id.index << chunk_bits, *id)).collect()
    }

    pub(super) fn call(&mut self, op: Op, payload: &Bytes) -> (Reply, Bytes) {
        let verifier = self.instance;
        let written = |allocated| (Reply::Written { verifier, allocated }, Bytes::new());
        match op {
            Op::Write { chunk, offset } => {
                if let Some(e) = self.refuse {
                    return (Reply::Failed(e), Bytes::new());
                }
                let cells: Vec<_> = payload.iter().map(|b| Some(*b)).collect();
                written(set(&mut self.now, chunk, offset, &cells))
            }
            Op::Read { chunk, offset, len } => {
                let cells = get(&self.now, chunk, offset, len);
                let bytes: Vec<u8> = cells.into_iter().map(|c| c.unwrap_or(0)).collect();
                (Reply::Read, bytes.into())
            }
            Op::Punch { chunk, offset, len } => {
                let have = self.now.get(&chunk).map_or(0, |c| c.len() as u64);
                let len = len.min(have.saturating_sub(offset)) as usize;
                written(if len == 0 {
                    0
                } else {
                    set(&mut self.now, chunk, offset, &vec![None; len])
                })
            }
            Op::Copy { source, source_offset, target, target_offset, len } => {
                let cells = get(&self.now, source, source_offset, len);
                written(set(&mut self.now, target, target_offset, &cells))
            }
            Op::Extents { span, limit } => {
                let mut extents: Vec<(u64, u64)> = Vec::new();
                for (start, id) in self.chunks_of(span) {
                    for (i, cell) in self.now[&id].iter().enumerate() {
                        let at = start + i as u64;
                        let told = extents.len();
                        match extents.last_mut() {
                            _ if cell.is_none() || at < span.from || at >= span.to => {}
                            Some((_, end)) if *end == at => *end += 1,
                            _ if told == limit as usize => {
                                return (Reply::Extents { extents, upto: at }, Bytes::new());
                            }
                            _ => extents.push((at, at + 1)),
                        }
                    }
                }
                (Reply::Extents { extents, upto: span.to }, Bytes::new())
            }
            Op::PunchSpan { span } => {
                // One chunk at a time, so that callers have to ask again.
                let mut chunks = self.chunks_of(span).into_iter();
                let allocated = chunks.next().map_or(0, |(start, id)| {
                    let from = span.from.saturating_sub(start);
                    let len = (self.now[&id].len() as u64).min(span.to - start);
                    let hole = vec![None; len.saturating_sub(from) as usize];
                    if hole.is_empty() { 0 } else { set(&mut self.now, id, from, &hole) }
                });
                let upto = chunks.next().map_or(span.to, |(start, _)| start);
                (Reply::Punched { verifier, allocated, upto }, Bytes::new())
            }
            Op::Flush => {
                self.durable = self.now.clone();
                (Reply::Flushed { verifier }, Bytes::new())
            }
            Op::Delete { .. } | Op::Usage | Op::Fence { .. } => {
                (Reply::Failed(Errno::ENOSYS), Bytes::new())
            }
        }
    }
}
