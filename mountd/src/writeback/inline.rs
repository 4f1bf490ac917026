//! Data that lives in the inode.

use std::sync::Arc;

use bytes::Bytes;
use netfs_common::errno::Errno;
use netfs_common::wire::meta::{Op, Request, Response};
use tracing::error;

use super::{Content, Writeback};
use crate::cache::{Node, State};
use crate::session::Waits;

impl Writeback {
    /// The inline data as the server has it: from the cache, or asked for. Inline data is all
    /// there is below the inline limit; what lies beyond is a hole.
    ///
    /// # Errors
    /// Those of the call. `ESTALE`: the data is not inline, and the node knows that by now.
    pub async fn inline_base(&self, node: &Node) -> Result<Bytes, Errno> {
        let waits = {
            let state = node.state();
            if let Some(attr) = &state.attr
                && attr.inline
                && state.valid
            {
                if attr.size == 0 {
                    return Ok(Bytes::new());
                }
                if let Some(data) = self.cache.content(node.ino) {
                    return Ok(data);
                }
            }
            if state.held.writes() { Waits::ForNobody } else { Waits::ForOthers }
        };
        let ticket = self.cache.ticket(node);
        let request = Request::Get { ino: node.ino };
        let answer = self.session.ask_as(waits, request).await;
        let grant = answer.granted(node.ino);
        match answer.reply? {
            Response::Entry { attr, inline } => {
                let data = inline.map(Bytes::from);
                let is = attr.inline;
                self.cache.learn(ticket, attr, data.clone(), grant);
                if is { Ok(data.unwrap_or_default()) } else { Err(Errno::ESTALE) }
            }
            _ => Err(Errno::EPROTO),
        }
    }

    /// Sends the whole inline data with what is dirty laid over it.
    pub(super) async fn write_inline(&self, node: &Arc<Node>, sync: bool) -> Result<(), Errno> {
        let _meta = node.gates().meta.lock().await;
        let era = node.state().era;
        let known_in = self.session.incarnation();
        let base = match self.inline_base(node).await {
            Ok(base) => base,
            // Looked at again with what is known now.
            Err(Errno::ESTALE) if !node.state().is_inline() => return Ok(()),
            Err(e) => return self.inline_failed(node, e, era),
        };
        let limit = u64::from(self.session.volume().inline_limit);
        let ticket = self.cache.ticket(node);
        let Some((op, time)) = self.edit(node, |state| match state.era == era {
            true => compose(state, &base, limit),
            // Given up meanwhile, and told.
            false => None,
        }) else {
            return Ok(());
        };
        let (data, mtime) = match &op {
            Op::WriteInline { data, mtime, .. } => (Bytes::from(data.clone()), *mtime),
            _ => return Err(Errno::EIO),
        };
        match self.session.mutate_at(op, sync, time, known_in).await {
            Ok(changed) => {
                if let Some(attr) = changed.attrs.iter().find(|a| a.ino == node.ino) {
                    self.cache.put_content(node, attr.version, data);
                }
                self.cache.learn_changed(ticket, &changed);
                self.edit(node, |state| {
                    if state.era != era {
                        return;
                    }
                    let file = state.file();
                    file.flying.clear();
                    if file.dirty.is_empty() && file.mtime == Some(mtime) {
                        (file.mtime, file.ctime) = (None, None);
                    }
                });
                node.gates().progress.notify_waiters();
                Ok(())
            }
            Err(e) => self.inline_failed(node, e, era),
        }
    }

    fn inline_failed(&self, node: &Arc<Node>, e: Errno, era: u64) -> Result<(), Errno> {
        let e = if e == Errno::ESTALE { Errno::EIO } else { e };
        self.edit(node, |state| {
            if state.era != era {
                // Given up meanwhile, and told.
                return;
            }
            state.failed.add(e);
            let file = state.file();
            file.flying.clear();
            file.dirty.clear();
            (file.mtime, file.ctime) = (None, None);
        });
        if !self.halted() {
            error!(ino = %node.ino, error = %e, "a write that was accepted has failed");
            if let Some(kernel) = self.kernel() {
                kernel.inval_data(node.ino, 0, 0);
            }
        }
        node.gates().progress.notify_waiters();
        Err(e)
    }

    /// Moves inline data to chunks: it becomes dirty, under what is dirty already, and the report
    /// lets the server drop its copy once the chunk is durable.
    pub(super) async fn convert(&self, node: &Arc<Node>) -> Result<(), Errno> {
        let _meta = node.gates().meta.lock().await;
        let era = node.state().era;
        let base = match self.inline_base(node).await {
            Ok(base) => base,
            Err(Errno::ESTALE) if !node.state().is_inline() => return Ok(()),
            Err(e) => return self.inline_failed(node, e, era),
        };
        self.edit(node, |state| {
            if !state.is_inline() {
                return;
            }
            let file = state.file();
            file.converting = Some(base.len() as u64);
            let len = base.len();
            if len > 0 {
                file.dirty.insert_under(0, &Content::Data(base), ());
            }
        });
        Ok(())
    }
}

/// The change that sends an inode's dirty bytes, which are flying from then on.
fn compose(
    state: &mut State,
    base: &Bytes,
    limit: u64,
) -> Option<(Op, netfs_common::attr::Timestamp)> {
    let (inline, size) = (state.is_inline(), state.size());
    let (ino, generation, old_mtime) =
        state.attr.as_ref().map(|a| (a.ino, a.generation, a.mtime))?;
    let file = state.file.as_mut()?;
    let end = file.dirty.data_end();
    if !inline || file.dirty.is_empty() || !file.flying.is_empty() || end > limit {
        return None;
    }
    let mut data = base.to_vec();
    data.resize(data.len().max(end as usize), 0);
    for (start, content) in file.dirty.within(0, data.len() as u64) {
        let (from, to) = (start as usize, (start + content.len()) as usize);
        match content {
            Content::Data(bytes) => data[from..to].copy_from_slice(&bytes),
            Content::Hole(_) => data[from..to].fill(0),
        }
    }
    file.flying = std::mem::take(&mut file.dirty);
    let mtime = file.mtime.unwrap_or(old_mtime);
    let time = file.ctime.unwrap_or(mtime);
    Some((Op::WriteInline { ino, generation, data, size, mtime }, time))
}
