//! Telling clients whether others have the volume mounted.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use netfs_common::codec;
use netfs_common::net::{CallError, Link};
use netfs_common::wire::meta::Push;

use super::volume::Volume;

/// How long a client may take to hear of others.
const TELL: Duration = Duration::from_secs(5);

/// What clients were told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Company {
    generation: u64,
    others: bool,
}

impl Volume {
    /// More than one client has the volume mounted.
    pub(super) fn has_company(&self) -> bool {
        self.members.count() > 1
    }

    /// Tells all clients whether there are others, if that has changed; otherwise only the one that has just come, which may
    /// have missed it.
    pub(super) fn tell_company(self: &Arc<Self>, newcomer: Option<Link>) {
        let (generation, links) = {
            let mut company = self.company.lock().unwrap_or_else(PoisonError::into_inner);
            let others = self.has_company();
            let changed = company.others != others;
            if changed {
                *company = Company { generation: company.generation + 1, others };
            }
            let links = if changed { self.members.links() } else { newcomer.into_iter().collect() };
            (company.generation, links)
        };
        for link in links {
            tokio::spawn(self.clone().tell(link, generation));
        }
    }

    /// Tells a client of others, until it has heard, there is newer news, or its connection is lost: with the next one it is
    /// told anew.
    async fn tell(self: Arc<Self>, link: Link, generation: u64) {
        loop {
            let Company { generation: latest, others } =
                *self.company.lock().unwrap_or_else(PoisonError::into_inner);
            if latest != generation {
                return;
            }
            let push = match codec::encode(&Push::Company { generation, others }) {
                Ok(push) => push.into(),
                Err(error) => return tracing::error!(%error, "a message cannot be encoded"),
            };
            match link.call(push, Instant::now() + TELL).await {
                Ok(_) | Err(CallError::Lost(_) | CallError::Closed) => return,
                Err(error) => tracing::debug!(%error, "a client was not told of others"),
            }
            tokio::time::sleep(TELL).await;
        }
    }
}
