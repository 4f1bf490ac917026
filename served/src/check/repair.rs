//! Removing chunks that belong to nobody, and to whom nobody can come back: of inodes that are gone, and of contents that
//! a file no longer has. Numbers of inodes are never used again and generations only rise, so what is such a leftover once
//! is one for ever. What may only not have been reported yet is left alone.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{CheckError, Report};
use crate::data::store::{ChunkInfo, SegmentStore, StoreConfig};

/// Contents to remove, by inode and generation: their bytes.
#[derive(Debug, Default)]
pub(super) struct Leftovers(BTreeMap<(u64, u32), u64>);

impl Leftovers {
    pub(super) fn add(&mut self, chunk: &ChunkInfo) {
        *self.0.entry((chunk.key.ino, chunk.key.generation)).or_default() += chunk.allocated_bytes;
    }
}

/// Removes them, durably.
pub(super) fn remove(
    dir: &Path,
    config: &StoreConfig,
    leftovers: &Leftovers,
    report: &mut Report,
) -> Result<(), CheckError> {
    if leftovers.0.is_empty() {
        report.summary.push("repair: there is nothing to remove".into());
        return Ok(());
    }
    // Faulty metadata is no judge of what belongs to nobody.
    if report.fault_count > 0 {
        return Err(CheckError::NotRepaired(format!("there are {} faults", report.fault_count)));
    }
    let failed = |source| CheckError::Data { dir: dir.into(), source };
    refuse_strangers(dir)?;
    let (store, _) = SegmentStore::open(dir, config.clone()).map_err(failed)?;
    let mut freed = 0u64;
    for (ino, generation) in leftovers.0.keys() {
        let grown = store.delete_chunks(*ino, *generation, 0).map_err(failed)?;
        freed += grown.unsigned_abs();
    }
    store.close().map_err(failed)?;
    report.summary.push(format!(
        "repair: removed {freed} bytes of {} contents that belonged to nobody",
        leftovers.0.len()
    ));
    Ok(())
}

/// Files that another user makes here could not be opened by the server.
fn refuse_strangers(dir: &Path) -> Result<(), CheckError> {
    let refused = |e: io::Error| CheckError::NotRepaired(format!("{}: {e}", dir.display()));
    let owner = std::fs::metadata(dir).map_err(refused)?.uid();
    // SAFETY: the call has no conditions and cannot fail.
    let own = unsafe { libc::geteuid() };
    if owner == own {
        return Ok(());
    }
    Err(CheckError::NotRepaired(format!(
        "{} belongs to user {owner} and this is user {own}; run it as the user of the server",
        dir.display()
    )))
}
