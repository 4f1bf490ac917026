//! How many replicas a volume's data has, class by class.

use netfs_common::class::Class;
use netfs_common::map::MAX_REPLICAS;

use super::{CommandError, Manager};

impl Manager {
    /// Of the default class; and the fewest with which writes go on, of all.
    pub(super) fn replicas(
        &mut self,
        volume: u64,
        replicas: u8,
        min: u8,
    ) -> Result<(), CommandError> {
        if !is_possible(replicas) || !(1..=replicas).contains(&min) {
            return Err(CommandError::BadReplicas);
        }
        if self.state.pool(volume, Class::DEFAULT).is_none() {
            return Err(CommandError::NoVolume);
        }
        for of in self.state.pools.iter_mut().filter(|of| of.pool.volume == volume) {
            // Another class has its own number.
            if of.pool.class == Class::DEFAULT {
                of.replicas = replicas;
            }
            of.pool.min_replicas = min.min(of.replicas);
        }
        Ok(())
    }

    /// Of another class, whatever number it is called by: otherwise nobody could take servers away once somebody had wished for many replicas.
    pub(super) fn class_replicas(
        &mut self,
        volume: u64,
        class: Class,
        replicas: u8,
    ) -> Result<(), CommandError> {
        if !is_possible(replicas) {
            return Err(CommandError::BadReplicas);
        }
        let Some(like) = self.state.pool(volume, Class::DEFAULT) else {
            return Err(CommandError::NoVolume);
        };
        let min = like.pool.min_replicas;
        let mut pools = self.state.pools.iter_mut();
        let found = pools.find(|of| (of.pool.volume, of.pool.class) == (volume, class));
        let of = found.filter(|_| class != Class::DEFAULT).ok_or(CommandError::NoClass(class))?;
        of.replicas = replicas;
        of.pool.min_replicas = min.min(replicas);
        Ok(())
    }
}

fn is_possible(replicas: u8) -> bool {
    (1..=MAX_REPLICAS).contains(&usize::from(replicas))
}
