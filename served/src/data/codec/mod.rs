//! How the bytes of a volume look at rest: compressed, encrypted, in frames.
//!
//! A range of a chunk is cut into **frames** at multiples of a power of two of the chunk's offset. Each is compressed and encrypted by
//! itself, so a read decodes those frames only that it needs. A table before them says where they are. The whole is called
//! a *packed* range:
//!
//! | at | size | |
//! | --- | --- | --- |
//! | 0 | 1 | cipher: 0 none, 1 AES-256-GCM, 2 ChaCha20-Poly1305 |
//! | 1 | 1 | frames are cut at multiples of 2 to the power of this, 12 to 20 |
//! | 2 | 2 | 0 |
//! | 4 | 4 | CRC-32 of the chunk's key, the range (offset, length), and the table without these 4 bytes |
//! | 8 | 16 | salt, random for each range that is encrypted; 0 without a cipher |
//! | 24 | 8 each | of each frame: bits 0..30 its stored length, bits 30..32 how it is compressed (0 not, 1 LZ4, 2 Zstandard); CRC-32 of the chunk's key, the frame's offset, and its stored bytes |
//! | | | the frames, without gaps |
//!
//! **What protects it.** The checksums find damage, and need no key: so a scrub, recovery and the moving of data work without.
//! Encryption besides it authenticates. Each range is encrypted under a key of its own, derived by HKDF-SHA-256 from the
//! volume's key, the salt and the store's identity; the nonce is the number of the frame in the chunk. A salt is drawn whenever a range
//! is encrypted and has 128 bits, so a key is never used twice, neither when the end of a log is written anew after a
//! crash, nor in a restored copy of a store. The tag binds a frame to chunk, offset, length and the kind of its compression: it is refused anywhere else. What
//! is not noticed by this alone is that an old state of a place is put back, all of it, by somebody who can write to the disk.
//!
//! **Frames are independent of the place of the record.** The moved part of a range is the same frames under another table with the same
//! salt (`Table::part`).
//!
//! **Untrusted input.** The table says no plain lengths: they follow from the range, which the caller knows. So nothing is ever
//! decompressed to more than that.

mod cipher;
mod compress;
mod keys;
mod table;
#[cfg(test)]
mod tests;

use netfs_common::coding::{Cipher, Compression};

use crate::data::store::ChunkKey;
pub use cipher::VolumeKey;
use cipher::{RangeKey, TAG};
use compress::Packing;
pub use keys::{KeyError, KeyFile};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use table::seal_checksums;
pub(crate) use table::{Frame, HEAD, Table};
use table::{cut, frame_count};

/// Where data may be compressed, larger frames save more.
const PACKED_FRAME_BITS: u8 = 16;
/// Where it is encrypted only, small ones make reads of little data cheap.
const SEALED_FRAME_BITS: u8 = 14;
/// A range is compressed if that saves one part in so many.
const WORTH: u64 = 8;

/// What a packed range belongs to: a store, or wherever else it is kept.
pub type Scope = [u8; 16];

/// Why packed bytes cannot be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes are not those that were stored.
    #[error("{0}")]
    Damaged(&'static str),
    /// The checksum is right and the tag is not.
    #[error("it is not what was encrypted for this place with the volume's key")]
    Forged,
    /// It is encrypted, and there is no key for that.
    #[error("it is encrypted, and there is no key for it")]
    NoKey,
    /// The system has no random numbers.
    #[error("no random numbers: {0}")]
    Random(String),
}

/// How the bytes of a volume are written, and the key to read them.
#[derive(Clone, Debug)]
pub struct Codec {
    compression: Compression,
    key: Option<VolumeKey>,
    /// Sizes of frames that may be compressed, and of others, as powers of two.
    bits: (u8, u8),
}

impl Default for Codec {
    fn default() -> Self {
        Codec::new(Compression::None, None)
    }
}

