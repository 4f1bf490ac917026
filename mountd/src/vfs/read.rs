//! Reading.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use netfs_common::errno::Errno;
use netfs_common::id::{ChunkId, Ino};
use tokio::task::JoinSet;

use super::ahead::{Watch, outcome};
use super::recall::{Filling, PAGE, Pinned};
use super::{ReadData, Vfs};
use crate::cache::{Found, Node, State};
use crate::insight::carried;
use crate::readahead::Outcome;
use crate::writeback::Content;

/// The longest single read. The kernel's are 1 MiB.
const MAX_READ: u64 = 8 << 20;

/// So often a read begins again because the file was taken back meanwhile. One that is changed all the time must be readable nevertheless.
const MAX_TRIES: u32 = 8;

/// A read, as far as it can be answered here.
#[derive(Debug)]
pub(super) struct Plan {
    start: u64,
    end: u64,
    /// What is here, not overlapping.
    pieces: Vec<(u64, Content)>,
    /// What the servers have; all else is zeros.
    gaps: Vec<(u64, u64)>,
    /// What there is of the gaps already.
    found: Found,
    source: Source,
}

/// What a read may have of the cache of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Take {
    Nothing,
    /// All that it wants, or nothing: without waiting.
    Ready,
    All,
}

#[derive(Clone, Debug)]
enum Source {
    /// The inline data, if here.
    Inline(Option<Bytes>),
    /// Chunks of a generation and size.
    Chunks(u32, u64),
}

impl Vfs {
    /// Reads what is here.
    pub fn try_read(
        &self,
        _ino: Ino,
        fh: u64,
        offset: u64,
        size: u32,
    ) -> Option<Result<ReadData, Errno>> {
        if self.is_down() {
            return Some(Err(Errno::EIO));
        }
        let handle = match self.handles.get(fh) {
            Ok(handle) => handle,
            Err(e) => return Some(Err(e)),
        };
        {
            let mut state = handle.node.state();
            if !self.cache.live() || !state.valid || (state.passing > 0 && !handle.direct) {
                return None;
            }
            // Noted before it is answered: a write past the pages looks at it.
            state.told |= !handle.direct || in_pages(offset, size);
        }
        let pages = if handle.ahead().is_some() { Take::Ready } else { Take::Nothing };
        let plan = self.plan_read(&handle.node, offset, u64::from(size), pages)?;
        let data = match &plan.source {
            Source::Inline(Some(base)) => plan.over_inline(base),
            _ if plan.gaps.is_empty() => plan.over_chunks(&[]),
            _ if plan.found.rest.is_empty() => {
                if let Some(watch) = handle.ahead() {
                    self.look_ahead(&handle.node, watch, (plan.start, plan.end), Outcome::InTime);
                }
                plan.over_chunks(&plan.found.here)
            }
            _ => return None,
        };
        self.touch(&handle.node, handle.flags);
        Some(Ok(ReadData(data)))
    }

    /// Reads; short only at the end of the file.
    ///
    /// # Errors
    /// As `pread(2)`.
    pub async fn read(
        self: &Arc<Self>,
        ino: Ino,
        fh: u64,
        offset: u64,
        size: u32,
    ) -> Result<ReadData, Errno> {
        if let Some(done) = self.try_read(ino, fh, offset, size) {
            return done;
        }
        let handle = self.handles.get(fh)?;
        let read = self.read_watched(&handle.node, offset, u64::from(size), handle.ahead());
        let read = async {
            if !handle.direct {
                self.after_passing(&handle.node, offset, u64::from(size)).await;
            }
            read.await
        };
        let data = self.patiently(read).await?;
        self.touch(&handle.node, handle.flags);
        Ok(ReadData(data))
    }

    /// Waits for writes past the kernel's pages that are being taken.
    async fn after_passing(&self, node: &Node, offset: u64, size: u64) {
        if node.state().passing == 0 {
            return;
        }
        let _pinned = Pinned::new(node, offset, size);
        loop {
            let progress = node.gates().progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if node.state().passing == 0 {
                return;
            }
            progress.await;
        }
    }

    pub(super) async fn read_node(
        &self,
        node: &Arc<Node>,
        offset: u64,
        size: u64,
    ) -> Result<Bytes, Errno> {
        self.read_watched(node, offset, size, None).await
    }

