//! Where calls wait for a thread that may block.
//!
//! A call waits as a future, together with its payload: when its caller withdraws it or is gone, both are gone. Only
//! when there is a thread for it does it become work that cannot be taken back. So the memory that withdrawn calls
//! hold on to is bounded by the number of threads, however slow the disk is.
//!
//! A client that connects again has lost its connection, not necessarily what it had sent. It repeats that, and may
//! then write something else to the same place; so nothing that came over the old connection may be done later.
//! Therefore a client is welcomed again only when no call of its old connection is at work, and none begins to be.
//! In the same way a session is fenced: when nothing of it is at work any more, and none begins to be, on whatever connection.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use netfs_common::id::{InstanceId, SessionId};
use tokio::sync::{Notify, OwnedRwLockReadGuard, RwLock, Semaphore};

/// Who a client is: the name in its certificate, its session, and its life.
pub(super) type Who = (String, SessionId, InstanceId);

/// A call was not begun, because its connection has been replaced, or its session fenced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Superseded;

/// The threads, and who may use them.
#[derive(Debug)]
pub(super) struct Turns {
    slots: Arc<Semaphore>,
    threads: u32,
    /// One entry for each connection, and for those of which something is still at work.
    clients: Mutex<HashMap<Who, Arc<Client>>>,
}

/// Something of a client that is at work: it is not welcomed anew, nor its session fenced, before the end of it.
#[derive(Debug)]
pub(super) struct AtWork(#[expect(dead_code, reason = "held")] OwnedRwLockReadGuard<()>);

/// One connection of a client.
#[derive(Debug, Default)]
pub(super) struct Client {
    over: AtomicBool,
    fenced: AtomicBool,
    superseded: Notify,
    /// Held by everything at work, exclusively by who waits for that.
    running: Arc<RwLock<()>>,
}

impl Client {
    /// Waits until the client has another connection, or its session is fenced.
    pub(super) async fn superseded(&self) {
        self.superseded.notified().await;
    }

    /// Its session has been fenced.
    pub(super) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::SeqCst)
    }

    /// Begins nothing any more, and waits for what is at work.
    async fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.superseded.notify_one();
        drop(self.running.write().await);
    }
}

impl Turns {
    pub(super) fn new(threads: usize) -> Turns {
        let threads = u32::try_from(threads).unwrap_or(u32::MAX);
        let slots = Arc::new(Semaphore::new(threads as usize));
        Turns { slots, threads, clients: Mutex::default() }
    }

    /// Lets a client in, when nothing that it sent before can happen any more.
    pub(super) async fn enter(&self, who: &Who) -> Arc<Client> {
        let client = Arc::new(Client::default());
        // Until all that was before is over this one counts as at work too, should the client come once more meanwhile.
        let waiting = client.running.clone().write_owned().await;
        let before = self.clients().insert(who.clone(), client.clone());
        if let Some(before) = before {
            before.end().await;
        }
        drop(waiting);
        client
    }

    /// A connection has ended.
    pub(super) async fn leave(&self, who: &Who, client: &Arc<Client>) {
        client.end().await;
        let mut clients = self.clients();
        if clients.get(who).is_some_and(|now| Arc::ptr_eq(now, client)) {
            clients.remove(who);
        }
    }

    /// Ends all connections of a session, and waits until nothing of it is at work. The caller sees to it that it gets no
    /// new one.
    pub(super) async fn fence(&self, session: SessionId) {
        let of_it: Vec<Arc<Client>> = {
            let clients = self.clients();
            let found = clients.iter().filter(|((_, id, _), _)| *id == session);
            found.map(|(_, client)| client.clone()).collect()
        };
        for client in &of_it {
            client.fenced.store(true, Ordering::SeqCst);
            client.over.store(true, Ordering::SeqCst);
            client.superseded.notify_one();
        }
        for client in of_it {
            client.end().await;
        }
    }

