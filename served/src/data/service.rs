//! What a request means to the store. Synchronous: it runs on a thread that may wait for the disk.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Epoch, InstanceId};
use netfs_common::net::{BulkMessage, Payload};
use netfs_common::wire::data::{MAX_PAYLOAD, Op, Reply, Request, Usage};

use super::store::{ChunkKey, SegmentStore, StoreError};

/// Changes of one chunk are made one after another, so that what each added to the space in use
/// is known; chunks share this many locks.
const STRIPES: usize = 64;
/// Chunks looked at in one go when the space of a deleted file is added up.
const DELETE_SCAN: usize = 1024;

/// A store and the identity under which it answers.
#[derive(Debug)]
pub struct Service {
    store: SegmentStore,
    instance: InstanceId,
    epoch: Epoch,
    stripes: Vec<Mutex<()>>,
}

fn key(chunk: ChunkId) -> ChunkKey {
    ChunkKey { ino: chunk.ino.0, generation: chunk.generation, index: chunk.index }
}

/// The error number that stands for a store's error on the wire.
fn errno(error: &StoreError) -> Errno {
    match error {
        StoreError::NoSpace { .. } => Errno::ENOSPC,
        StoreError::OutOfRange { .. } => Errno::EINVAL,
        StoreError::Io { .. }
        | StoreError::Corrupt { .. }
        | StoreError::Poisoned(_)
        | StoreError::InUse(_)
        | StoreError::NotAStore { .. }
        | StoreError::NewerVersion { .. }
        | StoreError::BadFile { .. }
        | StoreError::Config(_) => Errno::EIO,
    }
}

impl Service {
    /// Answers for `store` in this life of the server.
    pub fn new(store: SegmentStore, instance: InstanceId, epoch: Epoch) -> Service {
        let stripes = (0..STRIPES).map(|_| Mutex::new(())).collect();
        Service { store, instance, epoch, stripes }
    }

    /// The store.
    pub fn store(&self) -> &SegmentStore {
        &self.store
    }

    /// Closes the store in order.
    ///
    /// # Errors
    /// When what was written cannot be brought to stable storage.
    pub fn close(self) -> Result<(), StoreError> {
        self.store.close()
    }

    /// Answers a call. Input that is not a call at all is answered with `EPROTO`.
    pub fn answer(&self, message: BulkMessage) -> BulkMessage {
        let BulkMessage { header, payload } = message;
        let (reply, bytes) = match codec::decode::<Request>(&header) {
            Err(error) => {
                tracing::warn!(%error, "a request that is none");
                (Reply::Failed(Errno::EPROTO), Bytes::new())
            }
            Ok(request) if request.epoch != self.epoch => {
                (Reply::StaleEpoch(self.epoch), Bytes::new())
            }
            Ok(request) => self.perform(&request.op, &payload).unwrap_or_else(|error| {
                match error {
                    StoreError::NoSpace { .. } | StoreError::OutOfRange { .. } => {
                        tracing::debug!(%error, "request refused");
                    }
                    _ => tracing::error!(%error, "request failed"),
                }
                (Reply::Failed(errno(&error)), Bytes::new())
            }),
        };
        let header = codec::encode(&reply).unwrap_or_else(|error| {
            tracing::error!(%error, "a reply that cannot be encoded");
            Vec::new()
        });
        BulkMessage::new(header.into(), bytes)
    }

    fn perform(&self, op: &Op, payload: &Payload) -> Result<(Reply, Bytes), StoreError> {
        let reply = match op {
            Op::Write { chunk, offset } => {
                self.change(&[*chunk], || self.store.write(key(*chunk), *offset, payload.chunks()))?
            }
            Op::Read { chunk, offset, len } if *len <= MAX_PAYLOAD => {
                let bytes = self.store.read(key(*chunk), *offset, *len)?;
                return Ok((Reply::Read, bytes.into()));
            }
            Op::Read { .. } => Reply::Failed(Errno::EINVAL),
            Op::Punch { chunk, offset, len } => {
                let end = self.store.extents(key(*chunk)).last().map_or(0, |(at, len)| at + len);
                let len = (*len).min(end.saturating_sub(*offset));
                self.change(&[*chunk], || match len {
                    0 => Ok(()),
                    len => self.store.punch(key(*chunk), *offset, len),
                })?
            }
            Op::Delete { first } => {
                let freed = self.allocated_from(*first);
                self.store.delete_chunks(first.ino.0, first.generation, first.index)?;
                self.written(-freed)
            }
            Op::Copy { source, source_offset, target, target_offset, len } => {
                if *len > MAX_PAYLOAD {
                    return Ok((Reply::Failed(Errno::EINVAL), Bytes::new()));
                }
                self.change(&[*source, *target], || {
                    self.store.copy(
                        key(*source),
                        *source_offset,
                        key(*target),
                        *target_offset,
                        *len,
                    )
                })?
            }
            Op::Extents { chunk } => Reply::Extents(self.store.extents(key(*chunk))),
            Op::Flush => {
                self.store.flush()?;
                Reply::Flushed { verifier: self.instance }
            }
            Op::Usage => {
                let usage = self.store.usage()?;
                Reply::Usage(Usage {
                    capacity: usage.capacity_bytes,
                    free: usage.free_bytes.saturating_add(usage.dead_bytes),
                    live: usage.live_bytes,
                    chunks: usage.chunks,
                })
            }
        };
        Ok((reply, Bytes::new()))
    }

