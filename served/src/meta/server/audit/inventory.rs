//! What all data servers have, chunk by chunk in one order. Of each server one page is held.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use netfs_common::id::{ChunkId, Ino, ServerId, Version};
use netfs_common::wire::audit::AuditOp;
use netfs_common::wire::data::Reply;

use crate::meta::server::data_link::DataLink;

/// Chunks on one page, if the server likes.
const PAGE: u32 = 1024;
/// A server that does not answer is asked so often.
const TRIES: u32 = 3;
/// After the first time; then longer.
const PAUSE: Duration = Duration::from_millis(200);
/// The first chunk of all.
const FIRST: ChunkId = ChunkId { ino: Ino(0), generation: 0, index: 0 };

/// A chunk, and who has it in which version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) chunk: ChunkId,
    pub(super) at: Vec<(ServerId, Version)>,
}

struct Feed {
    server: ServerId,
    page: VecDeque<(ChunkId, Version)>,
    next: Option<ChunkId>,
}

/// All of them.
pub(super) struct Inventory {
    link: Arc<DataLink>,
    feeds: Vec<Feed>,
    lost: Vec<(ServerId, String)>,
}

impl Inventory {
    pub(super) fn new(link: Arc<DataLink>, servers: impl Iterator<Item = ServerId>) -> Inventory {
        let feed = |server| Feed { server, page: VecDeque::new(), next: Some(FIRST) };
        Inventory { link, feeds: servers.map(feed).collect(), lost: Vec::new() }
    }

    /// Servers that did not come to the end, and why.
    pub(super) fn lost(&self) -> Vec<(ServerId, String)> {
        self.lost.clone()
    }

    /// Whether a server is asked, as far as is known.
    pub(super) fn asks(&self, server: ServerId) -> bool {
        self.feeds.iter().any(|feed| feed.server == server)
    }

    /// The next chunk.
    pub(super) async fn next(&mut self) -> Option<Seen> {
        let mut at = 0;
        while let Some(feed) = self.feeds.get_mut(at) {
            match fill(&self.link, feed).await {
                Ok(()) => at += 1,
                Err(why) => {
                    let feed = self.feeds.remove(at);
                    self.lost.push((feed.server, why));
                }
            }
        }
        take_first(self.feeds.iter_mut().map(|feed| (feed.server, &mut feed.page)))
    }
}

/// Sees to it that there is a chunk on the page, unless there are no more.
async fn fill(link: &DataLink, feed: &mut Feed) -> Result<(), String> {
    let mut failures = 0;
    while feed.page.is_empty()
        && let Some(from) = feed.next
    {
        match link.audit(feed.server, AuditOp::Inventory { from, limit: PAGE }).await {
            Ok(Reply::Listed { chunks, next }) => {
                let ordered = chunks.is_sorted_by(|a, b| a.0 < b.0)
                    && chunks.first().is_none_or(|first| first.0 >= from)
                    && next.is_none_or(|next| next > chunks.last().map_or(from, |last| last.0));
                if !ordered {
                    return Err("it tells its chunks in no order".into());
                }
                (feed.page, feed.next) = (chunks.into(), next);
            }
            Ok(_) => return Err("it answers what was not asked".into()),
            Err(error) => {
                failures += 1;
                if failures >= TRIES || error.is_final() {
                    return Err(error.to_string());
                }
                // The connection to an earlier life of the server may be at its end, and is not found to be at once.
                tokio::time::sleep(PAUSE * failures).await;
            }
        }
    }
    Ok(())
}

/// Takes the first chunk of all from the pages.
fn take_first<'a>(
    pages: impl Iterator<Item = (ServerId, &'a mut VecDeque<(ChunkId, Version)>)>,
) -> Option<Seen> {
    let mut pages: Vec<_> = pages.collect();
    let chunk = pages.iter().filter_map(|(_, page)| page.front()).map(|(chunk, _)| *chunk).min()?;
    let mut at = Vec::new();
    for (server, page) in &mut pages {
        if page.front().is_some_and(|(first, _)| *first == chunk)
            && let Some((_, version)) = page.pop_front()
        {
            at.push((*server, version));
        }
    }
    Some(Seen { chunk, at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_of_all_servers_come_in_one_order() {
        let chunk = |ino, index| ChunkId { ino: Ino(ino), generation: 0, index };
        let mut first: VecDeque<_> =
            [(chunk(2, 0), Version(1)), (chunk(2, 5), Version(2)), (chunk(9, 0), Version(3))]
                .into();
        let mut second: VecDeque<_> = [(chunk(2, 5), Version(7)), (chunk(3, 1), Version(8))].into();
        let mut all = Vec::new();
        while let Some(seen) =
            take_first([(ServerId(1), &mut first), (ServerId(2), &mut second)].into_iter())
        {
            all.push((seen.chunk, seen.at));
        }
        let one = |id, version| vec![(ServerId(id), Version(version))];
        let both = vec![(ServerId(1), Version(2)), (ServerId(2), Version(7))];
        let expected = [
            (chunk(2, 0), one(1, 1)),
            (chunk(2, 5), both),
            (chunk(3, 1), one(2, 8)),
            (chunk(9, 0), one(1, 3)),
        ];
        assert_eq!(all, expected);
    }
}
