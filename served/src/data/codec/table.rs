//! The table before the frames of a packed range. The layout is at the head of `codec`.

use crc32fast::Hasher;
use netfs_common::coding::Cipher;

use super::CodecError;
use super::compress::Packing;
use crate::data::store::{ChunkKey, MAX_CHUNK_BYTES};

/// Bytes before the first entry.
pub(crate) const HEAD: usize = 24;
/// Bytes of an entry.
pub(super) const ENTRY: usize = 8;
/// What an entry has of the length.
const LENGTH: u32 = (1 << 30) - 1;
/// The sizes of frames that are understood, as powers of two.
const BITS: std::ops::RangeInclusive<u8> = 12..=20;

/// A cipher with the salt of the range.
pub(super) type Seal = (Cipher, [u8; 16]);

/// One frame of a packed range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Frame {
    /// First byte, in the chunk.
    pub(crate) offset: u32,
    /// Plain bytes.
    pub(crate) len: u32,
    /// First stored byte, from the begin of the packed range.
    pub(crate) at: u32,
    /// Stored bytes.
    pub(crate) stored: u32,
    pub(super) packing: Packing,
    pub(super) crc: u32,
}

impl Frame {
    pub(crate) fn end(&self) -> u32 {
        self.offset + self.len
    }

    pub(super) fn crc_of(&self, chunk: &ChunkKey, stored: &[u8]) -> u32 {
        let mut h = seeded(chunk);
        h.update(&self.offset.to_le_bytes());
        h.update(stored);
        h.finalize()
    }

    /// Whether these are the bytes that were stored. Needs no key.
    pub(crate) fn verify(&self, chunk: &ChunkKey, stored: &[u8]) -> Result<(), CodecError> {
        if stored.len() == self.stored as usize && self.crc_of(chunk, stored) == self.crc {
            Ok(())
        } else {
            Err(CodecError::Damaged("checksum mismatch"))
        }
    }
}

fn seeded(chunk: &ChunkKey) -> Hasher {
    let mut h = Hasher::new();
    h.update(&chunk.ino.to_le_bytes());
    h.update(&chunk.generation.to_le_bytes());
    h.update(&chunk.index.to_le_bytes());
    h
}

/// The frames of a range, as offset and length.
pub(super) fn cut((offset, len): (u32, u32), bits: u8) -> impl Iterator<Item = (u32, u32)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        let start = at;
        at = ((at >> bits) + 1).checked_shl(bits.into()).map_or(end, |next| next.min(end));
        (start < end).then(|| (start, at - start))
    })
}

pub(super) fn frame_count((offset, len): (u32, u32), bits: u8) -> usize {
    match len {
        0 => 0,
        _ => (((offset + len - 1) >> bits) - (offset >> bits) + 1) as usize,
    }
}

/// What is said about a packed range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Table {
    /// Offset in the chunk, and length.
    pub(crate) range: (u32, u32),
    pub(super) bits: u8,
    pub(super) seal: Option<Seal>,
    pub(crate) frames: Vec<Frame>,
}

impl Table {
    /// The most bytes that a packed range takes.
    pub(crate) fn most_stored(range: (u32, u32)) -> u64 {
        let frames = frame_count(range, *BITS.start()) as u64;
        HEAD as u64 + u64::from(range.1) + frames * (ENTRY + super::TAG) as u64
    }

    /// Its length, which its first bytes tell.
    pub(crate) fn len_of(head: &[u8], range: (u32, u32)) -> Result<usize, CodecError> {
        let bits = *head.get(1).ok_or(CodecError::Damaged("it is cut short"))?;
        if !BITS.contains(&bits) {
            return Err(CodecError::Damaged("its table makes no sense"));
        }
        Ok(HEAD + ENTRY * frame_count(range, bits))
    }

    /// How it is encrypted.
    pub(crate) fn cipher(&self) -> Option<Cipher> {
        self.seal.map(|(cipher, _)| cipher)
    }

    /// Bytes of table and frames.
    pub(crate) fn stored(&self) -> u32 {
        let table = HEAD + ENTRY * self.frames.len();
        table as u32 + self.frames.iter().map(|frame| frame.stored).sum::<u32>()
    }

