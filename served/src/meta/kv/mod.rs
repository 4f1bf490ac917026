//! An ordered store of keys and values with atomic batches, and what is built on it.

mod cache;
mod fjall;
mod memory;
mod txn;

use std::collections::BTreeMap;

use bytes::Bytes;

pub use cache::Cached;
pub use fjall::{FjallConfig, FjallStore};
pub use memory::MemoryStore;
pub use txn::Txn;

/// Writes that are applied together: a value, or `None` to remove.
pub type Batch = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// A pair as a range gives it.
pub type Pair = (Bytes, Bytes);

/// Why a store does not answer. None of these is the fault of a command.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk or the library below failed.
    #[error("the metadata store failed: {0}")]
    Failed(String),
    /// What is on disk cannot be read as a store.
    #[error("the metadata store cannot be opened: {0}")]
    Broken(String),
    /// A value is not what its key says.
    #[error("the metadata store is damaged: {what} at key {key}")]
    Damaged {
        /// What is wrong.
        what: String,
        /// The key in hexadecimal.
        key: String,
    },
}

impl StoreError {
    /// A value that is not what its key says.
    pub fn damaged(key: &[u8], what: impl ToString) -> StoreError {
        let key = key.iter().map(|b| format!("{b:02x}")).collect();
        StoreError::Damaged { what: what.to_string(), key }
    }
}

/// Reading by key.
pub trait Read {
    /// The value of a key.
    ///
    /// # Errors
    /// When the store fails.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// At most `limit` pairs with `from <= key < to`, in ascending order.
    ///
    /// # Errors
    /// When the store fails.
    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError>;
}

/// A store.
pub trait Store: Read + Send + Sync {
    /// Whether a batch is taken at once. If not, [`Store::commit`] waits until the store has caught up.
    ///
    /// # Errors
    /// When it never will.
    fn is_ready(&self) -> Result<bool, StoreError> {
        Ok(true)
    }

    /// Applies a batch: all of it or nothing, also after a crash.
    ///
    /// # Errors
    /// When the store fails; whether the batch is in it is then unknown until it is opened anew.
    fn commit(&self, batch: Batch) -> Result<(), StoreError>;

    /// Brings all that was committed to stable storage.
    ///
    /// # Errors
    /// When the store fails.
    fn persist(&self) -> Result<(), StoreError>;

    /// About how many bytes it takes up on disk.
    fn disk_bytes(&self) -> u64;
}
