//! The bytes of an object.
//!
//! Everything is little endian. The header:
//!
//! | at | size | |
//! | --- | --- | --- |
//! | 0 | 8 | magic `NETFSOBJ` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | flags, 0; for compressed and for encrypted contents |
//! | 16 | 16 | cluster |
//! | 32 | 8 | inode number |
//! | 40 | 4 | generation |
//! | 44 | 4 | number of ranges |
//! | 48 | 8 | index of the chunk |
//! | 56 | 8 | version of the chunk |
//! | 64 | 8 | length of the whole object |
//! | 72 | 4 | CRC-32 of all that follows the header |
//! | 76 | 4 | CRC-32 of bytes 0..76 |
//!
//! Then the ranges of the chunk that have data, each `offset u32, length u32`, ascending and not overlapping; then their bytes, one range
//! after the other. What is in no range is a hole.
//!
//! [`encode`] and [`Object::decode`] are the only place where contents become bytes of the bucket and the other way round: what a volume's
//! encryption does to them belongs here. The header stays readable, so that [`check_header`] needs no key.
//!
//! The format changes by raising the version; older objects stay readable.

use bytes::Bytes;
use crc32fast::Hasher;
use netfs_common::id::ChunkId;

use super::name::ObjectId;
use crate::data::store::MAX_CHUNK_BYTES;

const MAGIC: &[u8; 8] = b"NETFSOBJ";
const FORMAT: u32 = 1;
/// Bytes of the header.
pub(super) const HEADER: usize = 80;
const RANGE: usize = 8;
/// Ranges of one chunk: more than the store ever makes of one.
const MAX_RANGES: usize = 1 << 16;
/// No object is larger.
pub const MAX_OBJECT_BYTES: u64 = MAX_CHUNK_BYTES + (HEADER + RANGE * MAX_RANGES) as u64;

/// Why bytes are not the object that they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// Not what was put there.
    #[error("{0}")]
    Damaged(&'static str),
    /// Written by a later release.
    #[error("it has format version {0}, and this program knows version {FORMAT}")]
    Newer(u32),
    /// It cannot be made.
    #[error("the chunk has too many ranges, or too large ones, for an object")]
    TooLarge,
}

/// A verified object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    ranges: Vec<(u32, u32)>,
    data: Bytes,
}

/// The bytes of an object: the ranges of a chunk that have data, ascending, and what is there.
///
/// # Errors
/// The ranges cannot be those of a chunk.
pub fn encode(id: &ObjectId, pieces: &[(u32, Vec<u8>)]) -> Result<Vec<u8>, ObjectError> {
    let mut end = 0;
    for (offset, data) in pieces {
        let offset = u64::from(*offset);
        if offset < end || data.is_empty() {
            return Err(ObjectError::TooLarge);
        }
        end = offset + data.len() as u64;
    }
    if end > MAX_CHUNK_BYTES || pieces.len() > MAX_RANGES {
        return Err(ObjectError::TooLarge);
    }
    let data: usize = pieces.iter().map(|(_, data)| data.len()).sum();
    let total = HEADER + RANGE * pieces.len() + data;
    let mut out = Vec::with_capacity(total);
    out.extend_from_slice(&header(id, pieces.len() as u32, total as u64));
    for (offset, data) in pieces {
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(&(data.len() as u32).to_le_bytes());
    }
    for (_, data) in pieces {
        out.extend_from_slice(data);
    }
    let crc = crc32fast::hash(&out[HEADER..]);
    out[72..76].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32fast::hash(&out[..76]);
    out[76..HEADER].copy_from_slice(&crc.to_le_bytes());
    Ok(out)
}

