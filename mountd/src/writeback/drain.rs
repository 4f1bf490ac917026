//! Emptying the buffer of an inode.

use std::sync::Arc;

use netfs_common::errno::Errno;

use super::{Writeback, give_up};
use crate::cache::{File, Node};
use crate::insight::{Wait, waiting};

/// How often it is begun again because a data server was restarted meanwhile.
const MAX_ROUNDS: usize = 10;

/// How much of the buffer must go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// What was in it at the beginning has been sent.
    Swept,
    /// It is empty. Whoever asks for it keeps new writes out.
    Empty,
}

enum Plan {
    Done,
    Inline,
    Convert,
    Pump,
    Wait,
}

impl Writeback {
    /// Sends what an inode has, and reports it.
    pub(super) async fn pass(self: &Arc<Self>, node: &Arc<Node>) {
        // Failures are in the inode's log; here is nobody to tell.
        let _ = self.empty(node, Until::Swept, false).await;
        let _ = self.report(node, false).await;
    }

    /// Sends everything of an inode to the data servers; inline data goes to the metadata server,
    /// durably if `sync`. The caller holds the `io` gate exclusively, or has another reason to
    /// know that writes will end.
    ///
    /// # Errors
    /// Those of this attempt; they are in the inode's log too.
    pub async fn drain(self: &Arc<Self>, node: &Arc<Node>, sync: bool) -> Result<(), Errno> {
        self.empty(node, Until::Empty, sync).await
    }

    /// Brings everything of an inode to the servers, durably, and reports it: afterwards nothing of it can be lost, nor sent
    /// again. The caller holds the `io` gate exclusively. What cannot be brought there is given up, and told.
    ///
    /// # Errors
    /// Those of the attempt; they are in the inode's log too.
    pub async fn bring(self: &Arc<Self>, node: &Arc<Node>) -> Result<(), Errno> {
        let brought = self.bring_or_fail(node).await;
        if let Err(e) = brought {
            self.edit(node, |state| {
                give_up(state);
                state.failed.add(e);
            });
            node.gates().progress.notify_waiters();
        }
        brought
    }

    async fn bring_or_fail(self: &Arc<Self>, node: &Arc<Node>) -> Result<(), Errno> {
        for _ in 0..MAX_ROUNDS {
            self.store(node).await?;
            self.report(node, false).await?;
            // To report may have taken a flush, which may have found a server restarted.
            if !node.state().has_unsent() {
                return Ok(());
            }
        }
        Err(Errno::EIO)
    }

    /// Sends an inode's data and makes it durable, so that nothing of it is kept here. The caller holds the `io` gate exclusively.
    ///
    /// # Errors
    /// Those of the calls; `EIO` when data servers are restarted again and again.
    pub async fn store(self: &Arc<Self>, node: &Arc<Node>) -> Result<(), Errno> {
        for _ in 0..MAX_ROUNDS {
            // Bytes of a server that was restarted meanwhile are dirty again.
            self.drain(node, false).await?;
            self.flush_node(node).await?;
            let stored = |f: &File| f.kept.is_empty() && f.dirty.is_empty() && f.flying.is_empty();
            if node.state().file.as_deref().is_none_or(stored) {
                return Ok(());
            }
            if self.halted() {
                return Err(Errno::EIO);
            }
        }
        Err(Errno::EIO)
    }

    async fn empty(
        self: &Arc<Self>,
        node: &Arc<Node>,
        until: Until,
        sync: bool,
    ) -> Result<(), Errno> {
        let failures = node.state().failed.count();
        let mut begun = false;
        if node.state().file.as_ref().is_some_and(|f| !f.dirty.is_empty())
            && let Err(e) = self.own(node).await
        {
            self.tail_failed(node, e);
            return Err(e);
        }
        loop {
            let progress = node.gates().progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            match self.plan(node, until, begun) {
                Plan::Done => break,
                Plan::Inline => self.write_inline(node, sync).await?,
                Plan::Convert => self.convert(node).await?,
                Plan::Pump => {
                    self.spawn_pump(Arc::clone(node));
                    waiting(Wait::Data, progress).await;
                }
                Plan::Wait => waiting(Wait::Data, progress).await,
            }
            if self.halted() {
                return Err(Errno::EIO);
            }
            begun = true;
        }
        let mut seen = failures;
        // Not `reported`: the log tells it to the handles.
        let mut log = node.state().failed;
        log.check(&mut seen)
    }

    fn plan(&self, node: &Node, until: Until, begun: bool) -> Plan {
        let limit = u64::from(self.session.volume().inline_limit);
        self.edit(node, |state| {
            let inline = state.is_inline();
            let Some(file) = &mut state.file else { return Plan::Done };
            if file.dirty.is_empty() && file.flying.is_empty() {
                return Plan::Done;
            }
            if inline {
                return match () {
                    () if !file.flying.is_empty() => Plan::Wait,
                    () if file.dirty.data_end() > limit => Plan::Convert,
                    () if begun && until == Until::Swept => Plan::Done,
                    () => Plan::Inline,
                };
            }
            if file.dirty.is_empty() {
                return Plan::Wait;
            }
            if until == Until::Swept && begun && file.force == 0 {
                return Plan::Done;
            }
            if until == Until::Empty || !begun {
                file.force = file.force.max(file.dirty.weight());
            }
            if std::mem::replace(&mut file.pumping, true) { Plan::Wait } else { Plan::Pump }
        })
    }
}
