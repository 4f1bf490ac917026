//! The bytes of an object.
//!
//! Everything is little endian. The header:
//!
//! | at | size | |
//! | --- | --- | --- |
//! | 0 | 8 | magic `NETFSOBJ` |
//! | 8 | 4 | format version, 2 |
//! | 12 | 4 | flags: 1 the table is packed, 2 the data is packed |
//! | 16 | 16 | cluster |
//! | 32 | 8 | inode number |
//! | 40 | 4 | generation |
//! | 44 | 4 | number of ranges |
//! | 48 | 8 | index of the chunk |
//! | 56 | 8 | version of the chunk |
//! | 64 | 8 | length of the whole object |
//! | 72 | 4 | CRC-32 of the data as it is here |
//! | 76 | 4 | CRC-32 of the table as it is here |
//! | 80 | 4 | length of the table as it is here |
//! | 84 | 8 | 0 |
//! | 92 | 4 | CRC-32 of bytes 0..92 |
//!
//! Then the *table*: how many bytes of data there are, u64, and the ranges of the chunk that have data, each `offset u32, length u32`,
//! ascending and not overlapping. Then the *data*: the bytes of the ranges, one after the other. What is in no range is a hole.
//!
//! **Packed** are table and data as the volume wants it, each for itself as a range that begins at 0 ([`crate::data::codec`]): compressed where that
//! pays, encrypted in an encrypted volume. The header stays readable, so that [`check_header`] needs no key.
//!
//! **What an encrypted object is bound to.** Its keys are derived with a salt that is drawn for every encryption, so no key is ever used for
//! two contents, whoever makes the object and however often; and with a digest of its name, which is cluster, volume, group, chunk and
//! version. The key of the data depends on the table too. So an object in another's place, the table of one with the data of another, and
//! a part that is left out are refused; the table is never empty, so neither is what its tag protects. What is not encrypted is
//! refused in an encrypted volume.
//!
//! [`encode`] and [`Object::decode`] are the only place where contents become bytes of the bucket and the other way round.
//!
//! **Format 1**, which is read as well, is never packed. Its header has 80 bytes: up to 72 as above with flags 0, the CRC-32 of all that follows the header, and the CRC-32 of
//! bytes 0..76. Its table has the ranges only.
//!
//! The format changes by raising the version; older objects stay readable.

use bytes::Bytes;
use netfs_common::id::ChunkId;
use ring::digest::{Context, SHA256};

use super::name::ObjectId;
use crate::data::codec::{Codec, CodecError, Scope, Table};
use crate::data::store::{ChunkKey, MAX_CHUNK_BYTES};

const MAGIC: &[u8; 8] = b"NETFSOBJ";
const FORMAT: u32 = 2;
/// An earlier format that is understood.
const FORMAT_1: u32 = 1;
/// Bytes of the header.
pub(super) const HEADER: usize = 96;
const HEADER_1: usize = 80;
const RANGE: usize = 8;
/// What is before the ranges in a table.
const TABLE_HEAD: usize = 8;
/// Ranges of one chunk: more than the store ever makes of one.
const MAX_RANGES: usize = 1 << 16;
const MAX_TABLE: usize = TABLE_HEAD + RANGE * MAX_RANGES;
/// What packing adds at most, to table and data together: less than one part in 64, and a little.
const MAX_ADDED: u64 = (MAX_CHUNK_BYTES + MAX_TABLE as u64) / 64 + 4096;
/// No object is larger.
pub const MAX_OBJECT_BYTES: u64 = MAX_CHUNK_BYTES + (HEADER + MAX_TABLE) as u64 + MAX_ADDED;

const TABLE_PACKED: u32 = 1;
const DATA_PACKED: u32 = 2;

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
    /// The checksums are right, and it is not from who has the key.
    #[error("it is not what was encrypted for this version of this chunk with the volume's key")]
    Forged,
    /// It is encrypted, and there is no key for that.
    #[error("it is encrypted, and there is no key for it")]
    NoKey,
    /// The system has no random numbers, so nothing can be encrypted.
    #[error("no random numbers: {0}")]
    Random(String),
}

