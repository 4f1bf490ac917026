//! A map from ranges of a file to what was written there. Pure logic, no I/O.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included, Unbounded};

use bytes::{Bytes, BytesMut};

/// Adjacent writes are joined up to this size, which is also the size in which they are sent.
pub const WINDOW: u64 = 1 << 20;
/// Only writes up to this size are copied to be joined with the one before; larger ones keep
/// their own buffer.
const JOIN: usize = 128 << 10;
/// What an entry costs besides its bytes, so that many tiny writes count for what they take.
const ENTRY_COST: u64 = 128;

/// What is in a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Data(Bytes),
    /// Nothing: so many bytes were punched out.
    Hole(u64),
}

impl Content {
    /// Length in bytes of the range.
    pub fn len(&self) -> u64 {
        match self {
            Content::Data(b) => b.len() as u64,
            Content::Hole(n) => *n,
        }
    }

    /// There is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The part from `from` to `to`, relative to the start.
    pub(super) fn part(&self, from: u64, to: u64) -> Content {
        match self {
            Content::Hole(_) => Content::Hole(to - from),
            Content::Data(b) => {
                let part = b.slice(from as usize..to as usize);
                // A small rest shall not hold on to a large buffer.
                let small = part.len() * 8 < b.len();
                Content::Data(if small { Bytes::copy_from_slice(&part) } else { part })
            }
        }
    }

    fn held(&self) -> u64 {
        match self {
            Content::Data(b) => b.len() as u64,
            Content::Hole(_) => 0,
        }
    }
}

/// Ranges that do not overlap, each with its content and a tag.
#[derive(Clone, Debug)]
pub struct Extents<T = ()> {
    map: BTreeMap<u64, (Content, T)>,
    data: u64,
}

impl<T> Default for Extents<T> {
    fn default() -> Self {
        Extents { map: BTreeMap::new(), data: 0 }
    }
}

impl<T: Copy + PartialEq> Extents<T> {
    /// There is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Bytes of data, holes not counted.
    pub fn data_bytes(&self) -> u64 {
        self.data
    }

    /// What it takes in memory.
    pub fn weight(&self) -> u64 {
        self.data + self.map.len() as u64 * ENTRY_COST
    }

    /// The end of the last range, 0 when there is none.
    pub fn end(&self) -> u64 {
        self.map.last_key_value().map_or(0, |(s, (c, _))| s + c.len())
    }

    /// The end of the last range with data, 0 when there is none.
    pub fn data_end(&self) -> u64 {
        let mut data = self.map.iter().rev();
        data.find(|(_, (c, _))| matches!(c, Content::Data(_))).map_or(0, |(s, (c, _))| s + c.len())
    }

    /// Puts content at `start`, in place of whatever is there.
    pub fn insert(&mut self, start: u64, content: Content, tag: T) {
        if content.is_empty() {
            return;
        }
        self.remove(start, start + content.len());
        self.data += content.held();
        let before = self.map.range_mut(..start).next_back();
        if let Some((s, (left, t))) = before
            && *t == tag
            && s + left.len() == start
            && join(left, &content)
        {
            return;
        }
        self.map.insert(start, (content, tag));
    }

    /// Puts content at `start` only where nothing is.
    pub fn insert_under(&mut self, start: u64, content: &Content, tag: T) {
        for (s, e) in self.gaps(start, start + content.len()) {
            self.insert(s, content.part(s - start, e - start), tag);
        }
    }

    /// Forgets a range.
    pub fn remove(&mut self, start: u64, end: u64) {
        self.split(start);
        self.split(end);
        while let Some((&s, _)) = self.map.range(start..end.max(start)).next() {
            if let Some((content, _)) = self.map.remove(&s) {
                self.data -= content.held();
            }
        }
    }

    /// Forgets everything from `start` on.
    pub fn cut(&mut self, start: u64) {
        self.remove(start, u64::MAX);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.map.clear();
        self.data = 0;
    }

    /// Keeps what a condition on the tag holds for; returns the rest.
    pub fn take_out(&mut self, mut keep: impl FnMut(&T) -> bool) -> Vec<(u64, Content)> {
        let out: Vec<u64> =
            self.map.iter().filter(|(_, (_, t))| !keep(t)).map(|(s, _)| *s).collect();
        let out = out.into_iter().filter_map(|s| self.map.remove(&s).map(|(c, _)| (s, c)));
        let out: Vec<_> = out.collect();
        self.data -= out.iter().map(|(_, c)| c.held()).sum::<u64>();
        out
    }

    /// Ensures that no range crosses `at`.
    fn split(&mut self, at: u64) {
        let Some((&s, (content, tag))) = self.map.range_mut(..at).next_back() else { return };
        let len = content.len();
        if s + len <= at {
            return;
        }
        let (right, tag) = (content.part(at - s, len), *tag);
        *content = content.part(0, at - s);
        self.map.insert(at, (right, tag));
    }

    /// The first range that reaches beyond `at`.
    pub fn next_from(&self, at: u64) -> Option<(u64, &Content)> {
        let before = self.map.range(..=at).next_back().filter(|(s, (c, _))| **s + c.len() > at);
        let after = || self.map.range((Excluded(at), Unbounded)).next();
        before.or_else(after).map(|(s, (c, _))| (*s, c))
    }