/// All but the checksums.
fn header(id: &ObjectId, ranges: u32, total: u64) -> [u8; HEADER] {
    let ChunkId { ino, generation, index } = id.chunk;
    let mut b = [0; HEADER];
    b[..8].copy_from_slice(MAGIC);
    b[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    b[16..32].copy_from_slice(&id.cluster);
    b[32..40].copy_from_slice(&ino.0.to_le_bytes());
    b[40..44].copy_from_slice(&generation.to_le_bytes());
    b[44..48].copy_from_slice(&ranges.to_le_bytes());
    b[48..56].copy_from_slice(&index.to_le_bytes());
    b[56..64].copy_from_slice(&id.version.0.to_le_bytes());
    b[64..72].copy_from_slice(&total.to_le_bytes());
    b
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

/// Checks that an object of this length with this header is the one that is meant. The number of its ranges.
pub(super) fn check_header(id: &ObjectId, bytes: &[u8], size: u64) -> Result<usize, ObjectError> {
    let damaged = |why| Err(ObjectError::Damaged(why));
    if bytes.len() < HEADER {
        return damaged("it is cut short");
    }
    if bytes[..8] != *MAGIC || crc32fast::hash(&bytes[..76]) != u32_at(bytes, 76) {
        return damaged("its header is damaged");
    }
    if u32_at(bytes, 8) != FORMAT || u32_at(bytes, 12) != 0 {
        return Err(ObjectError::Newer(u32_at(bytes, 8)));
    }
    let ranges = u32_at(bytes, 44) as usize;
    let expected = header(id, ranges as u32, size);
    if bytes[16..64] != expected[16..64] {
        return damaged("it is of another chunk, or of another version");
    }
    if bytes[64..72] != expected[64..72] || size > MAX_OBJECT_BYTES {
        return damaged("it has another length than it should");
    }
    if ranges > MAX_RANGES || (HEADER + RANGE * ranges) as u64 > size {
        return damaged("it has more ranges than bytes");
    }
    Ok(ranges)
}

impl Object {
    /// Verifies all of it.
    ///
    /// # Errors
    /// It is not the object that is meant.
    pub fn decode(id: &ObjectId, bytes: Bytes) -> Result<Object, ObjectError> {
        let count = check_header(id, &bytes, bytes.len() as u64)?;
        let mut h = Hasher::new();
        h.update(&bytes[HEADER..]);
        if h.finalize() != u32_at(&bytes, 72) {
            return Err(ObjectError::Damaged("its checksum does not match"));
        }
        let data = bytes.slice(HEADER + RANGE * count..);
        let (mut ranges, mut end, mut sum) = (Vec::with_capacity(count), 0, 0);
        for n in 0..count {
            let at = HEADER + RANGE * n;
            let (offset, len) = (u32_at(&bytes, at), u32_at(&bytes, at + 4));
            if u64::from(offset) < end || len == 0 {
                return Err(ObjectError::Damaged("its ranges are impossible"));
            }
            end = u64::from(offset) + u64::from(len);
            sum += u64::from(len);
            ranges.push((offset, len));
        }
        if end > MAX_CHUNK_BYTES || sum != data.len() as u64 {
            return Err(ObjectError::Damaged("its ranges are impossible"));
        }
        Ok(Object { ranges, data })
    }

    /// Bytes of the chunk that it has.
    pub fn len(&self) -> u64 {
        self.data.len() as u64
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Fills `out` with what the chunk has from an offset on.
    pub fn fill(&self, offset: u32, out: &mut [u8]) {
        out.fill(0);
        let (from, to) = (u64::from(offset), u64::from(offset) + out.len() as u64);
        let mut at = 0;
        for (start, len) in &self.ranges {
            let (begin, end) = (u64::from(*start), u64::from(*start) + u64::from(*len));
            let (first, last) = (begin.max(from), end.min(to));
            if first < last {
                let source = at + (first - begin) as usize;
                let part = (last - first) as usize;
                let target = (first - from) as usize;
                out[target..target + part].copy_from_slice(&self.data[source..source + part]);
            }
            at += *len as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use netfs_common::id::{GroupId, Ino, Version};
    use proptest::prelude::*;

    use super::*;

    fn id() -> ObjectId {
        ObjectId {
            cluster: *b"cluster of tests",
            volume: 0,
            group: GroupId(1),
            chunk: ChunkId { ino: Ino(77), generation: 2, index: 5 },
            version: Version(9),
        }
    }

    fn some() -> Vec<u8> {
        encode(&id(), &[(4, b"four".to_vec()), (8, b"eight".to_vec()), (100, vec![7; 50])]).unwrap()
    }

    #[test]
    fn what_goes_in_comes_out_and_holes_are_zeros() {
        let object = Object::decode(&id(), some().into()).unwrap();
        let mut out = vec![1; 200];
        object.fill(2, &mut out);
        let mut expected = vec![0; 200];
        expected[2..11].copy_from_slice(b"foureight");
        expected[98..148].fill(7);
        assert_eq!(out, expected);
        assert_eq!(object.len(), 59);
        let empty = encode(&id(), &[]).unwrap();
        assert!(Object::decode(&id(), empty.into()).unwrap().is_empty());
    }

    #[test]
    fn no_truncation_extension_or_flipped_bit_passes() {
        let good = some();
        for len in 0..good.len() {
            assert!(Object::decode(&id(), good[..len].to_vec().into()).is_err(), "{len}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(Object::decode(&id(), longer.into()).is_err());
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Object::decode(&id(), bad.into()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_object_of_another_chunk_or_version_is_refused() {
        let other = |change: fn(&mut ObjectId)| {
            let mut other = id();
            change(&mut other);
            Object::decode(&other, some().into()).is_err()
        };
        assert!(other(|id| id.version = Version(8)));
        assert!(other(|id| id.chunk.ino = Ino(78)));
        assert!(other(|id| id.chunk.generation = 3));
        assert!(other(|id| id.chunk.index = 4));
        assert!(other(|id| id.cluster = *b"another cluster!"));
    }

    #[test]
    fn impossible_ranges_are_refused_on_both_sides() {
        assert!(encode(&id(), &[(4, vec![1; 4]), (7, vec![1])]).is_err());
        assert!(encode(&id(), &[(4, Vec::new())]).is_err());
        assert!(encode(&id(), &[(MAX_CHUNK_BYTES as u32, vec![1])]).is_err());
        let mut later = some();
        later[8] = 2;
        let crc = crc32fast::hash(&later[..76]);
        later[76..80].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Object::decode(&id(), later.into()), Err(ObjectError::Newer(2)));
    }

    proptest! {
        #[test]
        fn anything_may_come_from_a_bucket(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Object::decode(&id(), bytes.into()).is_err());
        }
    }
}
