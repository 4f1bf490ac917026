//! Counts of messages by type: the budgets of the design are held in messages, not in time.

use std::sync::atomic::{AtomicU64, Ordering};

use netfs_common::wire::data;
use netfs_common::wire::meta::{Op, Request};

const NAMES: [&str; 34] = [
    "lookup",
    "get",
    "readlink",
    "readdir",
    "listxattrs",
    "getxattr",
    "statfs",
    "sync",
    "renew",
    "status",
    "create",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "setattr",
    "setxattr",
    "removexattr",
    "write_inline",
    "wrote_chunks",
    "accessed",
    "forget",
    "end_session",
    "cut_tail",
    "data_write",
    "data_read",
    "data_punch",
    "data_copy",
    "data_extents",
    "data_flush",
    "acquire",
    "release",
    "reclaim",
    "lock",
];

/// Messages sent since the start, repetitions after a lost connection included.
#[derive(Debug)]
pub struct Counters {
    counts: [AtomicU64; NAMES.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Counters { counts: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl Counters {
    pub(crate) fn meta(&self, request: &Request) {
        let index = match request {
            Request::Lookup { .. } => 0,
            Request::Get { .. } => 1,
            Request::ReadLink { .. } => 2,
            Request::ReadDir { .. } => 3,
            Request::ListXattrs { .. } => 4,
            Request::GetXattr { .. } => 5,
            Request::StatFs => 6,
            Request::Sync => 7,
            Request::Renew => 8,
            Request::Status => 9,
            Request::Acquire { .. } => 30,
            Request::Release { .. } => 31,
            Request::Reclaim { .. } => 32,
            Request::Lock(_) => 33,
            Request::Mutate(m) => match m.op {
                Op::Create { .. } => 10,
                Op::Link { .. } => 11,
                Op::Unlink { .. } => 12,
                Op::Rmdir { .. } => 13,
                Op::Rename { .. } => 14,
                Op::SetAttr { .. } => 15,
                Op::SetXattr { .. } => 16,
                Op::RemoveXattr { .. } => 17,
                Op::WriteInline { .. } => 18,
                Op::WroteChunks { .. } => 19,
                Op::Accessed { .. } => 20,
                Op::Forget { .. } => 21,
                Op::EndSession => 22,
                Op::CutTail { .. } => 23,
            },
        };
        self.counts[index].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn data(&self, op: &data::Op) {
        let index = match op {
            data::Op::Write { .. } => 24,
            data::Op::Read { .. } => 25,
            data::Op::Punch { .. } | data::Op::PunchSpan { .. } | data::Op::Delete { .. } => 26,
            data::Op::Copy { .. } => 27,
            data::Op::Extents { .. } => 28,
            data::Op::Flush | data::Op::Usage | data::Op::Fence { .. } => 29,
        };
        self.counts[index].fetch_add(1, Ordering::Relaxed);
    }

    /// Every type of message and how many were sent.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        NAMES.iter().zip(&self.counts).map(|(n, c)| (*n, c.load(Ordering::Relaxed))).collect()
    }

    /// How many messages of one type were sent; 0 for a type that does not exist.
    pub fn get(&self, name: &str) -> u64 {
        NAMES.iter().position(|n| *n == name).map_or(0, |i| self.counts[i].load(Ordering::Relaxed))
    }

    /// How many messages were sent, signs of life not counted.
    pub fn total(&self) -> u64 {
        self.snapshot().iter().filter(|(n, _)| *n != "renew").map(|(_, c)| c).sum()
    }
}
