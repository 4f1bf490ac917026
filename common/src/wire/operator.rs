//! What operators ask of a metadata server about data servers. Asking is allowed to every certificate of the cluster; changes need
//! one of a server.

use bincode::{Decode, Encode};

use crate::class::Class;
use crate::id::{Epoch, ServerId};
use crate::wire::cluster::TierReport;

/// What an operator wants.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Operation {
    /// All data servers: [`Outcome::Servers`].
    List,
    /// Another data server, at these addresses; or one that is drained shall get data again.
    Add(Vec<String>),
    /// What a data server has shall go to others.
    Drain(ServerId),
    /// A data server that has nothing any more is forgotten.
    Remove(ServerId),
    /// The shares of data servers shall be those of what they can hold now, and of how busy they were lately.
    Rebalance,
    /// How many replicas a volume's data is to have.
    Replicas {
        /// The volume's name.
        volume: String,
        /// So many.
        replicas: u8,
        /// Writes wait while there are fewer than this. As before if absent, but at most all.
        min: Option<u8>,
    },
    /// A data server is lost for good, with what it has. Groups of which nobody else has everything go on with what another one has,
    /// older or nothing.
    GiveUp {
        /// The server.
        server: ServerId,
        /// Who goes on in such groups; the one that has most of each if absent.
        with: Option<ServerId>,
        /// That data is lost is meant so. Otherwise it is only told what would be.
        lose_data: bool,
    },
    /// About the comparison of the metadata with what the data servers have: [`Outcome::Audit`].
    Audit(AuditStep),
    /// How many replicas the data of directories is to have that were set to a number of their own.
    ClassReplicas {
        /// The volume's name.
        volume: String,
        /// What the directories were set to.
        class: Class,
        /// So many.
        replicas: u8,
    },
}

/// About an audit. There is one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum AuditStep {
    /// It begins, unless one is under way.
    Begin {
        /// Nothing is mended.
        dry_run: bool,
    },
    /// How far it is, and what it has found.
    Look,
}

/// What an audit has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct AuditReport {
    /// Which one it is, of those since the server's start. 0: there was none.
    pub number: u64,
    /// It is under way: the rest is as far as it is known.
    pub running: bool,
    /// Nothing is mended.
    pub dry_run: bool,
    /// What it is doing.
    pub stage: String,
    /// Data servers that were asked.
    pub servers: u32,
    /// Chunks that were looked at; each counts once, however many copies there are.
    pub chunks: u64,
    /// Files with data that were looked at.
    pub files: u64,
    /// What was found, by kind.
    pub kinds: Vec<AuditKind>,
    /// What could not be compared or mended, and why.
    pub unfinished: Vec<String>,
    /// What was seen and is not wrong.
    pub notes: Vec<String>,
}

/// What an audit has found of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct AuditKind {
    /// What it is.
    pub what: String,
    /// How many.
    pub found: u64,
    /// How many of them are mended.
    pub mended: u64,
    /// The first of them.
    pub names: Vec<String>,
}

/// What came of an [`Operation`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Outcome {
    /// The data servers, by number.
    Servers(Vec<ServerLine>),
    /// It is done, and what that means.
    Done(String),
    /// It is not done, and why.
    Refused(String),
    /// How an audit stands.
    Audit(Box<AuditReport>),
    /// It takes a while, and this is how far it is. Who asks for the same again hears what has come of it.
    Underway(String),
}

/// Whether a data server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Condition {
    /// It does.
    Alive,
    /// Not for a moment, or not yet since the metadata server's start.
    Suspect,
    /// Not for so long that it is replaced.
    Dead,
}

/// A data server, for people.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ServerLine {
    /// Its number.
    pub id: ServerId,
    /// `host:port`.
    pub addrs: Vec<String>,
    /// Whether it answers.
    pub condition: Condition,
    /// For how long it has not answered, in milliseconds; `None`: it never has since the metadata server's start.
    pub silent_ms: Option<u64>,
    /// What it has is to go to others.
    pub draining: bool,
    /// It takes no more data.
    pub full: bool,
    /// What fails together with it.
    pub domain: String,
    /// What it can hold, in bytes; 0 while that is unknown.
    pub capacity: u64,
    /// Data that it has.
    pub live: u64,
    /// What it can still take.
    pub free: u64,
    /// Groups in which changes go to it first.
    pub head: u32,
    /// Groups in which it is another replica.
    pub replica: u32,
    /// Groups of which it is getting what it lacks.
    pub learner: u32,
    /// The version of the map by which it goes.
    pub version: Epoch,
    /// Damaged ranges that it has found since its start.
    pub damaged: u64,
    /// Those of them that were replaced from another replica.
    pub mended: u64,
    /// Its weight in placement, against those of others.
    pub weight: u32,
    /// So much of what its capacity says that is, in percent.
    pub share_percent: u8,
    /// Calls at work in its store on the average lately, in thousandths.
    pub load_milli: u32,
    /// What one of them took, in microseconds.
    pub call_us: u32,
    /// Its object store, if it has one.
    pub tier: Option<TierReport>,
}

/// How a volume's data, or one class of it, is replicated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Redundancy {
    /// How many replicas each group is to have.
    pub replicas: u8,
    /// Writes wait while there are fewer.
    pub min_replicas: u8,
    /// Groups.
    pub groups: u32,
    /// Those with all their replicas.
    pub full: u32,
    /// Those with at least one replica that answers, and not all.
    pub degraded: u32,
    /// Replicas that these lack.
    pub missing: u32,
    /// Those of them in which writes wait for more replicas.
    pub waiting: u32,
    /// Those of which no replica answers.
    pub unavailable: u32,
    /// Those with a server that is getting what it lacks.
    pub repairing: u32,
    /// Chunks that such servers are known to lack still.
    pub lacking: u64,
}