    /// Everything within a range, clipped to it, ascending.
    pub fn within(&self, start: u64, end: u64) -> Vec<(u64, Content)> {
        let mut out = Vec::new();
        if start >= end {
            return out;
        }
        let from = self.next_from(start).map_or(end, |(s, _)| s);
        for (&s, (content, _)) in self.map.range((Included(from), Excluded(end.max(from)))) {
            let (a, b) = (s.max(start), (s + content.len()).min(end));
            if a < b {
                let part = match content {
                    Content::Data(d) => Content::Data(d.slice((a - s) as usize..(b - s) as usize)),
                    Content::Hole(_) => Content::Hole(b - a),
                };
                out.push((a, part));
            }
        }
        out
    }

    /// The tags of everything within a range.
    pub fn tags(&self) -> impl Iterator<Item = &T> {
        self.map.values().map(|(_, t)| t)
    }

    /// The parts of a range where nothing is.
    pub fn gaps(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        let mut at = start;
        let from = self.next_from(start).map_or(end, |(s, _)| s);
        for (&s, (content, _)) in self.map.range((Included(from), Excluded(end.max(from)))) {
            if s > at {
                out.push((at, s));
            }
            at = s + content.len();
        }
        if at < end {
            out.push((at, end));
        }
        out
    }
}

/// Appends the right content to the left, if that is cheap; whether it was done.
fn join(left: &mut Content, right: &Content) -> bool {
    match (left, right) {
        (Content::Hole(a), Content::Hole(b)) => {
            *a += b;
            true
        }
        (Content::Data(a), Content::Data(b)) => {
            if b.len() > JOIN || (a.len() + b.len()) as u64 > WINDOW {
                return false;
            }
            // In place as long as nobody reads the left buffer; it grows in doublings.
            match std::mem::take(a).try_into_mut() {
                Ok(mut grown) => {
                    grown.extend_from_slice(b);
                    *a = grown.freeze();
                    true
                }
                Err(shared) if shared.len() < 4096 && b.len() < 4096 => {
                    let mut both = BytesMut::with_capacity(shared.len() + b.len());
                    both.extend_from_slice(&shared);
                    both.extend_from_slice(b);
                    *a = both.freeze();
                    true
                }
                Err(shared) => {
                    *a = shared;
                    false
                }
            }
        }
        _ => false,
    }
}

/// What to send next: one range of one window, in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its start in the file.
    pub start: u64,
    /// What is to be there.
    pub content: Content,
}

impl Batch {
    /// Its end in the file.
    pub fn end(&self) -> u64 {
        self.start + self.content.len()
    }
}

/// Takes the next batch out of `dirty` and notes it in `flying`: a run of data within one window
/// or a hole of any length, that touches nothing under way. With `full` only a window that is
/// dirty from beginning to end.
pub fn take(
    dirty: &mut Extents,
    flying: &mut Extents,
    chunk: u64,
    full: bool,
    from: u64,
) -> Option<Batch> {
    let window = WINDOW.min(chunk);
    let mut at = from;
    while let Some((s, content)) = dirty.next_from(at) {
        let s = s.max(at);
        let hole = matches!(content, Content::Hole(_));
        let limit = if hole { u64::MAX } else { (s / window + 1).saturating_mul(window) };
        // What is under way splits the window.
        let limit = match flying.next_from(s) {
            Some((f, busy)) if f <= s => {
                at = f + busy.len();
                continue;
            }
            Some((f, _)) => limit.min(f),
            None => limit,
        };
        let run = run_from(dirty, s, limit, hole);
        if full && !hole && (!s.is_multiple_of(window) || run - s < window) {
            at = (s / window + 1).saturating_mul(window);
            continue;
        }
        let content = gather(dirty, s, run, hole);
        dirty.remove(s, run);
        flying.insert_exact(s, content.clone());
        return Some(Batch { start: s, content });
    }
    None
}

/// How far content of one kind reaches without a gap.
fn run_from(dirty: &Extents, start: u64, limit: u64, hole: bool) -> u64 {
    let mut at = start;
    while at < limit
        && let Some((s, content)) = dirty.next_from(at)
        && s <= at
        && matches!(content, Content::Hole(_)) == hole
    {
        at = s + content.len();
    }
    at.min(limit)
}

fn gather(dirty: &Extents, start: u64, end: u64, hole: bool) -> Content {
    if hole {
        return Content::Hole(end - start);
    }
    let mut parts = dirty.within(start, end);
    if parts.len() == 1
        && let Some((_, whole)) = parts.pop()
    {
        return whole;
    }
    let mut all = BytesMut::with_capacity((end - start) as usize);
    for (_, part) in parts {
        if let Content::Data(b) = part {
            all.extend_from_slice(&b);
        }
    }
    Content::Data(all.freeze())
}

impl Extents {
    /// Like `insert`, without joining: the buffer stays the one that is being sent.
    fn insert_exact(&mut self, start: u64, content: Content) {
        self.remove(start, start + content.len());
        self.data += content.held();
        self.map.insert(start, (content, ()));
    }
}