/// A range of bytes in pieces.
pub type Pieces<'a> = &'a [&'a [u8]];

impl Codec {
    /// For a volume.
    pub fn new(compression: Compression, key: Option<VolumeKey>) -> Codec {
        Codec { compression, key, bits: (PACKED_FRAME_BITS, SEALED_FRAME_BITS) }
    }

    /// With small frames, so that a short test has many.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn with_frames(self, bits: u8) -> Codec {
        Codec { bits: (bits, bits), ..self }
    }

    /// The way of encryption.
    pub(crate) fn cipher(&self) -> Option<Cipher> {
        self.key.as_ref().map(VolumeKey::cipher)
    }

    /// Whether nothing is ever done to the bytes.
    pub fn is_plain(&self) -> bool {
        self.compression == Compression::None && self.key.is_none()
    }

    /// Packs what goes to `offset` of a chunk. `None`: it is not to be encrypted, and to compress it does not pay.
    ///
    /// # Errors
    /// Without random numbers nothing is encrypted.
    pub fn encode(
        &self,
        scope: &Scope,
        chunk: &ChunkKey,
        offset: u32,
        data: Pieces<'_>,
    ) -> Result<Option<Vec<u8>>, CodecError> {
        let len: u64 = data.iter().map(|piece| piece.len() as u64).sum();
        let tag = if self.key.is_some() { TAG } else { 0 };
        let mut packed = None;
        if self.compression != Compression::None {
            let (out, saved) = pack(self.compression, (offset, data), self.bits.0, tag);
            packed = (saved >= len.div_ceil(WORTH)).then_some((out, self.bits.0));
        }
        let Some(key) = &self.key else {
            let Some((packed, bits)) = packed else { return Ok(None) };
            return Ok(Some(finish(packed, None, chunk, (offset, len as u32), bits)));
        };
        let (mut packed, bits) = packed.unwrap_or_else(|| {
            (pack(Compression::None, (offset, data), self.bits.1, tag).0, self.bits.1)
        });
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(|e| CodecError::Random(e.to_string()))?;
        let range_key = RangeKey::derive(key, scope, &salt)?;
        for frame in &packed.frames {
            let at = frame.at as usize;
            let bytes = &mut packed.bytes[at..at + frame.stored as usize];
            range_key.seal(chunk, frame, bits, bytes)?;
        }
        let seal = Some((key.cipher(), salt));
        Ok(Some(finish(packed, seal, chunk, (offset, len as u32), bits)))
    }

    /// What is needed to open the frames of a table.
    ///
    /// # Errors
    /// [`CodecError::NoKey`].
    pub(crate) fn opener(&self, scope: &Scope, table: &Table) -> Result<Opener, CodecError> {
        let Some((cipher, salt)) = &table.seal else { return Ok(Opener(None)) };
        match &self.key {
            Some(key) if key.cipher() == *cipher => {
                Ok(Opener(Some((RangeKey::derive(key, scope, salt)?, table.bits))))
            }
            _ => Err(CodecError::NoKey),
        }
    }

    /// The bytes of a whole packed range.
    ///
    /// # Errors
    /// Why they cannot be had.
    pub fn decode(
        &self,
        scope: &Scope,
        chunk: &ChunkKey,
        (offset, len): (u32, u32),
        packed: &[u8],
    ) -> Result<Vec<u8>, CodecError> {
        let table = Table::parse(packed, chunk, (offset, len))?;
        let opener = self.opener(scope, &table)?;
        let mut out = Vec::with_capacity(len as usize);
        for frame in &table.frames {
            let at = frame.at as usize;
            let stored = packed.get(at..at + frame.stored as usize);
            let stored = stored.ok_or(CodecError::Damaged("it is cut short"))?;
            frame.verify(chunk, stored)?;
            opener.open(chunk, frame, &mut stored.to_vec(), &mut out)?;
        }
        Ok(out)
    }
}

/// Opens the frames of one range.
pub(crate) struct Opener(Option<(RangeKey, u8)>);

impl Opener {
    /// Appends the plain bytes of a frame to `out`. `stored` is used up.
    pub(crate) fn open(
        &self,
        chunk: &ChunkKey,
        frame: &Frame,
        stored: &mut [u8],
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let packed: &[u8] = match &self.0 {
            Some((key, bits)) => key.open(chunk, frame, *bits, stored)?,
            None => stored,
        };
        compress::unpack(frame.packing, packed, frame.len as usize, out)
    }
}

/// Frames before they are encrypted, with room for the table and for tags.
struct Packed {
    bytes: Vec<u8>,
    frames: Vec<Frame>,
}

/// Compresses frame by frame; and how many bytes that has saved.
fn pack(
    how: Compression,
    (offset, data): (u32, Pieces<'_>),
    bits: u8,
    tag: usize,
) -> (Packed, u64) {
    let len = data.iter().map(|piece| piece.len()).sum::<usize>() as u32;
    let table_len = HEAD + table::ENTRY * frame_count((offset, len), bits);
    let mut bytes = Vec::with_capacity(table_len + len as usize + tag);
    bytes.resize(table_len, 0);
    let mut frames = Vec::with_capacity(frame_count((offset, len), bits));
    let mut rest = Gather { pieces: data, at: 0 };
    let mut scratch = Vec::new();
    let mut saved = 0;
    for (start, size) in cut((offset, len), bits) {
        let at = bytes.len();
        let packing = match how {
            Compression::None => {
                rest.take(size as usize, &mut bytes);
                Packing::Plain
            }
            _ => {
                scratch.clear();
                rest.take(size as usize, &mut scratch);
                compress::pack(how, &scratch, &mut bytes)
            }
        };
        saved += u64::from(size).saturating_sub((bytes.len() - at) as u64);
        bytes.resize(bytes.len() + tag, 0);
        let stored = (bytes.len() - at) as u32;
        frames.push(Frame { offset: start, len: size, at: at as u32, stored, packing, crc: 0 });
    }
    (Packed { bytes, frames }, saved)
}

/// Takes bytes from pieces.
struct Gather<'a> {
    pieces: Pieces<'a>,
    /// In the first piece.
    at: usize,
}

impl Gather<'_> {
    fn take(&mut self, mut len: usize, out: &mut Vec<u8>) {
        while let (Some(piece), true) = (self.pieces.first(), len > 0) {
            let part = &piece[self.at..];
            let part = &part[..part.len().min(len)];
            out.extend_from_slice(part);
            (self.at, len) = (self.at + part.len(), len - part.len());
            if self.at == piece.len() {
                (self.pieces, self.at) = (&self.pieces[1..], 0);
            }
        }
    }
}

fn finish(
    packed: Packed,
    seal: Option<table::Seal>,
    chunk: &ChunkKey,
    range: (u32, u32),
    bits: u8,
) -> Vec<u8> {
    let Packed { mut bytes, mut frames } = packed;
    for frame in &mut frames {
        let at = frame.at as usize;
        frame.crc = frame.crc_of(chunk, &bytes[at..at + frame.stored as usize]);
    }
    let head = Table { range, bits, seal, frames }.encode(chunk);
    bytes[..head.len()].copy_from_slice(&head);
    bytes
}