    async fn read_watched(
        &self,
        node: &Arc<Node>,
        offset: u64,
        size: u64,
        watch: Option<&Watch>,
    ) -> Result<Bytes, Errno> {
        let pages = if watch.is_some() { Take::All } else { Take::Nothing };
        let mut tries = 0;
        loop {
            self.up()?;
            tries += 1;
            if self.served(node).is_none() {
                // The kernel keeps what it is told: until the lease is here nothing is.
                let _pinned = Pinned::new(node, offset, size);
                self.known(node.ino).await?;
                if self.served(node).is_none() {
                    continue;
                }
            }
            let filling = Filling::new(node);
            let before = (self.cache.epoch(), node.state().held.last_recall());
            // The buffers first, the server second: what leaves the buffers in between is at the
            // server by then. The other way round it could be missed in both.
            let Some(mut plan) = self.plan_read(node, offset, size, pages) else {
                return Err(Errno::EIO);
            };
            match plan.source.clone() {
                Source::Inline(Some(base)) => return Ok(plan.over_inline(&base)),
                Source::Inline(None) => {
                    // At the server the question may wait for another client, and that one for this one to give the file back.
                    // So it may not be waited for as an answer that is about to come.
                    drop(filling);
                    let pinned = Pinned::new(node, offset, size);
                    let ticket = self.cache.ticket(node);
                    let base = self.writeback.inline_base(node).await;
                    drop(pinned);
                    match base {
                        Ok(base) => {
                            // Whoever takes the file back from now on waits for this answer.
                            let still = |state: &State| self.cache.still_holds(ticket, state);
                            if let Some(_filling) = Filling::if_so(node, still)
                                && self.cache.live()
                            {
                                return Ok(plan.over_inline(&base));
                            }
                        }
                        Err(Errno::ESTALE) => {}
                        Err(e) => return Err(e),
                    }
                }
                Source::Chunks(generation, size) => {
                    let found = std::mem::take(&mut plan.found);
                    let _waiting = watch.map(|watch| {
                        let bytes = found.rest.iter().chain(found.coming.iter().map(|c| &c.range));
                        let waiting = watch.begin(bytes.map(|(from, to)| to - from).sum());
                        let range = (plan.start, plan.end);
                        if !plan.gaps.is_empty() {
                            self.look_ahead(node, watch, range, outcome(&found));
                        }
                        waiting
                    });
                    let parts = self.gather(node.ino, generation, size, found).await?;
                    let after = (self.cache.epoch(), node.state().held.last_recall());
                    let same = before == after || (before.0 == after.0 && tries >= MAX_TRIES);
                    if self.cache.live() && same {
                        return Ok(plan.over_chunks(&parts));
                    }
                    // Stopped meanwhile: what lies over it may have been lost. Or changed by another client, who may have cut the file, and
                    // filled it again: what was planned fits no state of it. Nobody waits for reads that the kernel keeps no pages of.
                }
            }
        }
    }

    fn plan_read(&self, node: &Node, offset: u64, size: u64, take: Take) -> Option<Plan> {
        let state = node.state();
        let attr = state.attr.as_ref()?;
        let end = state.size().min(offset.saturating_add(size.min(MAX_READ))).max(offset);
        let inline = state.is_inline();
        let source = if !inline {
            Source::Chunks(attr.generation, attr.chunk_size())
        } else if attr.size == 0 {
            Source::Inline(Some(Bytes::new()))
        } else {
            Source::Inline(if state.valid { self.cache.content(node.ino) } else { None })
        };
        let (pieces, mut gaps) = overlay(&state, offset, end);
        let sent = attr.size.max(state.file.as_ref().map_or(0, |f| f.end));
        gaps.retain_mut(|(s, e)| {
            *e = (*e).min(sent);
            s < e
        });
        // Under the lock under which the buffers were looked at.
        let key = self.cache.page_key(&state).filter(|_| take != Take::Nothing && !gaps.is_empty());
        let found =
            key.and_then(|k| self.cache.pages.take(node.ino, k, &gaps, take == Take::Ready));
        let found = found.unwrap_or_else(|| Found { rest: gaps.clone(), ..Found::default() });
        Some(Plan { start: offset, end, pieces, gaps, found, source })
    }

    /// Waits for what is under way, and asks for the rest.
    async fn gather(
        &self,
        ino: Ino,
        generation: u32,
        chunk: u64,
        found: Found,
    ) -> Result<Vec<(u64, Bytes)>, Errno> {
        let Found { mut here, coming, rest } = found;
        if coming.is_empty() {
            here.extend(self.fetch(ino, generation, chunk, &rest).await?);
            return Ok(here);
        }
        let arrivals = async {
            let (mut come, mut failed) = (Vec::with_capacity(coming.len()), Vec::new());
            for one in coming {
                let range = one.range;
                match one.wait().await {
                    Some(bytes) => come.push((range.0, bytes)),
                    None => failed.push(range),
                }
            }
            // Nobody was to be told why: here is somebody.
            come.extend(self.fetch(ino, generation, chunk, &failed).await?);
            Ok::<_, Errno>(come)
        };
        let (come, fetched) =
            tokio::try_join!(arrivals, self.fetch(ino, generation, chunk, &rest))?;
        here.extend(come);
        here.extend(fetched);
        Ok(here)
    }