    /// Reads the table before a packed range.
    pub(crate) fn parse(
        bytes: &[u8],
        chunk: &ChunkKey,
        range: (u32, u32),
    ) -> Result<Table, CodecError> {
        let senseless = CodecError::Damaged("its table makes no sense");
        let in_chunk = u64::from(range.0) + u64::from(range.1) <= MAX_CHUNK_BYTES;
        if range.1 == 0 || !in_chunk {
            return Err(senseless);
        }
        let len = Table::len_of(bytes, range)?;
        let bytes = bytes.get(..len).ok_or(CodecError::Damaged("it is cut short"))?;
        if word(bytes, 4) != crc(chunk, range, bytes) {
            return Err(CodecError::Damaged("checksum mismatch in its table"));
        }
        let bits = bytes[1];
        let mut salt = [0; 16];
        salt.copy_from_slice(&bytes[8..HEAD]);
        let seal = match bytes[0] {
            0 => None,
            1 => Some((Cipher::Aes256Gcm, salt)),
            2 => Some((Cipher::ChaCha20Poly1305, salt)),
            _ => return Err(senseless),
        };
        let tag = if seal.is_some() { super::TAG as u32 } else { 0 };
        let mut frames = Vec::with_capacity(frame_count(range, bits));
        let mut at = len as u32;
        for ((offset, len), entry) in cut(range, bits).zip(bytes[HEAD..].chunks_exact(ENTRY)) {
            let (length, crc) = (word(entry, 0), word(entry, 4));
            let Some(packing) = Packing::from_bits(length >> 30) else { return Err(senseless) };
            let stored = length & LENGTH;
            // Never longer than plain, so nothing that is read is larger than what was asked for.
            if stored <= tag || stored > len + tag {
                return Err(senseless);
            }
            frames.push(Frame { offset, len, at, stored, packing, crc });
            at += stored;
        }
        Ok(Table { range, bits, seal, frames })
    }

    pub(crate) fn encode(&self, chunk: &ChunkKey) -> Vec<u8> {
        let mut out = vec![0; HEAD];
        if let Some((cipher, salt)) = &self.seal {
            out[0] = match cipher {
                Cipher::Aes256Gcm => 1,
                Cipher::ChaCha20Poly1305 => 2,
            };
            out[8..].copy_from_slice(salt);
        }
        out[1] = self.bits;
        for frame in &self.frames {
            let length = frame.stored | (frame.packing as u32) << 30;
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&frame.crc.to_le_bytes());
        }
        let crc = crc(chunk, self.range, &out);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Some of the frames, which are neighbours, as a range of their own: the same stored bytes belong to it.
    pub(crate) fn part(&self, frames: &[Frame]) -> Option<Table> {
        let (first, last) = (frames.first()?, frames.last()?);
        let range = (first.offset, last.end() - first.offset);
        let shift = first.at - (HEAD + ENTRY * frames.len()) as u32;
        let frames = frames.iter().map(|f| Frame { at: f.at - shift, ..*f }).collect();
        Some(Table { range, frames, ..*self })
    }
}

fn crc(chunk: &ChunkKey, range: (u32, u32), table: &[u8]) -> u32 {
    let mut h = seeded(chunk);
    h.update(&range.0.to_le_bytes());
    h.update(&range.1.to_le_bytes());
    h.update(&table[..4]);
    h.update(&table[8..]);
    h.finalize()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Makes the checksums of a packed range right, whatever it says.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn seal_checksums(bytes: &mut [u8], chunk: &ChunkKey, range: (u32, u32)) {
    let in_chunk = u64::from(range.0) + u64::from(range.1) <= MAX_CHUNK_BYTES;
    let Some(len) = Table::len_of(bytes, range).ok().filter(|len| in_chunk && *len <= bytes.len())
    else {
        return;
    };
    let mut at = len;
    for (n, (offset, _)) in cut(range, bytes[1]).enumerate() {
        let entry = HEAD + ENTRY * n;
        let stored = (word(bytes, entry) & LENGTH) as usize;
        let Some(frame) = bytes.get(at..at + stored) else { break };
        let mut h = seeded(chunk);
        h.update(&offset.to_le_bytes());
        h.update(frame);
        let crc = h.finalize();
        bytes[entry + 4..entry + 8].copy_from_slice(&crc.to_le_bytes());
        at += stored;
    }
    let crc = crc(chunk, range, &bytes[..len]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
}
