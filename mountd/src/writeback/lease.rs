//! The lease under which buffered data is sent.

use std::sync::Arc;

use netfs_common::errno::Errno;
use netfs_common::wire::meta::{Request, Response};

use super::Writeback;
use crate::cache::Node;
use crate::session::Waits;

impl Writeback {
    /// Waits for the write lease of a file. Unlike a program's write this may be done under the file's gate, and while the lease
    /// is being given back: the recall of any lesser one does not take the gate.
    ///
    /// # Errors
    /// As [`crate::session::Session::ask`].
    pub async fn own(&self, node: &Arc<Node>) -> Result<(), Errno> {
        loop {
            if node.state().owned() && self.cache.live() {
                return Ok(());
            }
            if self.halted() {
                return Err(Errno::EIO);
            }
            let ticket = self.cache.ticket(node);
            // One that is held although it has lapsed is not waited for.
            let waits = match node.state().held.writes() {
                true => Waits::ForNobody,
                false => Waits::ForOthers,
            };
            let answer = self.session.ask_as(waits, Request::Acquire { ino: node.ino }).await;
            let grant = answer.granted(node.ino);
            match answer.reply? {
                Response::Entry { attr, inline } if attr.ino == node.ino => {
                    self.cache.learn(ticket, attr, inline.map(Into::into), grant);
                }
                _ => return Err(Errno::EPROTO),
            }
            // Recalled already, or not granted: the server makes everybody wait in turn.
            tokio::task::yield_now().await;
        }
    }
}