    fn written(&self, allocated: i64) -> Reply {
        Reply::Written { verifier: self.instance, allocated }
    }

    /// Makes a change of the chunks, of which the last one grows or shrinks.
    fn change(
        &self,
        chunks: &[ChunkId],
        change: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<Reply, StoreError> {
        let Some(target) = chunks.last().copied().map(key) else { return Ok(self.written(0)) };
        let mut stripes: Vec<usize> = chunks
            .iter()
            .map(|c| (c.ino.0.wrapping_mul(31).wrapping_add(c.index) % STRIPES as u64) as usize)
            .collect();
        // In one order, so that two copies in opposite directions do not wait for each other.
        stripes.sort_unstable();
        stripes.dedup();
        let _held: Vec<_> = stripes
            .into_iter()
            .map(|s| self.stripes[s].lock().unwrap_or_else(PoisonError::into_inner))
            .collect();
        let before = self.store.allocated_bytes(target);
        change()?;
        let after = self.store.allocated_bytes(target);
        Ok(self.written(after as i64 - before as i64))
    }

    /// Bytes allocated by the chunks of a file's contents from one on.
    fn allocated_from(&self, first: ChunkId) -> i64 {
        let (mut from, mut sum) = (key(first), 0i64);
        loop {
            let chunks = self.store.list(from, DELETE_SCAN);
            let mine = |c: &ChunkKey| c.ino == first.ino.0 && c.generation == first.generation;
            for chunk in chunks.iter().filter(|c| mine(&c.key)) {
                sum = sum.saturating_add_unsigned(chunk.allocated_bytes);
            }
            match chunks.last() {
                Some(last) if chunks.len() == DELETE_SCAN && mine(&last.key) => {
                    from = ChunkKey { index: last.key.index.saturating_add(1), ..last.key };
                }
                _ => return sum,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use netfs_common::id::{GroupId, Ino};

    use super::*;
    use crate::data::store::StoreConfig;

    fn service(dir: &tempfile::TempDir) -> Service {
        let (store, _) = SegmentStore::open(dir.path(), StoreConfig::default()).unwrap();
        Service::new(store, InstanceId(7), Epoch(1))
    }

    fn chunk(index: u64) -> ChunkId {
        ChunkId { ino: Ino(5), generation: 0, index }
    }

    fn call(service: &Service, op: Op, payload: &'static [u8]) -> (Reply, Bytes) {
        let request = Request { group: GroupId(0), epoch: Epoch(1), op };
        let header = codec::encode(&request).unwrap().into();
        let answer = service.answer(BulkMessage::new(header, Bytes::from_static(payload)));
        (codec::decode(&answer.header).unwrap(), answer.payload.into_bytes())
    }

    #[test]
    fn space_is_accounted_for_by_what_changes() {
        let dir = tempfile::tempdir().unwrap();
        let s = service(&dir);
        let grew = |(reply, _): (Reply, Bytes)| match reply {
            Reply::Written { allocated, verifier: InstanceId(7) } => allocated,
            other => panic!("{other:?}"),
        };
        assert_eq!(grew(call(&s, Op::Write { chunk: chunk(0), offset: 10 }, &[1; 100])), 100);
        assert_eq!(grew(call(&s, Op::Write { chunk: chunk(0), offset: 60 }, &[2; 100])), 50);
        assert_eq!(grew(call(&s, Op::Write { chunk: chunk(3), offset: 0 }, &[3; 8])), 8);
        assert_eq!(
            grew(call(&s, Op::Punch { chunk: chunk(0), offset: 150, len: u64::MAX }, b"")),
            -10
        );
        let copy = Op::Copy {
            source: chunk(0),
            source_offset: 0,
            target: chunk(1),
            target_offset: 5,
            len: 20,
        };
        assert_eq!(grew(call(&s, copy, b"")), 10);
        let read = call(&s, Op::Read { chunk: chunk(1), offset: 14, len: 3 }, b"");
        assert_eq!(read, (Reply::Read, Bytes::from_static(&[0, 1, 1])));
        assert_eq!(
            call(&s, Op::Extents { chunk: chunk(0) }, b"").0,
            Reply::Extents(vec![(10, 140)])
        );
        assert_eq!(grew(call(&s, Op::Delete { first: chunk(1) }, b"")), -18);
        assert_eq!(call(&s, Op::Flush, b"").0, Reply::Flushed { verifier: InstanceId(7) });
    }

    #[test]
    fn nonsense_is_refused_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let s = service(&dir);
        let answer = s.answer(BulkMessage::new(Bytes::from_static(b"\xff\xff\xff"), Bytes::new()));
        assert_eq!(codec::decode::<Reply>(&answer.header).unwrap(), Reply::Failed(Errno::EPROTO));
        let far = Op::Write { chunk: chunk(0), offset: u64::MAX - 2 };
        assert_eq!(call(&s, far, b"abc").0, Reply::Failed(Errno::EINVAL));
        let huge = Op::Read { chunk: chunk(0), offset: 0, len: u64::MAX };
        assert_eq!(call(&s, huge, b"").0, Reply::Failed(Errno::EINVAL));
        let old = Request { group: GroupId(0), epoch: Epoch(0), op: Op::Flush };
        let answer = s.answer(BulkMessage::new(codec::encode(&old).unwrap().into(), Bytes::new()));
        assert_eq!(codec::decode::<Reply>(&answer.header).unwrap(), Reply::StaleEpoch(Epoch(1)));
        assert_eq!(s.store().usage().unwrap().chunks, 0);
    }
}
