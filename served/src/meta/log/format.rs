//! The bytes of a segment.
//!
//! All numbers are little endian.
//!
//! ```text
//! header  magic "netfslog" | format u32 | salt u32 | volume u64 | first index u64 | index before it u64 |
//!         crc32 of it all u32
//! record  length of payload u32 | crc32 of salt and what follows u32 | index u64 | flushed up to u64 | payload
//! ```
//!
//! The salt is drawn anew for each segment: nobody who can have bytes of his choice written to the log can make
//! them look like a record of it. Indices run on without a gap but for one place: where the end of the log may
//! have been lost, the next segment begins far above the index before it.
//!
//! The payload is a [`crate::meta::command::Command`] in the encoding of [`netfs_common::codec`].
//! To change the format, raise [`FORMAT`] and [`crate::meta::engine::FORMAT`].

use netfs_common::id::LogIndex;

/// The version of the format.
pub const FORMAT: u32 = 2;
/// The length of a header.
pub const HEADER_BYTES: usize = 44;
/// The length of a record without its payload.
pub const RECORD_BYTES: usize = 24;
/// The longest payload.
pub const MAX_PAYLOAD: usize = 4 << 20;

const MAGIC: &[u8; 8] = b"netfslog";

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// A number that every segment of a log shares.
    pub volume: u64,
    /// Part of the checksum of every record in the segment.
    pub salt: u32,
    /// The index of the first record.
    pub first: LogIndex,
    /// The index of the record before it, in an earlier segment; 0 for none.
    pub previous: LogIndex,
}

impl Header {
    /// The header's bytes.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(FORMAT.to_le_bytes());
        out.extend(self.salt.to_le_bytes());
        out.extend(self.volume.to_le_bytes());
        out.extend(self.first.0.to_le_bytes());
        out.extend(self.previous.0.to_le_bytes());
        out.extend(crc32fast::hash(&out).to_le_bytes());
        out
    }

    /// Reads a header from the beginning of a segment.
    ///
    /// # Errors
    /// A sentence on what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Header, String> {
        let header = bytes.get(..HEADER_BYTES).ok_or("shorter than a header")?;
        if !header.starts_with(MAGIC) {
            return Err("not a segment of a command log".into());
        }
        let format = u32_at(header, 8);
        if format != FORMAT {
            return Err(format!("format {format}, but this version reads {FORMAT}"));
        }
        if crc32fast::hash(&header[..HEADER_BYTES - 4]) != u32_at(header, HEADER_BYTES - 4) {
            return Err("the header's checksum is wrong".into());
        }
        Ok(Header {
            volume: u64_at(header, 16),
            salt: u32_at(header, 12),
            first: LogIndex(u64_at(header, 24)),
            previous: LogIndex(u64_at(header, 32)),
        })
    }
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'b> {
    /// Its position in the log.
    pub index: LogIndex,
    /// The log was known to be on stable storage up to here when this was written.
    pub flushed: LogIndex,
    /// The command.
    pub payload: &'b [u8],
}

impl<'b> Record<'b> {
    /// The record's bytes in a segment with this salt. The payload is at most [`MAX_PAYLOAD`] long.
    pub fn to_bytes(self, salt: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(RECORD_BYTES + self.payload.len());
        out.extend((self.payload.len() as u32).to_le_bytes());
        out.extend([0; 4]);
        out.extend(self.index.0.to_le_bytes());
        out.extend(self.flushed.0.to_le_bytes());
        out.extend(self.payload);
        let crc = checksum(salt, &out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the record at the beginning of `bytes`, in a segment with this salt.
    ///
    /// # Errors
    /// A sentence on what is wrong.
    pub fn parse(bytes: &'b [u8], salt: u32) -> Result<Record<'b>, String> {
        if bytes.len() < RECORD_BYTES {
            return Err(format!("{} bytes are no record", bytes.len()));
        }
        let len = u32_at(bytes, 0) as usize;
        if len > MAX_PAYLOAD {
            return Err(format!("a record claims {len} bytes"));
        }
        let body = bytes.get(8..RECORD_BYTES + len).ok_or("a record is cut short")?;
        if checksum(salt, body) != u32_at(bytes, 4) {
            return Err("a record's checksum is wrong".into());
        }
        Ok(Record {
            index: LogIndex(u64_at(bytes, 8)),
            flushed: LogIndex(u64_at(bytes, 16)),
            payload: &bytes[RECORD_BYTES..RECORD_BYTES + len],
        })
    }

    /// The length of the record's bytes.
    pub fn byte_len(&self) -> usize {
        RECORD_BYTES + self.payload.len()
    }

    /// The index that a record at the beginning of `bytes` claims, checked no further.
    pub fn claimed_index(bytes: &[u8]) -> Option<u64> {
        (bytes.len() >= RECORD_BYTES).then(|| u64_at(bytes, 8))
    }
}

fn checksum(salt: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// The name of the segment that begins at an index.
pub fn segment_name(first: LogIndex) -> String {
    format!("{:016x}.log", first.0)
}

/// The first index of the segment of this name.
pub fn segment_first(name: &str) -> Option<LogIndex> {
    let digits = name.strip_suffix(".log").filter(|d| d.len() == 16)?;
    u64::from_str_radix(digits, 16).ok().filter(|first| *first > 0).map(LogIndex)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn the_format_is_pinned() {
        let volume = 0x0102_0304_0506_0708;
        let header = Header { volume, salt: 0x0a0b, first: LogIndex(9), previous: LogIndex(8) };
        assert_eq!(
            hex(&header.to_bytes()),
            "6e657466736c6f67020000000b0a0000080706050403020109000000000000000800000000000000a2888d31"
        );
        let record =
            Record { index: LogIndex(0x1122), flushed: LogIndex(0x11), payload: b"payload" };
        assert_eq!(
            hex(&record.to_bytes(0x0a0b)),
            "0700000015cf7a58221100000000000011000000000000007061796c6f6164"
        );
    }

    #[test]
    fn headers_and_records_survive_a_round_trip_and_nothing_else_does() {
        let header = Header { volume: 7, salt: 5, first: LogIndex(3), previous: LogIndex(2) };
        assert_eq!(Header::parse(&header.to_bytes()), Ok(header));
        let record = Record { index: LogIndex(4), flushed: LogIndex(2), payload: b"abc" };
        let bytes = record.to_bytes(5);
        assert_eq!(Record::parse(&bytes, 5), Ok(record));
        assert!(Record::parse(&bytes, 6).is_err(), "a record of another segment");
        for (at, whole) in [(header.to_bytes(), true), (bytes, false)] {
            for i in 0..at.len() {
                let mut bad = at.clone();
                bad[i] ^= 1;
                let refused = if whole {
                    Header::parse(&bad).is_err()
                } else {
                    Record::parse(&bad, 5).is_err()
                };
                assert!(refused, "byte {i}");
                let short = &at[..i];
                let refused = if whole {
                    Header::parse(short).is_err()
                } else {
                    Record::parse(short, 5).is_err()
                };
                assert!(refused, "cut at {i}");
            }
        }
    }

    #[test]
    fn segments_sort_by_name() {
        assert_eq!(segment_name(LogIndex(0x1f)), "000000000000001f.log");
        assert_eq!(segment_first("000000000000001f.log"), Some(LogIndex(0x1f)));
        assert_eq!(segment_first("1f.log"), None);
        assert_eq!(segment_first("000000000000001f.tmp"), None);
    }
}
