//! What is stored for some bytes: as they are, or packed as their volume wants it.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::{Arc, RwLock};

use netfs_common::map::INODE_BITS;

use super::error::StoreError;
use super::format::Form;
use super::key::ChunkKey;
use super::payload::{Payload, cut};
use super::segment_store::SegmentStore;
use super::sync::{read, write};
use crate::data::codec::{Codec, CodecError};

/// How the chunks of volumes are written. `None`: they are encrypted, and the key is not at hand.
#[derive(Default)]
pub(super) struct Codecs(RwLock<BTreeMap<u64, Option<Arc<Codec>>>>);

/// The payload of a write.
pub(super) enum Body<'a> {
    Blocks(Payload<'a>),
    Pages { table: Vec<[u8; 4]>, data: &'a [&'a [u8]] },
    Packed { range: (u32, u32), bytes: Vec<u8> },
}

impl Body<'_> {
    pub(super) fn form(&self) -> Form {
        match self {
            Self::Blocks(_) => Form::Blocks,
            // Where it is appended decides.
            Self::Pages { .. } => Form::Pages { gap: 0 },
            Self::Packed { range: (offset, len), bytes } => {
                Form::Packed { offset: *offset, len: *len, stored: bytes.len() as u32 }
            }
        }
    }

    pub(super) fn slices(&self) -> Vec<IoSlice<'_>> {
        match self {
            Self::Blocks(payload) => payload.slices(),
            Self::Pages { table, data } => {
                let data = data.iter().map(|part| IoSlice::new(part));
                std::iter::once(IoSlice::new(table.as_flattened())).chain(data).collect()
            }
            Self::Packed { bytes, .. } => vec![IoSlice::new(bytes)],
        }
    }
}

/// The number of a chunk's volume.
fn volume_of(key: &ChunkKey) -> u64 {
    key.ino >> INODE_BITS
}

impl SegmentStore {
    /// How the chunks of a volume are written from now on; `None`: it is encrypted and there is no key, so its chunks are
    /// neither written nor read. Volumes that are never named are written as they are.
    pub fn set_codec(&self, volume: u64, codec: Option<Arc<Codec>>) {
        write(&self.codecs.0).insert(volume, codec);
    }

    /// How the bytes of a chunk look wherever they are kept.
    ///
    /// # Errors
    /// [`StoreError::NoKey`].
    pub fn codec(&self, key: ChunkKey) -> Result<Arc<Codec>, StoreError> {
        Ok(self.codec_of(&key)?.unwrap_or_default())
    }

    /// How a chunk is written; `None`: as it is.
    pub(super) fn codec_of(&self, key: &ChunkKey) -> Result<Option<Arc<Codec>>, StoreError> {
        let volume = volume_of(key);
        match read(&self.codecs.0).get(&volume) {
            Some(None) => Err(StoreError::NoKey { volume }),
            Some(Some(codec)) => Ok(Some(codec.clone())),
            None => Ok(None),
        }
    }

    /// The stored form of what goes to `offset` of a chunk. Not to be called while a lock is held: it takes its time.
    pub(super) fn body<'a>(
        &self,
        key: &ChunkKey,
        offset: u32,
        len: u32,
        data: &'a [&'a [u8]],
    ) -> Result<Body<'a>, StoreError> {
        if let Some(codec) = self.codec_of(key)?
            && !codec.is_plain()
        {
            let packed = codec.encode(&self.id().0, key, offset, data);
            let packed = packed.map_err(|error| self.not_coded(key, error))?;
            if let Some(bytes) = packed {
                return Ok(Body::Packed { range: (offset, len), bytes });
            }
        }
        if len >= self.config.paged_bytes {
            let table = cut(key, offset, data.iter().copied(), |_, _| {});
            return Ok(Body::Pages { table, data });
        }
        Ok(Body::Blocks(Payload::new(key, offset, len, data.iter().copied())))
    }

    /// What a failure of the codec is that is not the fault of stored bytes.
    pub(super) fn not_coded(&self, key: &ChunkKey, error: CodecError) -> StoreError {
        match error {
            CodecError::NoKey => StoreError::NoKey { volume: volume_of(key) },
            error => StoreError::NotEncrypted(error.to_string()),
        }
    }
}
