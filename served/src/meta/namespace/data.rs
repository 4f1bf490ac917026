//! What clients report of data.

use netfs_common::attr::{FileKind, Timestamp};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::wire::meta::{MAX_BATCH, Response};

use super::change::Change;
use super::{Fault, MAX_SIZE, changed, valid_time};
use crate::meta::keys;
use crate::meta::kv::StoreError;
use crate::meta::record::{self, Inode, Trim};

impl Change<'_, '_> {
    pub(super) fn write_inline(
        &mut self,
        ino: Ino,
        generation: u32,
        data: Vec<u8>,
        size: u64,
        mtime: Timestamp,
    ) -> Result<Response, Fault> {
        let mut inode = self.written(ino, generation, size, mtime)?;
        if !inode.attr.inline {
            return Err(Errno::ESTALE.into());
        }
        if data.len() > self.settings.inline_limit as usize || size < data.len() as u64 {
            return Err(Errno::EINVAL.into());
        }
        inode.attr.size = size;
        self.write_inline_data(&mut inode, data);
        self.put(inode);
        Ok(changed(ino))
    }

    pub(super) fn wrote_chunks(
        &mut self,
        ino: Ino,
        generation: u32,
        end: u64,
        allocated: i64,
        mtime: Timestamp,
    ) -> Result<Response, Fault> {
        let mut inode = self.written(ino, generation, end, mtime)?;
        if inode.attr.inline {
            inode.attr.inline = false;
            self.write_inline_data(&mut inode, Vec::new());
        }
        let allocated = inode.attr.allocated.saturating_add_signed(allocated);
        self.set_allocated(&mut inode, allocated);
        inode.attr.size = inode.attr.size.max(end);
        self.put(inode);
        Ok(changed(ino))
    }

    /// A file whose data was written: the generation must be the present one.
    fn written(
        &mut self,
        ino: Ino,
        generation: u32,
        end: u64,
        mtime: Timestamp,
    ) -> Result<Inode, Fault> {
        valid_time(mtime)?;
        let mut inode = self.inode(ino)?;
        match inode.attr.kind {
            FileKind::File => {}
            FileKind::Dir => return Err(Errno::EISDIR.into()),
            _ => return Err(Errno::EINVAL.into()),
        }
        if inode.attr.generation != generation {
            return Err(Errno::ESTALE.into());
        }
        if end > MAX_SIZE {
            return Err(Errno::EFBIG.into());
        }
        inode.attr.mtime = mtime;
        // The change happened when it was written, not when the client's buffer was sent: a
        // program that compares times around a read must not see a change that is none.
        inode.attr.ctime = inode.attr.ctime.max(mtime.min(self.time));
        Ok(inode)
    }

    pub(super) fn accessed(&mut self, times: &[(Ino, Timestamp)]) -> Result<Response, Fault> {
        if times.len() > MAX_BATCH {
            return Err(Errno::E2BIG.into());
        }
        for (ino, time) in times {
            valid_time(*time)?;
            let Some(mut inode) = self.find(*ino)? else { continue };
            if inode.attr.atime < *time {
                inode.attr.atime = *time;
                inode.attr.version = self.index.0;
                // Not through `put`: the client knows the times, and thousands of attributes
                // would have to be kept for a retry.
                self.txn.put(keys::inode(*ino), record::encode(&inode)?);
                self.forget_inode(*ino);
            }
        }
        Ok(changed(None))
    }

    /// The data servers have cut a file.
    pub(super) fn trim_done(&mut self, id: u64, freed: u64) -> Result<Response, Fault> {
        let key = keys::trim(id);
        let Some(trim) = record::load::<Trim>(self.txn, &key)? else { return Ok(changed(None)) };
        self.txn.remove(key);
        if let Some(mut inode) = self.find(trim.ino)?
            && inode.attr.generation == trim.generation
            && !inode.attr.inline
            // What nobody has reported is not in the sum.
            && trim.from < trim.end
        {
            let mut allocated = inode.attr.allocated.saturating_sub(freed);
            // A cut that was made twice finds nothing the second time. But a file has no more data than its
            // length, unless somebody has written beyond the cut since.
            if inode.attr.size <= trim.from {
                allocated = allocated.min(trim.from);
            }
            self.set_allocated(&mut inode, allocated);
            self.put(inode);
        }
        Ok(changed(trim.ino))
    }

    /// The data servers have removed chunks.
    pub(super) fn chunks_deleted(&mut self, ids: &[u64]) -> Result<Response, Fault> {
        if ids.len() > MAX_BATCH {
            return Err(Errno::E2BIG.into());
        }
        ids.iter().for_each(|id| self.txn.remove(keys::deletion(*id)));
        Ok(Response::Done)
    }
}

/// All trims or deletions, oldest first.
pub(super) fn tasks<T: bincode::Decode<()>>(
    store: &dyn crate::meta::kv::Read,
    kind: u8,
    limit: usize,
) -> Result<Vec<(u64, T)>, StoreError> {
    let pairs = store.range(&[kind], &[kind + 1], limit)?;
    pairs
        .into_iter()
        .map(|(key, value)| {
            let id = keys::field(&key, 0).ok_or_else(|| StoreError::damaged(&key, "bad key"))?;
            Ok((id, record::decode(&key, &value)?))
        })
        .collect()
}