    /// Reads ranges of chunks, one message per chunk, all at once.
    async fn fetch(
        &self,
        ino: Ino,
        generation: u32,
        chunk: u64,
        gaps: &[(u64, u64)],
    ) -> Result<Vec<(u64, Bytes)>, Errno> {
        let spans = split(gaps, chunk);
        let id = move |at: u64| ChunkId { ino, generation, index: at / chunk };
        if let [(s, e)] = spans[..] {
            let bytes = self.session.bulk().read(id(s), s % chunk, e - s).await?;
            return Ok(vec![(s, bytes)]);
        }
        let mut reads = JoinSet::new();
        for (s, e) in spans {
            let session = Arc::clone(&self.session);
            reads.spawn(carried(async move {
                let bytes = session.bulk().read(id(s), s % chunk, e - s).await;
                bytes.map(|b| (s, b))
            }));
        }
        let mut parts = Vec::with_capacity(reads.len());
        while let Some(part) = reads.join_next().await {
            parts.push(part.map_err(|_| Errno::EIO)??);
        }
        Ok(parts)
    }
}

/// The kernel may keep what is read: it fills whole pages, for mappings also where it passes them for `read`.
fn in_pages(offset: u64, size: u32) -> bool {
    offset.is_multiple_of(PAGE) && u64::from(size).is_multiple_of(PAGE)
}

/// Ranges by chunk, one for each that they touch.
pub(super) fn split(gaps: &[(u64, u64)], chunk: u64) -> Vec<(u64, u64)> {
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for &(start, end) in gaps {
        let mut at = start;
        while at < end {
            let stop = ((at / chunk + 1).saturating_mul(chunk)).min(end);
            match spans.last_mut() {
                Some((s, e)) if *s / chunk == at / chunk => *e = stop,
                _ => spans.push((at, stop)),
            }
            at = stop;
        }
    }
    spans
}

/// Pieces with their starts, and the gaps between them.
pub(super) type Overlay = (Vec<(u64, Content)>, Vec<(u64, u64)>);

/// What the buffers have of a range, and what they have not.
pub(super) fn overlay(state: &State, start: u64, end: u64) -> Overlay {
    let (mut pieces, mut gaps) = (Vec::new(), Vec::new());
    if start < end {
        gaps.push((start, end));
    }
    let Some(file) = &state.file else { return (pieces, gaps) };
    let mut lay = |within: &dyn Fn(u64, u64) -> Vec<(u64, Content)>,
                   left: &dyn Fn(u64, u64) -> Vec<(u64, u64)>| {
        pieces.extend(gaps.iter().flat_map(|(s, e)| within(*s, *e)));
        gaps = gaps.iter().flat_map(|(s, e)| left(*s, *e)).collect();
    };
    lay(&|s, e| file.dirty.within(s, e), &|s, e| file.dirty.gaps(s, e));
    lay(&|s, e| file.flying.within(s, e), &|s, e| file.flying.gaps(s, e));
    lay(&|s, e| file.kept.within(s, e), &|s, e| file.kept.gaps(s, e));
    (pieces, gaps)
}

impl Plan {
    fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    fn over_inline(&self, base: &Bytes) -> Bytes {
        let (start, end) = (self.start as usize, self.end as usize);
        if self.pieces.is_empty() && end <= base.len() {
            return base.slice(start..end);
        }
        let mut out = BytesMut::zeroed(self.len());
        if start < base.len() {
            let part = &base[start..end.min(base.len())];
            out[..part.len()].copy_from_slice(part);
        }
        self.lay_pieces(&mut out);
        out.freeze()
    }

    fn over_chunks(&self, parts: &[(u64, Bytes)]) -> Bytes {
        // One source for everything: no copy.
        if self.pieces.is_empty()
            && let [(start, bytes)] = parts
            && *start == self.start
            && bytes.len() == self.len()
        {
            return bytes.clone();
        }
        if parts.is_empty()
            && let [(start, Content::Data(bytes))] = &self.pieces[..]
            && *start == self.start
            && bytes.len() == self.len()
        {
            return bytes.clone();
        }
        let mut out = BytesMut::zeroed(self.len());
        for (s, e) in &self.gaps {
            for (at, bytes) in parts {
                let (a, b) = ((*s).max(*at), (*e).min(at + bytes.len() as u64));
                if a < b {
                    let from = &bytes[(a - at) as usize..(b - at) as usize];
                    let to = (a - self.start) as usize;
                    out[to..to + from.len()].copy_from_slice(from);
                }
            }
        }
        self.lay_pieces(&mut out);
        out.freeze()
    }

    fn lay_pieces(&self, out: &mut BytesMut) {
        for (at, content) in &self.pieces {
            let to = (at - self.start) as usize;
            match content {
                Content::Data(bytes) => out[to..to + bytes.len()].copy_from_slice(bytes),
                Content::Hole(len) => out[to..to + *len as usize].fill(0),
            }
        }
    }
}
