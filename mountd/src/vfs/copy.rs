//! Copying within the volume, without the bytes passing through here where that can be had.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, GroupId, Ino, Verifier};

use super::Vfs;
use super::attrs::MAX_SIZE;
use crate::cache::Node;
use crate::session::Copied;
use crate::writeback::Content;

/// The most that one call copies; the kernel asks again for the rest. It bounds for how long the
/// target is locked.
const MAX_COPY: u64 = 256 << 20;
/// Bytes are read and written in pieces of this size where the server cannot copy.
const PIECE: u64 = 1 << 20;
/// A run of zeros of this length becomes a hole.
const HOLE: usize = 64 << 10;
/// How often a copy begins again because what was copied may have been lost meanwhile.
const MAX_ROUNDS: usize = 10;

/// For how long to leave two files to others after having had both in vain. Two clients that each want both can take one
/// from the other in step for ever, if neither steps back; so one waits longer than the other, by chance.
fn step_back(rounds: u32) -> Duration {
    let most = 1 << rounds.min(6);
    let by_chance = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    Duration::from_micros(u64::from(by_chance) % 1000 * most)
}

impl Vfs {
    /// Copies a range, to the end of the source at most. Returns how much was copied.
    ///
    /// # Errors
    /// As `copy_file_range(2)`.
    #[allow(clippy::too_many_arguments)]
    pub async fn copy_file_range(
        self: &Arc<Self>,
        ino_in: Ino,
        fh_in: u64,
        off_in: u64,
        ino_out: Ino,
        fh_out: u64,
        off_out: u64,
        len: u64,
    ) -> Result<u64, Errno> {
        let source = self.handles.get(fh_in)?;
        let target = self.handles.get(fh_out)?;
        let len = len.min(MAX_COPY);
        if off_out.checked_add(len).is_none_or(|e| e > MAX_SIZE) {
            return Err(Errno::EFBIG);
        }
        let same = ino_in == ino_out;
        if same && off_in < off_out.saturating_add(len) && off_out < off_in.saturating_add(len) {
            return Err(Errno::EINVAL);
        }
        let this = Arc::clone(self);
        self.run(async move {
            target.check()?;
            this.writeback.wait_for_room().await?;
            let (from, to) = (&source.node, &target.node);
            // In the order of their numbers, so that two copies cannot wait for each other.
            let (first, second) = if from.ino <= to.ino { (from, to) } else { (to, from) };
            // Both leases before any gate, see `recall`; that of the source for writing too, or it could be taken away while the gates
            // are held, and would be waited for with them.
            let mut rounds = 0;
            let (_first, _second) = loop {
                this.own(first).await?;
                this.own(second).await?;
                let a = first.gates().io.write().await;
                let b = match same {
                    true => None,
                    false => Some(second.gates().io.write().await),
                };
                if this.owns(first) && this.owns(second) {
                    break (a, b);
                }
                drop((a, b));
                tokio::time::sleep(step_back(rounds)).await;
                rounds += 1;
            };
            let attr = from.effective().ok_or(Errno::EIO)?;
            let len = len.min(attr.size.saturating_sub(off_in));
            if len == 0 {
                return Ok(0);
            }
            this.copy(from, off_in, to, off_out, len).await?;
            this.touch(from, source.flags);
            Ok(len)
        })
        .await
    }

    async fn copy(
        self: &Arc<Self>,
        from: &Arc<Node>,
        off_in: u64,
        to: &Arc<Node>,
        off_out: u64,
        len: u64,
    ) -> Result<(), Errno> {
        self.writeback.drain(from, false).await?;
        self.writeback.drain(to, false).await?;
        let chunked = |n: &Node| {
            let state = n.state();
            !state.is_inline() && state.attr.as_ref().is_some_and(|a| !a.inline)
        };
        // A report first: only then is it certain that neither is inline any more.
        self.writeback.report(from, false).await?;
        self.writeback.report(to, false).await?;
        let by_server = chunked(from) && chunked(to);
        if by_server && to.state().size() < off_out + len {
            self.writeback.cut_tail(to).await?;
        }
        if by_server {
            let copied = self.copy_at_servers(from, off_in, to, off_out, len).await;
            {
                let _state = to.state();
                // What was read ahead before or meanwhile.
                self.cache.pages.drop_range(to.ino, off_out, off_out.saturating_add(len));
            }
            return copied;
        }
        self.copy_through(from, off_in, to, off_out, len).await
    }