    /// Waits for a thread and does the work there. `None`: it has panicked.
    pub(super) async fn take<T: Send + 'static>(
        &self,
        client: &Client,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Option<T>, Superseded> {
        let slot = self.slots.clone().acquire_owned().await.map_err(|_| Superseded)?;
        if client.over.load(Ordering::SeqCst) {
            // Not behind whoever waits for what is at work.
            return Err(Superseded);
        }
        let running = client.running.clone().read_owned().await;
        if client.over.load(Ordering::SeqCst) {
            return Err(Superseded);
        }
        let done = tokio::task::spawn_blocking(move || {
            let _held = (slot, running);
            work()
        });
        match done.await {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                tracing::error!(%error, "a call of the data store has panicked");
                Ok(None)
            }
        }
    }

    /// Counts as at work until the guard is dropped, on no thread of its own.
    pub(super) async fn begin(&self, client: &Client) -> Result<AtWork, Superseded> {
        if client.over.load(Ordering::SeqCst) {
            // Not behind whoever waits for what is at work.
            return Err(Superseded);
        }
        let running = client.running.clone().read_owned().await;
        if client.over.load(Ordering::SeqCst) {
            return Err(Superseded);
        }
        Ok(AtWork(running))
    }

    /// The threads, for work that is nobody's.
    pub(super) fn slots(&self) -> Arc<Semaphore> {
        self.slots.clone()
    }

    /// Waits until nothing is at work.
    pub(super) async fn quiet(&self, deadline: Instant) {
        let all = self.slots.acquire_many(self.threads);
        if tokio::time::timeout_at(deadline.into(), all).await.is_err() {
            tracing::warn!("calls of the data store are still at work at the end");
        }
    }

    fn clients(&self) -> std::sync::MutexGuard<'_, HashMap<Who, Arc<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn who(session: u64) -> Who {
        ("client".into(), SessionId(session), InstanceId(1))
    }

    #[tokio::test]
    async fn withdrawn_calls_leave_nothing_behind_however_long_the_disk_takes() {
        let turns = Arc::new(Turns::new(2));
        let client = turns.enter(&who(1)).await;
        let (release, blocked) = mpsc::channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        let payload = Arc::new(());
        for _ in 0..10 {
            let (turns, client) = (turns.clone(), client.clone());
            let (blocked, held) = (blocked.clone(), payload.clone());
            let call = tokio::spawn(async move {
                let work = move || {
                    let _held = held;
                    blocked.lock().unwrap().recv().ok();
                };
                turns.take(&client, work).await
            });
            tokio::time::sleep(Duration::from_millis(5)).await;
            call.abort();
            assert!(call.await.unwrap_err().is_cancelled());
        }
        assert_eq!(Arc::strong_count(&payload), 1 + 2, "only what is at work keeps its payload");
        drop(release);
        turns.quiet(Instant::now() + Duration::from_secs(10)).await;
        assert_eq!(Arc::strong_count(&payload), 1);
    }

    #[tokio::test]
    async fn a_session_is_fenced_when_nothing_of_it_is_at_work_on_any_connection() {
        let turns = Arc::new(Turns::new(4));
        let another_life = ("client".into(), SessionId(1), InstanceId(2));
        let (first, second) = (turns.enter(&who(1)).await, turns.enter(&another_life).await);
        let stranger = turns.enter(&who(2)).await;
        let (release, blocked) = mpsc::channel::<()>();
        let (at_work, client) = (turns.clone(), second.clone());
        let call =
            tokio::spawn(
                async move { at_work.take(&client, move || blocked.recv().is_ok()).await },
            );
        tokio::time::sleep(Duration::from_millis(5)).await;
        let fence = tokio::spawn({
            let turns = turns.clone();
            async move { turns.fence(SessionId(1)).await }
        });
        first.superseded().await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(!fence.is_finished(), "a call is at work");
        assert_eq!(turns.take(&second, || 5).await, Err(Superseded), "and no other begins");
        drop(release);
        fence.await.unwrap();
        assert_eq!(call.await.unwrap(), Ok(Some(false)));
        assert!(first.is_fenced() && second.is_fenced() && !stranger.is_fenced());
        assert_eq!(turns.take(&first, || 5).await, Err(Superseded));
        assert_eq!(turns.take(&stranger, || 5).await, Ok(Some(5)));
    }

    #[tokio::test]
    async fn a_client_comes_back_only_when_its_old_calls_are_over() {
        let turns = Arc::new(Turns::new(2));
        let old = turns.enter(&who(1)).await;
        let (release, blocked) = mpsc::channel::<()>();
        let (at_work, client) = (turns.clone(), old.clone());
        let call =
            tokio::spawn(
                async move { at_work.take(&client, move || blocked.recv().is_ok()).await },
            );
        tokio::time::sleep(Duration::from_millis(5)).await;
        let stranger = turns.enter(&who(2)).await;
        assert_eq!(turns.take(&stranger, || 5).await, Ok(Some(5)));

        let again = tokio::spawn({
            let turns = turns.clone();
            async move { turns.enter(&who(1)).await }
        });
        old.superseded().await;
        let once_more = tokio::spawn({
            let turns = turns.clone();
            async move { turns.enter(&who(1)).await }
        });
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(!again.is_finished() && !once_more.is_finished());
        drop(release);
        let (given_up, new) = (again.await.unwrap(), once_more.await.unwrap());
        assert_eq!(call.await.unwrap(), Ok(Some(false)));
        assert_eq!(turns.take(&old, || 5).await, Err(Superseded));
        assert_eq!(turns.take(&given_up, || 5).await, Err(Superseded));
        assert_eq!(turns.take(&new, || 5).await, Ok(Some(5)));
        turns.leave(&who(1), &old).await;
        turns.leave(&who(1), &new).await;
        turns.leave(&who(2), &stranger).await;
        assert!(turns.clients().is_empty());
    }
}
