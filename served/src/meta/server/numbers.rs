//! Numbers that are not known here, and were given out all the same: this metadata is an older copy that was brought back.
//!
//! Files that were made after the copy have chunks at the data servers. If their numbers were given out once more, a new file would show bytes of another
//! one where it has holes. Nothing in the directory tells an older copy from the last state: what tells it are the data servers. So each that is
//! met is asked for the highest number of which it has chunks, by a search that costs one question where there are none
//! beyond what is known, and numbers go on above it. What is found so says that generations of files may be known nowhere but there too; they are left out as after
//! a failure of the machine. The same is done when a server has followed a later map.
//!
//! Until all servers that answer have been asked, no file is made and none gets another generation: chunks could be written to it
//! only later, but a hole would show what is there already. Servers that are silent are not waited for longer than until they count as dead: a server
//! that is away for good must not keep others from working. Whoever comes later is asked then. Where it alone has some group, and files
//! were made meanwhile, these may have got numbers of which it has chunks; the log says so, and `netfs status`.
//!
//! It does not matter to volumes that were made after the copy and are gone with it: their numbers may be given to other volumes, whose
//! inodes are then numbered above theirs. An encrypted one is refused by the data servers, which know another key for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use netfs_common::errno::Errno;
use netfs_common::id::{Ino, InstanceId, ServerId};
use netfs_common::map::INODE_BITS;
use netfs_common::wire::meta::{NewInode, Op};
use tokio::sync::watch;

use super::cluster::Cluster;
use super::volume::{Volume, now};
use crate::meta::command::{Action, Command};

/// So far above what is known chunks are looked for: more files than anybody makes between two copies, and little of what there is for a volume. Whoever
/// may mount it can store chunks of any number, which must not use all of them up.
const LOOKED_FOR: u64 = 1 << 36;

/// Whether numbers may be given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Asking,
    Asked,
    /// The server ends before.
    Closing,
}

/// What is known of the numbers that data servers have chunks of.
pub(super) struct Numbers(watch::Sender<Stage>);

impl Default for Numbers {
    fn default() -> Numbers {
        Numbers(watch::Sender::new(Stage::Asking))
    }
}

impl Numbers {
    /// Waits until an inode may get a number or a generation. `false`: the server ends before.
    pub(super) async fn wait(&self) -> bool {
        let mut stage = self.0.subscribe();
        let known = stage.wait_for(|stage| *stage != Stage::Asking).await;
        known.is_ok_and(|stage| *stage == Stage::Asked)
    }

    fn move_on(&self, to: Stage) {
        self.0.send_if_modified(|stage| {
            let is_news = *stage == Stage::Asking;
            if is_news {
                *stage = to;
            }
            is_news
        });
    }

    /// The server is about to end: nobody is kept waiting.
    pub(super) fn close(&self) {
        self.move_on(Stage::Closing);
    }
}

/// Whether a change gives a name to chunks of which there may be some already.
pub(super) fn names_chunks(op: &Op) -> bool {
    match op {
        Op::Create { new, .. } => *new == NewInode::File,
        Op::SetAttr { set, .. } => set.size.is_some(),
        Op::CutTail { .. } => true,
        _ => false,
    }
}

impl Volume {
    /// Asks every data server that is met, for ever.
    pub(super) async fn ask_for_numbers(self: Arc<Self>, cluster: Arc<Cluster>) {
        let (start, patience) = (Instant::now(), cluster.deadline());
        let mut first = None;
        let (mut met, mut events) = (cluster.met(), cluster.events());
        let mut asked: BTreeMap<ServerId, InstanceId> = BTreeMap::new();
        let mut left_out = false;
        // One that is added later may have had groups before, under another number.
        let known = cluster.servers();
        loop {
            events.borrow_and_update();
            let now = met.borrow_and_update().clone();
            let mut answered = true;
            if first.is_none() {
                first = self.engine.counters().ok().map(|state| Ino(state.next_ino));
            }
            if now.outdated && !left_out {
                left_out = self.leave_out(Ino(0)).await.is_ok();
                answered &= left_out;
            }
            let mut questions = Box::pin(async {
                for (server, life) in now.servers {
                    if asked.get(&server) == Some(&life) {
                        continue;
                    }
                    // Numbers were given out without it: it is no news that others have chunks of them, but that it has is.
                    let is_late = !asked.contains_key(&server) && known.contains(&server);
                    let since = first.filter(|_| is_late);
                    match self.ask_for_number(&cluster, server, since).await {
                        Ok(()) => drop(asked.insert(server, life)),
                        Err(error) => {
                            tracing::debug!(%server, error, "which numbers it has chunks of is not known yet");
                            answered = false;
                        }
                    }
                }
            });
            // One that answers signs of life, and nothing else, is waited for no longer than one that is silent.
            let left = patience.saturating_sub(start.elapsed());
            if tokio::time::timeout(left, &mut questions).await.is_err() {
                self.numbers.move_on(Stage::Asked);
                questions.await;
            } else {
                drop(questions);
            }
            let all = cluster.servers().iter().all(|server| asked.contains_key(server));
            if all || start.elapsed() >= patience {
                self.numbers.move_on(Stage::Asked);
            }
            let waits = !answered || *self.numbers.0.borrow() == Stage::Asking;
            let more = tokio::select! {
                more = met.changed() => more,
                // Also when time has passed.
                more = events.changed(), if waits => more,
            };
            if more.is_err() {
                return;
            }
        }
    }

    /// Asks one. `since`: of a server that was not asked before, the first number that was given out since the start.
    async fn ask_for_number(
        &self,
        cluster: &Cluster,
        server: ServerId,
        since: Option<Ino>,
    ) -> Result<(), String> {
        let volume = self.number();
        let next = || self.engine.counters().map(|state| Ino(state.next_ino));
        let failed = |errno: Errno| errno.to_string();
        let before = next().map_err(failed)?;
        let from = since.unwrap_or(before);
        let last = ((volume + 1) << INODE_BITS).wrapping_sub(1);
        let below = Ino(before.0.saturating_add(LOOKED_FOR).min(last));
        let found = cluster.highest_inode(server, from, below).await;
        let Some(highest) = found.map_err(|error| error.to_string())? else { return Ok(()) };
        if highest < before {
            cluster.overtaken(volume, server);
            tracing::error!(
                volume = self.name(), %server, first = from.0, last = highest.0,
                "a data server that was away has chunks of inodes that were given out without it: if this metadata is an older copy, holes of files that \
                 were made since its start may show bytes of others"
            );
            return Ok(());
        }
        let next = next().map_err(failed)?;
        if highest < next {
            // It was given out while the server was asked.
            return Ok(());
        }
        self.leave_out(Ino(highest.0 + 1)).await.map_err(failed)?;
        cluster.overtaken(volume, server);
        tracing::error!(
            volume = self.name(), %server, highest = highest.0, next = next.0,
            "a data server has chunks of inodes that this metadata has not given out: it is an older copy, and files that were made after it was \
             taken are missing; their numbers are left out"
        );
        Ok(())
    }

    /// Numbers of inodes below one are not given out any more, nor are generations that files may have had.
    async fn leave_out(&self, below: Ino) -> Result<(), Errno> {
        let action = Action::LeaveOut { below };
        let (_, reply) = self.execute(Command { time: now(), action }).await;
        reply.map(drop)
    }
}