    /// Copies chunk by chunk at the data servers; what no server can copy goes through here.
    ///
    /// Before it, everything of both files is made durable: servers that have lost something in between must have
    /// the source, and nothing of the target may be sent again over the copy. The copy is made durable
    /// before anybody relies on it: there are no bytes here that could be sent again.
    async fn copy_at_servers(
        self: &Arc<Self>,
        from: &Arc<Node>,
        off_in: u64,
        to: &Arc<Node>,
        off_out: u64,
        len: u64,
    ) -> Result<(), Errno> {
        let within = self.session.bulk().session();
        for _ in 0..MAX_ROUNDS {
            for node in [from, to] {
                self.writeback.store(node).await?;
            }
            let (source, target) = match (from.effective(), to.effective()) {
                (Some(source), Some(target)) => (source, target),
                _ => return Err(Errno::EIO),
            };
            let (mut done, mut copied) = (0, Vec::new());
            while done < len {
                let (a, b) = (off_in + done, off_out + done);
                let (ca, cb) = (source.chunk_size(), target.chunk_size());
                let step = (len - done).min(ca - a % ca).min(cb - b % cb);
                let src = ChunkId { ino: from.ino, generation: source.generation, index: a / ca };
                let dst = ChunkId { ino: to.ino, generation: target.generation, index: b / cb };
                let bulk = self.session.bulk();
                match bulk.copy(within, (src, a % ca), (dst, b % cb), step).await? {
                    Copied::Done(w) => {
                        self.writeback.note_copied(to, b + step, w.allocated);
                        copied.push((w.group, w.verifier));
                    }
                    Copied::Apart => self.copy_through(from, a, to, b, step).await?,
                }
                done += step;
            }
            if self.is_durable(copied).await? {
                return Ok(());
            }
        }
        Err(Errno::EIO)
    }

    /// Makes copies durable, unless they may be lost by now.
    async fn is_durable(&self, copied: Vec<(GroupId, Verifier)>) -> Result<bool, Errno> {
        let groups = copied.iter().map(|(group, _)| *group).collect();
        let mut flushed = BTreeMap::new();
        let each = |verifiers: &[(GroupId, Verifier)]| flushed.extend(verifiers.iter().copied());
        self.session.bulk().flush(groups, each).await?;
        Ok(copied.iter().all(|(group, verifier)| flushed.get(group) == Some(verifier)))
    }

    async fn copy_through(
        self: &Arc<Self>,
        from: &Arc<Node>,
        off_in: u64,
        to: &Arc<Node>,
        off_out: u64,
        len: u64,
    ) -> Result<(), Errno> {
        let mut done = 0;
        while done < len {
            self.writeback.wait_for_room().await?;
            let data = self.read_node(from, off_in + done, PIECE.min(len - done)).await?;
            if data.is_empty() {
                break;
            }
            let mut at = off_out + done;
            let mut rest = data.clone();
            while !rest.is_empty() {
                let part = rest.split_to(rest.len().min(HOLE));
                let part_len = part.len() as u64;
                let zero = part.len() == HOLE && part.iter().all(|b| *b == 0);
                let content = if zero { Content::Hole(part_len) } else { Content::Data(part) };
                self.writeback.put(to, content, |_| at);
                at += part_len;
            }
            done += data.len() as u64;
        }
        Ok(())
    }
}
