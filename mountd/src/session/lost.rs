//! What the metadata server has lost of its log.

use netfs_common::wire::hello::Lost;

/// Changes that were answered with positions in these ranges never happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LostPositions(Vec<Lost>);

impl LostPositions {
    /// As the server has told.
    pub fn new(ranges: Vec<Lost>) -> LostPositions {
        LostPositions(ranges)
    }

    /// Whether a change that was answered with this position is lost.
    pub fn has(&self, at: u64) -> bool {
        self.0.iter().any(|lost| lost.after.0 < at && at < lost.before.0)
    }
}
