//! What the manager is told, and what it says.

use std::collections::BTreeMap;
use std::time::Duration;

use netfs_common::class::Class;
use netfs_common::id::{Epoch, GroupId, InstanceId, ServerId};
use netfs_common::map::{MAX_REPLICAS, Replica};
use netfs_common::wire::cluster::Work;

use crate::meta::cluster::state::StoreId;

/// Settings.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// A server that is silent for so long is replaced. Its lease is shorter.
    pub deadline: Duration,
    /// One that stays away for so long is replaced for good: what it had gets another replica elsewhere.
    pub repair_after: Duration,
    /// Learners that a server may be at a time, over all groups; and as many it may have as a tail.
    pub learners: usize,
    /// A group has been at rest for so long before another replica becomes its head.
    pub calm: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            deadline: Duration::from_secs(5),
            repair_after: Duration::from_secs(300),
            learners: 8,
            calm: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// After a start, servers that have not answered yet are given so long before groups get their first replicas
    /// without them.
    pub fn patience(&self) -> Duration {
        self.deadline / 5
    }

    /// For how long a server may answer reads after it has asked.
    pub fn lease(&self) -> Duration {
        self.deadline.mul_f64(0.75)
    }
}

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// This life of it.
    pub instance: InstanceId,
    /// Its store.
    pub store: StoreId,
    /// What fails together with it.
    pub domain: String,
    /// What it can hold, in bytes.
    pub capacity: u64,
    /// What it can still take.
    pub free: u64,
    /// It takes no more data.
    pub full: bool,
    /// Its disk has lost some of what it had flushed in an earlier life, on which chains may count.
    pub lacks: bool,
    /// Volumes that are encrypted and for which it has no key.
    pub locked: Vec<u64>,
    /// What it has done.
    pub work: Work,
    /// The version of the map that it goes by.
    pub version: Epoch,
    /// It has refused reads in these groups ever since, up to this epoch.
    pub revoked: Vec<(GroupId, Epoch)>,
    /// Learners that have everything.
    pub synced: Vec<(GroupId, Epoch, Replica)>,
    /// Replicas that could not store what others have: this server.
    pub broken: Vec<(GroupId, Epoch)>,
    /// Replicas, of other servers, that have not answered for too long.
    pub stalled: Vec<(GroupId, Epoch, Replica)>,
    /// Groups of which it is the head and orders nothing more, and everybody has all that it has ordered.
    pub handed_over: Vec<(GroupId, Epoch)>,
    /// The latest version of the map that was followed with its directory.
    pub followed: Epoch,
}

/// Whether a server can be counted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It answers.
    Alive,
    /// It has not answered for a while.
    Suspect,
    /// It has not answered for too long.
    Dead,
}

/// A server, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether it answers.
    pub verdict: Verdict,
    /// Since when it has not, or how long ago it last did.
    pub silent: Option<Duration>,
    /// What it said last.
    pub report: Option<Report>,
}

/// What an operator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Another server, at these addresses; or one that is drained shall get data again.
    Add(Vec<String>),
    /// What a server has shall go to others.
    Drain(ServerId),
    /// A server that has nothing any more is forgotten.
    Remove(ServerId),
    /// The weights shall be those of what the servers can hold now, and of how busy they were lately.
    Rebalance,
    /// Replicas and the fewest of them with which writes go on, of a volume's default class.
    Replicas(u64, u8, u8),
    /// A server is lost for good. In groups of which nobody else has everything these go on, or any.
    GiveUp(ServerId, BTreeMap<GroupId, ServerId>),
    /// A replica of a group, in this epoch, is to learn anew what it has.
    Relearn(GroupId, Epoch, ServerId),
    /// A volume shall have groups for this class.
    Class(u64, Class),
    /// The groups of a class of a volume's data shall have so many replicas.
    ClassReplicas(u64, Class, u8),
}

/// Why an operator's command is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No such server.
    #[error("there is no data server {0}")]
    NoServer(ServerId),
    /// No such volume.
    #[error("there is no such volume")]
    NoVolume,
    /// It is there.
    #[error("data server {0} has this address already")]
    Exists(ServerId),
    /// It has data.
    #[error("data server {0} still has a part in {1} placement groups; drain it first")]
    InUse(ServerId, usize),
    /// It may come back with what it had.
    #[error(
        "data server {0} was in {1} placement groups that lack a replica now, and is awaited: wait until others have copies, or give it up \
         (`netfs data give-up {0}`) if it is lost"
    )]
    Awaited(ServerId, usize),
    /// A server needs an address.
    #[error("a data server needs at least one address, host:port")]
    NoAddress,
    /// Not that many.
    #[error(
        "a volume has 1 to {MAX_REPLICAS} replicas, and needs between 1 and all of them to be written to"
    )]
    BadReplicas,
    /// There is no such pool.
    #[error("no directory of this volume was ever set to {0} replicas")]
    NoClass(Class),
    /// It answers.
    #[error("data server {0} is there: drain it, if it is to go")]
    StillThere(ServerId),
    /// Its store is there.
    #[error(
        "the store of data server {0} answers at the address of data server {1}: it is not lost; if that is a copy of no use, \
         end it first"
    )]
    Elsewhere(ServerId, ServerId),
    /// Two servers have the same store.
    #[error(
        "data server {0} has the store of data server {1}, which has answered not long ago: end one of them first"
    )]
    Twin(ServerId, ServerId),
    /// Nobody can go on.
    #[error("no data server is there that could go on in place of data server {0}")]
    NoHeir(ServerId),
    /// The state is an older copy.
    #[error(
        "data server {0} goes by version {1} of the cluster map, which is not known here: `meta.dir` is an older copy, and nothing is changed"
    )]
    Outdated(ServerId, Epoch),
    /// It is no replica, or the only one that is there.
    #[error("data server {1} is not one of several replicas of placement group {0} any more")]
    NotSpare(GroupId, ServerId),
}
