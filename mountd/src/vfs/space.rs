//! Holes and allocation.

use std::sync::Arc;

use netfs_common::attr::{Attr, SetAttr, SetTime};
use netfs_common::errno::Errno;
use netfs_common::id::Ino;
use netfs_common::wire::data::{MAX_EXTENTS, Span};

use super::Vfs;
use super::attrs::MAX_SIZE;
use super::read::overlay;
use crate::cache::Node;
use crate::writeback::Content;

const KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
/// Data and holes are told in blocks of this size, as on a local disk: the size that `stat` shows,
/// by which programs take it that they are measured.
const BLOCK: u64 = 4096;
/// How many ranges of data are asked for at first, when the next data or hole is wanted.
const FIRST_ASKED: u32 = 16;

impl Vfs {
    /// Allocates, punches out or zeroes a range. Space is not reserved: allocation only extends
    /// the file, and refuses what the volume cannot hold.
    ///
    /// # Errors
    /// As `fallocate(2)`.
    pub async fn fallocate(
        self: &Arc<Self>,
        _ino: Ino,
        fh: u64,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<(), Errno> {
        let handle = self.handles.get(fh)?;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        if !matches!(mode, 0 | KEEP_SIZE | ZERO)
            && mode != (PUNCH | KEEP_SIZE)
            && mode != (ZERO | KEEP_SIZE)
        {
            return Err(Errno::EOPNOTSUPP);
        }
        let end = offset.checked_add(len).filter(|e| *e <= MAX_SIZE).ok_or(Errno::EFBIG)?;
        let this = Arc::clone(self);
        self.run(async move {
            handle.check()?;
            this.writeback.wait_for_room().await?;
            let node = &handle.node;
            this.known(node.ino).await?;
            let _io = this.owned(node).await?;
            let size = node.state().size();
            if mode & PUNCH == 0 {
                let new = end.saturating_sub(if mode & KEEP_SIZE == 0 { size } else { offset });
                this.check_space(new.min(len)).await?;
            }
            let emptied = mode & (PUNCH | ZERO) != 0 && offset < size;
            let extended = mode & KEEP_SIZE == 0 && end > size;
            if emptied {
                let hole = Content::Hole(end.min(size) - offset);
                this.writeback.put(node, hole, |_| offset);
            }
            if extended {
                let set = SetAttr { size: Some(end), ..SetAttr::default() };
                this.resize(node, end, set).await?;
            }
            if !emptied && !extended {
                // As on ext4, the file counts as changed whether or not a byte did.
                let set = SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() };
                this.set_attrs(node, set).await?;
            }
            Ok(())
        })
        .await
    }

    async fn check_space(self: &Arc<Self>, len: u64) -> Result<(), Errno> {
        let space = self.ask_space().await?;
        if space.bytes > 0 && len > space.bytes_free { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    /// Finds the next data or hole.
    ///
    /// # Errors
    /// As `lseek(2)`; `EINVAL` for any other whence, which is the kernel's business.
    pub async fn lseek(
        self: &Arc<Self>,
        _ino: Ino,
        fh: u64,
        offset: i64,
        whence: i32,
    ) -> Result<i64, Errno> {
        let handle = self.handles.get(fh)?;
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return Err(Errno::EINVAL),
        };
        let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        let found = self.patiently(self.seek(&handle.node, offset, data)).await?;
        i64::try_from(found).map_err(|_| Errno::EOVERFLOW)
    }

    async fn seek(&self, node: &Arc<Node>, offset: u64, data: bool) -> Result<u64, Errno> {
        let (_, attr) = self.known(node.ino).await?;
        let size = attr.size;
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        let inline = node.state().is_inline();
        let base = if inline {
            match self.writeback.inline_base(node).await {
                Ok(base) => base.len() as u64,
                Err(Errno::ESTALE) => size,
                Err(e) => return Err(e),
            }
        } else {
            0
        };
        let mut asked = FIRST_ASKED;
        let mut at = offset - offset % BLOCK;
        while at < size {
            let (sent, end) = if inline {
                (if at < base { vec![(at, base)] } else { Vec::new() }, size)
            } else {
                self.data_at_servers(node, &attr, at, size, asked).await?
            };
            asked = (asked * 2).min(MAX_EXTENTS);
            let there = self.merge_data(node, sent, at, end);
            if data {
                if let Some((start, _)) = there.first() {
                    return Ok(offset.max(*start));
                }
            } else {
                let mut edge = at;
                for (s, e) in there {
                    if s > edge {
                        break;
                    }
                    edge = e;
                }
                if edge < end {
                    return Ok(offset.max(edge));
                }
            }
            at = end;
        }
        if data { Err(Errno::ENXIO) } else { Ok(size) }
    }

    /// Where the servers have data within a range, and up to where that is all.
    async fn data_at_servers(
        &self,
        node: &Node,
        attr: &Attr,
        start: u64,
        end: u64,
        limit: u32,
    ) -> Result<(Vec<(u64, u64)>, u64), Errno> {
        let (sent, allocated) = {
            let state = node.state();
            let file = state.file.as_ref();
            let known = state.attr.as_ref();
            let sent = known.map_or(0, |a| a.size).max(file.map_or(0, |f| f.end));
            let grown = file.map_or(0, |f| f.allocated) != 0;
            (sent, grown || known.is_some_and(|a| a.allocated > 0))
        };
        let to = end.min(sent);
        if start >= to || !allocated {
            return Ok((Vec::new(), end));
        }
        let Attr { generation, chunk_bits, .. } = *attr;
        let span = Span { ino: node.ino, generation, chunk_bits, from: start, to };
        let (found, upto) = self.session.bulk().extents(span, limit).await?;
        if upto >= to {
            return Ok((found, end));
        }
        // Whole blocks, because that is how data and holes are told.
        let whole = upto - upto % BLOCK;
        Ok((found, if whole > start { whole } else { upto.next_multiple_of(BLOCK).min(end) }))
    }

    /// Data at the servers and in the buffers together: whole blocks, ascending, not touching.
    fn merge_data(
        &self,
        node: &Node,
        sent: Vec<(u64, u64)>,
        start: u64,
        end: u64,
    ) -> Vec<(u64, u64)> {
        let state = node.state();
        let (pieces, gaps) = overlay(&state, start, end);
        drop(state);
        let mut all: Vec<(u64, u64)> = pieces
            .iter()
            .filter(|(_, c)| matches!(c, Content::Data(_)))
            .map(|(s, c)| (*s, s + c.len()))
            .collect();
        // What the servers have counts only where the buffers have nothing.
        for (gs, ge) in gaps {
            all.extend(
                sent.iter().map(|(s, e)| ((*s).max(gs), (*e).min(ge))).filter(|(s, e)| s < e),
            );
        }
        all.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (s, e) in all {
            let (s, e) = (s - s % BLOCK, e.next_multiple_of(BLOCK).min(end));
            match merged.last_mut() {
                Some((_, last)) if *last >= s => *last = (*last).max(e),
                _ => merged.push((s, e)),
            }
        }
        merged
    }
}