impl From<CodecError> for ObjectError {
    fn from(error: CodecError) -> ObjectError {
        match error {
            CodecError::Damaged(why) => ObjectError::Damaged(why),
            CodecError::Forged => ObjectError::Forged,
            CodecError::NoKey => ObjectError::NoKey,
            CodecError::Random(why) => ObjectError::Random(why),
        }
    }
}

/// A verified object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    ranges: Ranges,
    data: Bytes,
}

/// Offset and length of what a chunk has, ascending.
pub type Ranges = Vec<(u32, u32)>;

/// The bytes of an object: the ranges of a chunk that have data, ascending, and what is there, packed as its volume wants it.
///
/// # Errors
/// The ranges cannot be those of a chunk; or they are to be encrypted, and cannot.
pub fn encode(
    id: &ObjectId,
    pieces: &[(u32, Vec<u8>)],
    codec: &Codec,
) -> Result<Vec<u8>, ObjectError> {
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
    let sum: usize = pieces.iter().map(|(_, data)| data.len()).sum();
    let mut table = Vec::with_capacity(TABLE_HEAD + RANGE * pieces.len());
    table.extend_from_slice(&(sum as u64).to_le_bytes());
    for (offset, data) in pieces {
        table.extend_from_slice(&offset.to_le_bytes());
        table.extend_from_slice(&(data.len() as u32).to_le_bytes());
    }
    let all: Vec<&[u8]> = pieces.iter().map(|(_, data)| data.as_slice()).collect();
    let key = key_of(id);
    let packed_data = match sum {
        0 => None,
        _ => codec.encode(&data_scope(id, &table), &key, 0, &all)?,
    };
    let packed_table = codec.encode(&table_scope(id), &key, 0, &[&table])?;
    let mut flags = 0;
    flags |= if packed_table.is_some() { TABLE_PACKED } else { 0 };
    flags |= if packed_data.is_some() { DATA_PACKED } else { 0 };
    let table = packed_table.unwrap_or(table);
    let data_len = packed_data.as_ref().map_or(sum, Vec::len);
    let total = HEADER + table.len() + data_len;
    let mut out = Vec::with_capacity(total);
    out.extend_from_slice(&header(id, pieces.len() as u32, total as u64));
    out.extend_from_slice(&table);
    match packed_data {
        Some(data) => out.extend_from_slice(&data),
        None => all.iter().for_each(|data| out.extend_from_slice(data)),
    }
    let data_crc = crc32fast::hash(&out[HEADER + table.len()..]);
    let table_crc = crc32fast::hash(&table);
    let fields = [(8, FORMAT), (12, flags), (72, data_crc), (76, table_crc)];
    for (at, value) in fields.into_iter().chain([(80, table.len() as u32)]) {
        out[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let crc = crc32fast::hash(&out[..92]);
    out[92..HEADER].copy_from_slice(&crc.to_le_bytes());
    Ok(out)
}

/// What is the same in both formats, but for the version.
fn header(id: &ObjectId, ranges: u32, total: u64) -> [u8; HEADER] {
    let ChunkId { ino, generation, index } = id.chunk;
    let mut b = [0; HEADER];
    b[..8].copy_from_slice(MAGIC);
    b[16..32].copy_from_slice(&id.cluster);
    b[32..40].copy_from_slice(&ino.0.to_le_bytes());
    b[40..44].copy_from_slice(&generation.to_le_bytes());
    b[44..48].copy_from_slice(&ranges.to_le_bytes());
    b[48..56].copy_from_slice(&index.to_le_bytes());
    b[56..64].copy_from_slice(&id.version.0.to_le_bytes());
    b[64..72].copy_from_slice(&total.to_le_bytes());
    b
}

fn key_of(id: &ObjectId) -> ChunkKey {
    let ChunkId { ino, generation, index } = id.chunk;
    ChunkKey { ino: ino.0, generation, index }
}

/// What the keys of a part of an object depend on, besides the salt.
fn scope(part: &[u8], id: &ObjectId, bound: &[u8]) -> Scope {
    let mut h = Context::new(&SHA256);
    h.update(b"netfs object 2 ");
    h.update(part);
    h.update(id.name().as_bytes());
    h.update(&[0]);
    h.update(bound);
    let digest = h.finish();
    let mut out = Scope::default();
    out.iter_mut().zip(digest.as_ref()).for_each(|(out, byte)| *out = *byte);
    out
}

fn table_scope(id: &ObjectId) -> Scope {
    scope(b"table ", id, &[])
}

fn data_scope(id: &ObjectId, table: &[u8]) -> Scope {
    scope(b"data ", id, table)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

/// What the header of an object says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    format: u32,
    flags: u32,
    ranges: usize,
    /// Where the table is, and where it ends.
    table: (usize, usize),
}

impl Head {
    /// How many bytes at the begin of the object tell the ranges; `None`: all of it has to be verified for that.
    pub(super) fn outline_bytes(&self) -> Option<usize> {
        (self.format != FORMAT_1).then_some(self.table.1)
    }

    /// Whether table and data, if it has any, may be encrypted.
    pub(super) fn is_packed(&self) -> bool {
        let wanted = if self.ranges == 0 { TABLE_PACKED } else { TABLE_PACKED | DATA_PACKED };
        self.flags & wanted == wanted
    }
}

/// Checks that an object of this length with this header is the one that is meant.
pub(super) fn check_header(id: &ObjectId, bytes: &[u8], size: u64) -> Result<Head, ObjectError> {
    let damaged = |why| Err(ObjectError::Damaged(why));
    if bytes.len() < HEADER_1 {
        return damaged("it is cut short");
    }
    let format = u32_at(bytes, 8);
    let len = if format == FORMAT_1 { HEADER_1 } else { HEADER };
    if bytes.len() < len {
        return damaged("it is cut short");
    }
    if bytes[..8] != *MAGIC || crc32fast::hash(&bytes[..len - 4]) != u32_at(bytes, len - 4) {
        return damaged("its header is damaged");
    }
    let flags = u32_at(bytes, 12);
    let known = if format == FORMAT_1 { 0 } else { TABLE_PACKED | DATA_PACKED };
    if ![FORMAT_1, FORMAT].contains(&format) || flags & !known != 0 {
        return Err(ObjectError::Newer(format));
    }
    let ranges = u32_at(bytes, 44) as usize;
    let expected = header(id, ranges as u32, size);
    if bytes[16..64] != expected[16..64] {
        return damaged("it is of another chunk, or of another version");
    }
    if bytes[64..72] != expected[64..72] || size > MAX_OBJECT_BYTES {
        return damaged("it has another length than it should");
    }
    if ranges > MAX_RANGES {
        return damaged("it has more ranges than a chunk can have");
    }
    let stored = match format {
        FORMAT_1 => RANGE * ranges,
        _ => u32_at(bytes, 80) as usize,
    };
    let most = match flags & TABLE_PACKED {
        0 => MAX_TABLE as u64,
        _ => Table::most_stored((0, table_len(ranges))),
    };
    if stored as u64 > most || (len + stored) as u64 > size {
        return damaged("its table is longer than it can be");
    }
    Ok(Head { format, flags, ranges, table: (len, len + stored) })
}

fn table_len(ranges: usize) -> u32 {
    (TABLE_HEAD + RANGE * ranges) as u32
}

/// One part of an object, as it was before it was packed.
fn unpack(
    (id, codec): (&ObjectId, &Codec),
    scope: impl FnOnce() -> Scope,
    len: u32,
    stored: Bytes,
    is_packed: bool,
) -> Result<Bytes, ObjectError> {
    let encrypted = codec.cipher().is_some();
    if !is_packed {
        return match encrypted {
            // Anybody can write what is not encrypted.
            true => Err(ObjectError::Forged),
            false => Ok(stored),
        };
    }
    let key = key_of(id);
    let table = Table::parse(&stored, &key, (0, len))?;
    if encrypted && table.cipher().is_none() {
        return Err(ObjectError::Forged);
    }
    if table.stored() as usize != stored.len() {
        return Err(ObjectError::Damaged("it has another length than it should"));
    }
    Ok(codec.decode(&scope(), &key, (0, len), &stored)?.into())
}

/// The ranges of a table, and the bytes that they have together.
fn ranges_of(table: &[u8]) -> Result<(Ranges, u32), ObjectError> {
    let impossible = ObjectError::Damaged("its ranges are impossible");
    let (mut ranges, mut end, mut sum) = (Vec::with_capacity(table.len() / RANGE), 0, 0);
    for range in table.chunks_exact(RANGE) {
        let (offset, len) = (u32_at(range, 0), u32_at(range, 4));
        if u64::from(offset) < end || len == 0 {
            return Err(impossible);
        }
        end = u64::from(offset) + u64::from(len);
        sum += u64::from(len);
        ranges.push((offset, len));
    }
    match u32::try_from(sum) {
        Ok(sum) if end <= MAX_CHUNK_BYTES => Ok((ranges, sum)),
        _ => Err(impossible),
    }
}

/// What the begin of an object tells of its ranges, verified; `bytes` are those of [`Head::outline_bytes`] at least.
///
/// # Errors
/// It is not the object that is meant.
pub(super) fn outline(
    id: &ObjectId,
    head: &Head,
    bytes: &Bytes,
    codec: &Codec,
) -> Result<Ranges, ObjectError> {
    Ok(open_table(id, head, bytes, codec)?.1.0)
}

/// The table of an object of the present format as it was before it was packed, and what it says.
fn open_table(
    id: &ObjectId,
    head: &Head,
    bytes: &Bytes,
    codec: &Codec,
) -> Result<(Bytes, (Ranges, u32)), ObjectError> {
    let (from, to) = head.table;
    if bytes.len() < to {
        return Err(ObjectError::Damaged("it is cut short"));
    }
    let stored = bytes.slice(from..to);
    if crc32fast::hash(&stored) != u32_at(bytes, 76) {
        return Err(ObjectError::Damaged("the checksum of its table does not match"));
    }
    let (len, is_packed) = (table_len(head.ranges), head.flags & TABLE_PACKED != 0);
    let table = unpack((id, codec), || table_scope(id), len, stored, is_packed)?;
    let impossible = ObjectError::Damaged("its ranges are impossible");
    if table.len() != len as usize {
        return Err(impossible);
    }
    let (head, ranges) = table.split_at(TABLE_HEAD);
    let (ranges, sum) = ranges_of(ranges)?;
    match *head == u64::from(sum).to_le_bytes() {
        true => Ok((table, (ranges, sum))),
        false => Err(impossible),
    }
}

impl Object {
    /// Verifies all of it.
    ///
    /// # Errors
    /// It is not the object that is meant, or there is no key for it.
    pub fn decode(id: &ObjectId, bytes: Bytes, codec: &Codec) -> Result<Object, ObjectError> {
        let head = check_header(id, &bytes, bytes.len() as u64)?;
        let mismatch = ObjectError::Damaged("its checksum does not match");
        if head.format == FORMAT_1 {
            return match crc32fast::hash(&bytes[HEADER_1..]) == u32_at(&bytes, 72) {
                true => Object::decode_1(&head, &bytes, codec),
                false => Err(mismatch),
            };
        }
        let (table, (ranges, sum)) = open_table(id, &head, &bytes, codec)?;
        let stored = bytes.slice(head.table.1..);
        if crc32fast::hash(&stored) != u32_at(&bytes, 72) {
            return Err(mismatch);
        }
        let is_packed = head.flags & DATA_PACKED != 0;
        let data = match sum {
            0 => stored,
            _ => unpack((id, codec), || data_scope(id, &table), sum, stored, is_packed)?,
        };
        match data.len() == sum as usize {
            true => Ok(Object { ranges, data }),
            false => Err(ObjectError::Damaged("its ranges are impossible")),
        }
    }

    fn decode_1(head: &Head, bytes: &Bytes, codec: &Codec) -> Result<Object, ObjectError> {
        if codec.cipher().is_some() {
            return Err(ObjectError::Forged);
        }
        let (ranges, sum) = ranges_of(&bytes[head.table.0..head.table.1])?;
        let data = bytes.slice(head.table.1..);
        match data.len() == sum as usize {
            true => Ok(Object { ranges, data }),
            false => Err(ObjectError::Damaged("its ranges are impossible")),
        }
    }

    /// Offset and length of what the chunk has, ascending.
    pub fn ranges(&self) -> &[(u32, u32)] {
        &self.ranges
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
    use netfs_common::coding::{Cipher, Compression};
    use netfs_common::id::{GroupId, Ino, Version};
    use proptest::prelude::*;

    use super::*;
    use crate::data::codec::VolumeKey;

    fn id() -> ObjectId {
        ObjectId {
            cluster: *b"cluster of tests",
            volume: 0,
            group: GroupId(1),
            chunk: ChunkId { ino: Ino(77), generation: 2, index: 5 },
            version: Version(9),
        }
    }

    fn plain() -> Codec {
        Codec::default()
    }

    fn sealed(key: u8) -> Codec {
        Codec::new(Compression::Zstd, Some(VolumeKey::fixed(Cipher::Aes256Gcm, [key; 32])))
    }

    fn codecs() -> [Codec; 4] {
        let key = VolumeKey::fixed(Cipher::ChaCha20Poly1305, [1; 32]);
        let only = Codec::new(Compression::None, Some(key));
        [plain(), Codec::new(Compression::Lz4, None), only, sealed(2)]
    }

    fn pieces() -> Vec<(u32, Vec<u8>)> {
        vec![(4, b"four".to_vec()), (8, b"eight".to_vec()), (100, vec![7; 50])]
    }

    fn some(codec: &Codec) -> Vec<u8> {
        encode(&id(), &pieces(), codec).unwrap()
    }

    fn decode(bytes: &[u8], codec: &Codec) -> Result<Object, ObjectError> {
        Object::decode(&id(), bytes.to_vec().into(), codec)
    }

    /// As the first release of the format made them.
    fn some_of_format_1() -> Vec<u8> {
        let data: Vec<u8> = pieces().into_iter().flat_map(|(_, data)| data).collect();
        let total = (HEADER_1 + RANGE * 3 + data.len()) as u64;
        let mut out = header(&id(), 3, total)[..HEADER_1].to_vec();
        out[8] = 1;
        for (offset, data) in pieces() {
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&(data.len() as u32).to_le_bytes());
        }
        out.extend_from_slice(&data);
        let crc = crc32fast::hash(&out[HEADER_1..]);
        out[72..76].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32fast::hash(&out[..76]);
        out[76..80].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Makes the checksums of the header, of table and of data right again.
    fn mend_checksums(bytes: &mut [u8]) {
        let data = HEADER + u32_at(bytes, 80) as usize;
        let crcs = [crc32fast::hash(&bytes[data..]), crc32fast::hash(&bytes[HEADER..data])];
        bytes[72..76].copy_from_slice(&crcs[0].to_le_bytes());
        bytes[76..80].copy_from_slice(&crcs[1].to_le_bytes());
        let crc = crc32fast::hash(&bytes[..92]);
        bytes[92..HEADER].copy_from_slice(&crc.to_le_bytes());
    }

    #[test]
    fn what_goes_in_comes_out_and_holes_are_zeros() {
        let mut expected = vec![0; 200];
        expected[2..11].copy_from_slice(b"foureight");
        expected[98..148].fill(7);
        for codec in codecs() {
            let object = decode(&some(&codec), &codec).unwrap();
            let mut out = vec![1; 200];
            object.fill(2, &mut out);
            assert_eq!(out, expected);
            assert_eq!((object.len(), object.ranges()), (59, &[(4, 4), (8, 5), (100, 50)][..]));
            let empty = encode(&id(), &[], &codec).unwrap();
            assert!(decode(&empty, &codec).unwrap().is_empty());
        }
    }

    #[test]
    fn the_form_is_pinned() {
        let bytes = encode(&id(), &[(4, b"four".to_vec())], &plain()).unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let head = "4e455446534f424a0200000000000000636c7573746572206f66207465737473\
                    4d0000000000000002000000010000000500000000000000090000000000000074000000";
        assert!(hex.starts_with(head), "{hex}");
        assert!(hex.ends_with("04000000000000000400000004000000666f7572"), "{hex}");
        assert_eq!(bytes.len(), HEADER + 16 + 4);
        let old = some_of_format_1();
        assert_eq!(crc32fast::hash(&old), 0x5d1d_10eb, "{:08x}", crc32fast::hash(&old));
        assert_eq!(decode(&old, &plain()).unwrap(), decode(&some(&plain()), &plain()).unwrap());
        assert_eq!(decode(&old, &sealed(2)), Err(ObjectError::Forged));
    }

    #[test]
    fn no_truncation_extension_or_flipped_bit_passes() {
        for codec in codecs() {
            for good in [some(&codec), some_of_format_1()] {
                for len in 0..good.len() {
                    assert!(decode(&good[..len], &codec).is_err(), "{len}");
                }
                let mut longer = good.clone();
                longer.push(0);
                assert!(decode(&longer, &codec).is_err());
                for bit in 0..good.len() * 8 {
                    let mut bad = good.clone();
                    bad[bit / 8] ^= 1 << (bit % 8);
                    assert!(decode(&bad, &codec).is_err(), "bit {bit}");
                }
            }
        }
    }

    #[test]
    fn the_object_of_another_chunk_or_version_is_refused() {
        let other = |change: fn(&mut ObjectId)| {
            let mut other = id();
            change(&mut other);
            Object::decode(&other, some(&plain()).into(), &plain()).is_err()
        };
        assert!(other(|id| id.version = Version(8)));
        assert!(other(|id| id.chunk.ino = Ino(78)));
        assert!(other(|id| id.chunk.generation = 3));
        assert!(other(|id| id.chunk.index = 4));
        assert!(other(|id| id.cluster = *b"another cluster!"));
    }

    #[test]
    fn what_is_encrypted_is_not_there_in_plain_and_no_other_key_opens_it() {
        let marker = b"a marker that nobody would write by accident";
        let data = marker.repeat(3000);
        for codec in &codecs()[2..] {
            let make = || encode(&id(), &[(0, data.clone())], codec).unwrap();
            let bytes = make();
            assert!(!bytes.windows(16).any(|part| marker.windows(16).any(|m| m == part)));
            assert_ne!(bytes[HEADER..], make()[HEADER..], "each is encrypted under another key");
            assert_eq!(
                decode(&bytes, &sealed(3)).unwrap_err(),
                match codec.cipher() {
                    Some(Cipher::Aes256Gcm) => ObjectError::Forged,
                    _ => ObjectError::NoKey,
                }
            );
            assert_eq!(decode(&bytes, &plain()), Err(ObjectError::NoKey));
        }
        let packed = encode(&id(), &[(0, data.clone())], &sealed(2)).unwrap();
        assert!(packed.len() < data.len() / 2, "{}", packed.len());
    }

    #[test]
    fn an_encrypted_object_is_refused_in_anothers_place_in_parts_and_in_plain() {
        let codec = sealed(2);
        // Somebody who can write to the bucket makes the header say what it wants.
        let mut moved = some(&codec);
        let later = ObjectId { version: Version(10), ..id() };
        let head = header(&later, 3, moved.len() as u64);
        moved[16..72].copy_from_slice(&head[16..72]);
        mend_checksums(&mut moved);
        let decoded = Object::decode(&later, moved.into(), &codec);
        assert_eq!(decoded, Err(ObjectError::Forged));
        let elsewhere = ObjectId { group: GroupId(2), ..id() };
        let decoded = Object::decode(&elsewhere, some(&codec).into(), &codec);
        assert_eq!(decoded, Err(ObjectError::Forged));
        // The table of one with the data of another.
        let other = [(0, vec![9; 59])];
        let other = encode(&id(), &other, &sealed(2)).unwrap();
        let (ours, split) = (some(&codec), |b: &[u8]| HEADER + u32_at(b, 80) as usize);
        let mut mixed = ours[..split(&ours)].to_vec();
        mixed.extend_from_slice(&other[split(&other)..]);
        let total = mixed.len() as u64;
        mixed[64..72].copy_from_slice(&total.to_le_bytes());
        mend_checksums(&mut mixed);
        assert_eq!(decode(&mixed, &codec), Err(ObjectError::Forged));
        // Nothing at all, and what is not encrypted.
        let nothing = encode(&id(), &[], &plain()).unwrap();
        assert_eq!(decode(&nothing, &codec), Err(ObjectError::Forged));
        let packed = Codec::new(Compression::Zstd, None);
        for codec_of_others in [plain(), packed] {
            let open = encode(&id(), &[(0, vec![0; 5000])], &codec_of_others).unwrap();
            assert_eq!(decode(&open, &codec), Err(ObjectError::Forged));
        }
    }

    #[test]
    fn the_ranges_can_be_told_from_the_begin() {
        for codec in codecs() {
            let bytes = some(&codec);
            let head = check_header(&id(), &bytes, bytes.len() as u64).unwrap();
            let enough = head.outline_bytes().unwrap();
            let begin: Bytes = bytes[..enough].to_vec().into();
            let ranges = outline(&id(), &head, &begin, &codec).unwrap();
            assert_eq!(ranges, [(4, 4), (8, 5), (100, 50)]);
            assert!(outline(&id(), &head, &begin.slice(..enough - 1), &codec).is_err());
            // What is only compressed may be packed too.
            assert!(head.is_packed() || codec.cipher().is_none());
        }
        let old = some_of_format_1();
        let head = check_header(&id(), &old, old.len() as u64).unwrap();
        assert_eq!(head.outline_bytes(), None);
    }

    #[test]
    fn impossible_ranges_are_refused_on_both_sides() {
        let encode = |pieces: &[(u32, Vec<u8>)]| encode(&id(), pieces, &plain());
        assert!(encode(&[(4, vec![1; 4]), (7, vec![1])]).is_err());
        assert!(encode(&[(4, Vec::new())]).is_err());
        assert!(encode(&[(MAX_CHUNK_BYTES as u32, vec![1])]).is_err());
        let mut later = some(&plain());
        later[8] = 3;
        mend_checksums(&mut later);
        assert_eq!(decode(&later, &plain()), Err(ObjectError::Newer(3)));
        // One range more than the bytes are for.
        let mut bad = some(&plain());
        let second = HEADER + TABLE_HEAD + RANGE + 4;
        bad[second] += 1;
        mend_checksums(&mut bad);
        assert!(decode(&bad, &plain()).is_err());
    }

    proptest! {
        #[test]
        fn anything_may_come_from_a_bucket(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode(&bytes, &plain()).is_err());
        }

        #[test]
        fn anything_may_follow_a_header(
            at in 8..200usize, bytes in proptest::collection::vec(any::<u8>(), 1..60)
        ) {
            for codec in codecs() {
                let good = some(&codec);
                let mut bad = good.clone();
                let end = (at + bytes.len()).min(bad.len());
                if at >= end { continue; }
                bad[at..end].copy_from_slice(&bytes[..end - at]);
                if (u32_at(&bad, 80) as usize) < bad.len() - HEADER {
                    mend_checksums(&mut bad);
                }
                // It may say other things, where nothing is encrypted; it may not take the server down.
                if let Ok(object) = decode(&bad, &codec) {
                    prop_assert!(codec.cipher().is_none() || bad == good || object.len() == 59);
                }
            }
        }
    }
}
