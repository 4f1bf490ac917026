//! Classes of data: a volume gets groups for a number of replicas when it is first wanted for a directory.

use netfs_common::class::Class;
use netfs_common::errno::Errno;

use super::{Cluster, check_size};
use crate::meta::cluster::{Command, Duty};

impl Cluster {
    /// Sees to it that a volume has groups of a class, which is on stable storage when it returns: no file may get a class whose
    /// data has no place. Groups that are there stay for ever, since chunks may be in them.
    ///
    /// # Errors
    /// `EINVAL` when there is no such class, `ERANGE` when there are fewer data servers that keep their share than it wants replicas, `ENOSPC` when the map would be too large, `EAGAIN` when it cannot be stored at the moment.
    pub(in crate::meta::server) async fn ensure_class(
        &self,
        volume: u64,
        class: Class,
    ) -> Result<(), Errno> {
        if !class.exists() {
            return Err(Errno::EINVAL);
        }
        // Nobody could do anything about it but an operator, who has not wished for it: they would lack replicas for ever, and no server
        // could be drained.
        let takers = {
            let core = self.lock();
            let servers = core.manager.state().servers.values();
            servers.filter(|server| server.duty == Duty::In).count()
        };
        if class.replicas().is_some_and(|wanted| usize::from(wanted) > takers) {
            tracing::debug!(volume, %class, takers, "more replicas are wanted than there are data servers");
            return Err(Errno::ERANGE);
        }
        let has = |class| {
            let published = self.published();
            published.map.pools.iter().any(|pool| (pool.volume, pool.class) == (volume, class))
        };
        if has(class) {
            return Ok(());
        }
        let mut with = self.lock().manager.state().clone();
        if !with.add_class(volume, class) {
            return Err(Errno::EIO);
        }
        if let Err(error) = check_size(&with) {
            tracing::warn!(volume, %class, %error, "no groups for another number of replicas");
            return Err(Errno::ENOSPC);
        }
        if let Err(error) =
            self.with(|manager, now| manager.command(now, Command::Class(volume, class)))
        {
            tracing::warn!(volume, %class, %error, "no groups for another number of replicas");
            return Err(Errno::EIO);
        }
        // The change of another caller may still be on its way to the disk: then it is waited for as well.
        let version = self.lock().manager.state().version;
        self.stored(version).await.map_err(|why| {
            tracing::warn!(volume, %class, why, "groups for another number of replicas are not stored yet");
            Errno::EAGAIN
        })?;
        tracing::info!(volume, %class, "the volume has groups for another number of replicas");
        Ok(())
    }
}
