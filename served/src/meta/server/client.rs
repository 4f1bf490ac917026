//! Answering the calls of one connection.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use netfs_common::codec;
use netfs_common::errno::Errno;
use netfs_common::id::SessionId;
use netfs_common::net::{Handler, Link, ReplyFuture};
use netfs_common::wire::lock::LockCall;
use netfs_common::wire::meta::{Answer, Request, Response};
use netfs_common::wire::operator::{Operation, Outcome};

use super::Shared;
use super::clock::ClientClock;
use super::members::Entry;
use super::volume::Volume;

/// The largest answer. Only listings come near it; they are shortened to fit.
const MAX_REPLY_BYTES: usize = 1 << 20;

/// A mounted client.
pub(super) struct Client {
    shared: Arc<Shared>,
    volume: Arc<Volume>,
    pub(super) session: SessionId,
    pub(super) entry: Entry,
    pub(super) description: String,
    pub(super) clock: ClientClock,
}

impl Client {
    pub(super) fn new(
        shared: Arc<Shared>,
        volume: Arc<Volume>,
        (session, entry): (SessionId, Entry),
        description: String,
    ) -> Arc<Client> {
        Arc::new(Client { shared, volume, session, entry, description, clock: ClientClock::new() })
    }
}

/// What somebody is told who may look and not change.
const NO_OPERATOR: &str = "the certificate is one of a client, and may only list; changes need one of a server of the cluster: \
                           give its directory with --identity, on a server usually /etc/netfs/tls";

/// The handler that a connection has; the client is shared with the calls under way.
pub(super) struct Member(pub(super) Arc<Client>);

impl Handler for Member {
    fn call(&self, link: &Link, request: Bytes) -> ReplyFuture {
        let Some(request) = understood(link, &request) else { return refused() };
        let client = self.0.clone();
        // Everything up to the first wait happens when the future is first polled, which is in the order
        // in which calls arrive.
        Box::pin(async move {
            let (name, start) = (name(&request), Instant::now());
            let answer = match request {
                Request::Status => Answer::bare(client.shared.status().await.map(without_sessions)),
                request => client.volume.answer(&client, request).await,
            };
            let outcome = answer.reply.as_ref().map_or_else(outcome, |_| "ok");
            client.shared.calls.record(name, outcome, start.elapsed());
            bytes_of(answer)
        })
    }
}

/// Who knows a session's number may try to go on in it, so only administrators are shown any.
fn without_sessions(mut response: Response) -> Response {
    if let Response::Status(status) = &mut response {
        let sessions = status.volumes.iter_mut().flat_map(|volume| &mut volume.sessions);
        sessions.for_each(|(id, ..)| *id = SessionId(0));
    }
    response
}

/// An administrator's connection.
pub(super) struct Admin {
    shared: Arc<Shared>,
    /// Its certificate is one of a server.
    operator: bool,
}

impl Admin {
    pub(super) fn new(shared: Arc<Shared>, operator: bool) -> Admin {
        Admin { shared, operator }
    }
}

impl Handler for Admin {
    fn call(&self, link: &Link, request: Bytes) -> ReplyFuture {
        let Some(request) = understood(link, &request) else { return refused() };
        let (shared, operator) = (self.shared.clone(), self.operator);
        Box::pin(async move {
            bytes_of(Answer::bare(match request {
                Request::Status => shared.status().await,
                Request::Operate(operation) if operator || operation == Operation::List => {
                    Ok(Response::Operated(shared.operate(operation).await))
                }
                Request::Operate(_) => Ok(Response::Operated(Outcome::Refused(NO_OPERATOR.into()))),
                _ => Err(Errno::EPERM),
            }))
        })
    }
}

/// A request; nonsense closes the connection.
fn understood(link: &Link, request: &Bytes) -> Option<Request> {
    match codec::decode(request) {
        Ok(request) => Some(request),
        Err(error) => {
            let address = link.remote_address();
            tracing::warn!(%address, %error, "malformed metadata call; connection closed");
            link.close();
            None
        }
    }
}

fn refused() -> ReplyFuture {
    Box::pin(std::future::ready(bytes_of(Answer::bare(Err(Errno::EPROTO)))))
}

fn bytes_of(mut answer: Answer) -> Bytes {
    loop {
        match codec::encode(&answer) {
            Ok(bytes) if bytes.len() <= MAX_REPLY_BYTES => return bytes.into(),
            Ok(bytes) => match &mut answer.reply {
                // What is left out is asked for next: the listing goes on after its last cookie. Leases on it are
                // no harm.
                Ok(Response::Listing { entries, end, .. }) if entries.len() > 1 => {
                    entries.truncate(entries.len() / 2);
                    *end = false;
                    answer.grants.truncate(entries.len() + 1);
                }
                _ => {
                    tracing::error!(len = bytes.len(), "an answer is too large");
                    answer = Answer::bare(Err(Errno::E2BIG));
                }
            },
            Err(error) => {
                tracing::error!(%error, "an answer cannot be encoded");
                answer = Answer::bare(Err(Errno::EIO));
            }
        }
    }
}

fn name(request: &Request) -> &'static str {
    match request {
        Request::Lookup { .. } => "lookup",
        Request::Get { .. } => "get",
        Request::ReadLink { .. } => "readlink",
        Request::ReadDir { .. } => "readdir",
        Request::ListXattrs { .. } => "listxattrs",
        Request::GetXattr { .. } => "getxattr",
        Request::StatFs => "statfs",
        Request::Sync => "sync",
        Request::Renew => "renew",
        Request::Mutate(_) => "mutate",
        Request::Status => "status",
        Request::Acquire { .. } => "acquire",
        Request::Reclaim { .. } => "reclaim",
        // Most of its time is spent waiting for other clients.
        Request::Lock(LockCall::Await { .. }) => "lock_await",
        Request::Lock(_) => "lock",
        Request::Inspect(_) => "inspect",
        Request::Replay { .. } => "replay",
        Request::Operate(_) => "operate",
    }
}

/// A word for the errors that tell something about the server.
fn outcome(errno: &Errno) -> &'static str {
    match *errno {
        Errno::EIO => "EIO",
        Errno::ENOSPC => "ENOSPC",
        Errno::ESTALE => "ESTALE",
        Errno::ENOENT => "ENOENT",
        Errno::EEXIST => "EEXIST",
        Errno::ESHUTDOWN => "ESHUTDOWN",
        Errno::EPROTO => "EPROTO",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use netfs_common::attr::FileKind;
    use netfs_common::id::Ino;
    use netfs_common::name::Name;
    use netfs_common::wire::meta::DirEntry;

    use super::*;

    #[test]
    fn a_listing_that_is_too_long_is_shortened_and_not_at_its_end() {
        let entry = |cookie| DirEntry {
            cookie,
            name: Name::new(vec![b'n'; 255]).unwrap(),
            ino: Ino(u64::MAX),
            kind: FileKind::File,
            attr: None,
        };
        let entries: Vec<_> = (0..10_000).map(entry).collect();
        let listing = Response::Listing { entries, end: true, parent: Ino(1) };
        let bytes = bytes_of(Answer::bare(Ok(listing)));
        assert!(bytes.len() <= MAX_REPLY_BYTES);
        match codec::decode::<Answer>(&bytes).unwrap().reply {
            Ok(Response::Listing { entries, end: false, .. }) => assert_eq!(entries.len(), 2_500),
            other => panic!("{other:?}"),
        }
    }
}
