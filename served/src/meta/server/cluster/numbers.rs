//! Which inode numbers data servers have chunks of, and who has been asked.

use std::collections::BTreeMap;

use netfs_common::id::{ChunkId, Epoch, Ino, InstanceId, ServerId};
use netfs_common::wire::audit::AuditOp;
use netfs_common::wire::data::Reply;
use tokio::sync::watch;

use super::Cluster;

/// Who has answered since the start of this server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::meta::server) struct Met {
    /// At the address of which server, and in which life.
    pub(in crate::meta::server) servers: BTreeMap<ServerId, InstanceId>,
    /// One has gone by a later map than there is: this metadata is an older copy.
    pub(in crate::meta::server) outdated: bool,
}

impl Cluster {
    /// Tells who has answered.
    pub(in crate::meta::server) fn met(&self) -> watch::Receiver<Met> {
        self.met.subscribe()
    }

    /// Somebody has answered, with data of this metadata.
    pub(super) fn note_met(&self, server: ServerId, life: InstanceId, followed: Epoch) {
        let later = followed > self.lock().manager.state().version;
        self.met.send_if_modified(|met| {
            let is_new = met.servers.insert(server, life) != Some(life);
            let is_worse = later && !met.outdated;
            met.outdated |= later;
            is_new || is_worse
        });
    }

    /// The highest inode from one on and below another of which there are chunks at the address of a server.
    ///
    /// # Errors
    /// When it did not answer as it should.
    pub(in crate::meta::server) async fn highest_inode(
        &self,
        server: ServerId,
        from: Ino,
        below: Ino,
    ) -> Result<Option<Ino>, Unanswered> {
        let mut search = Search::new(from.0, below.0);
        while let Some(ino) = search.question() {
            let from = ChunkId { ino: Ino(ino), generation: 0, index: 0 };
            match self.ask(server, AuditOp::Inventory { from, limit: 1 }).await {
                Some(Reply::Listed { chunks, .. }) => {
                    search.answer(chunks.first().map(|(chunk, _)| chunk.ino.0));
                }
                _ => return Err(Unanswered),
            }
        }
        Ok(search.found.map(Ino))
    }

    /// Notes that there are chunks of a volume under numbers that were not given out.
    pub(in crate::meta::server) fn overtaken(&self, volume: u64, server: ServerId) {
        self.lock().overtaken.insert(volume, server);
    }
}

/// A server did not say what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the data server did not answer as it should")]
pub(in crate::meta::server) struct Unanswered;

/// Looks for the highest number from one on and below another, where it can be asked for the first one from a number on. It takes as many questions as the
/// logarithm of what lies between, and one if there is none.
#[derive(Clone, Copy, Debug)]
struct Search {
    found: Option<u64>,
    /// It is here or above, if there is a higher one than what was found.
    from: u64,
    /// There is none from here on.
    end: u64,
}

impl Search {
    fn new(from: u64, below: u64) -> Search {
        Search { found: None, from, end: below }
    }

    /// The first one from here on is asked for. `None`: it is known.
    fn question(&self) -> Option<u64> {
        let left = self.end.saturating_sub(self.from);
        let middle = match self.found {
            // Mostly there is none.
            None => self.from,
            Some(_) => self.from + left / 2,
        };
        (left > 0).then_some(middle)
    }

    /// What the question was answered with.
    fn answer(&mut self, first: Option<u64>) {
        let Some(asked) = self.question() else { return };
        match first {
            Some(first) if (asked..self.end).contains(&first) => {
                (self.found, self.from) = (Some(first), first + 1);
            }
            _ => self.end = asked,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_highest_of_very_many_numbers_is_found_with_few_questions() {
        let of = |all: &[u64], from, below| {
            let all = BTreeSet::from_iter(all.iter().copied());
            let (mut search, mut asked) = (Search::new(from, below), 0);
            while let Some(number) = search.question() {
                search.answer(all.range(number..).next().copied());
                asked += 1;
            }
            (search.found, asked)
        };
        assert_eq!(of(&[], 5, 1 << 40), (None, 1));
        assert_eq!(of(&[5], 5, 5), (None, 0));
        assert_eq!(of(&[1, 4, 1 << 40], 5, 1 << 40), (None, 1));
        assert_eq!(of(&[5], 5, 6), (Some(5), 1));
        assert_eq!(of(&[5, 6, 7], 5, 7).0, Some(6));
        let many: Vec<u64> = (0..1000).map(|n| 10 + n * n * 1000).collect();
        let (found, asked) = of(&many, 11, 1 << 36);
        assert_eq!(found, Some(10 + 999 * 999 * 1000));
        assert!(asked <= 38, "{asked} questions");
        assert_eq!(of(&many, 11, many[500]).0, Some(many[499]));
        // Who answers what makes no sense is not asked for ever.
        let mut search = Search::new(5, 1 << 40);
        while search.question().is_some() {
            search.answer(Some(7));
        }
        assert_eq!(search.found, Some(7));
    }
}
