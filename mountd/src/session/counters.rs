//! Counts of messages by type: the budgets of the design are held in messages, not in time.

use std::sync::atomic::{AtomicU64, Ordering};

use netfs_common::wire::data;
use netfs_common::wire::meta::{Op, Request};

const NAMES: [&str; 35] = [
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
    "reclaim",
    "lock",
    "inspect",
    "replay",
];

/// Messages since the start: sent, repetitions after a lost connection included, and answered; and the server's calls.
#[derive(Debug)]
pub struct Counters {
    counts: [AtomicU64; NAMES.len()],
    answers: [AtomicU64; NAMES.len()],
    recalls: AtomicU64,
    recalls_answered: AtomicU64,
    /// Payload of data messages.
    written: AtomicU64,
    read: AtomicU64,
}

/// A message that was counted, for its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted(usize);

/// What went over the connections, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Every type of message: how many were sent, and how many were answered.
    pub messages: Vec<(&'static str, u64, u64)>,
    /// Messages with recalls, and how many of them were answered.
    pub recalls: (u64, u64),
    /// Bytes of data sent to and received from data servers.
    pub data: (u64, u64),
    /// Bytes of all messages sent and received, data included; what the network adds is not counted.
    pub bytes: (u64, u64),
}

impl Default for Counters {
    fn default() -> Self {
        let zero = || std::array::from_fn(|_| AtomicU64::new(0));
        Counters {
            counts: zero(),
            answers: zero(),
            recalls: AtomicU64::new(0),
            recalls_answered: AtomicU64::new(0),
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
        }
    }
}

impl Counters {
    pub(crate) fn meta(&self, request: &Request) -> Counted {
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
            Request::Status | Request::Operate(_) => 9,
            Request::Acquire { .. } => 30,
            Request::Reclaim { .. } => 31,
            Request::Lock(_) => 32,
            Request::Inspect(_) => 33,
            Request::Replay { .. } => 34,
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
        Counted(index)
    }

    /// A message was answered.
    pub(crate) fn answered(&self, Counted(index): Counted) {
        self.answers[index].fetch_add(1, Ordering::Relaxed);
    }

    /// One to a data server was answered, with so many bytes of data.
    pub(crate) fn data_answered(&self, counted: Counted, payload: usize) {
        self.answered(counted);
        self.read.fetch_add(payload as u64, Ordering::Relaxed);
    }

    /// The server wants something back.
    pub(crate) fn recalled(&self) {
        self.recalls.fetch_add(1, Ordering::Relaxed);
    }

    /// It was told that it has it.
    pub(crate) fn gave_back(&self) {
        self.recalls_answered.fetch_add(1, Ordering::Relaxed);
    }

    /// All of it; `bytes` are known to the connections.
    pub(crate) fn traffic(&self, bytes: (u64, u64)) -> Traffic {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let all = NAMES.iter().zip(self.counts.iter().zip(&self.answers));
        Traffic {
            messages: all
                .map(|(name, (sent, answered))| (*name, load(sent), load(answered)))
                .collect(),
            recalls: (load(&self.recalls), load(&self.recalls_answered)),
            data: (load(&self.written), load(&self.read)),
            bytes,
        }
    }

    pub(crate) fn data(&self, op: &data::Op, payload: usize) -> Counted {
        let index = match op {
            data::Op::Write { .. } => 24,
            data::Op::Read { .. } => 25,
            data::Op::Punch { .. } | data::Op::PunchSpan { .. } | data::Op::Delete { .. } => 26,
            data::Op::Copy { .. } => 27,
            data::Op::Extents { .. } => 28,
            data::Op::Flush | data::Op::Usage | data::Op::Fence { .. } => 29,
        };
        self.counts[index].fetch_add(1, Ordering::Relaxed);
        self.written.fetch_add(payload as u64, Ordering::Relaxed);
        Counted(index)
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
