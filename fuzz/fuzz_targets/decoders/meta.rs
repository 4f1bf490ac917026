//! Pieces of what the metadata server reads from its disk and of what clients store in it. No input may panic, and what is
//! accepted says the same when written again.

use std::fmt::Debug;

use bincode::{Decode, Encode};
use netfs_common::codec;
use netfs_served::meta::acl::Acl;
use netfs_served::meta::command::Command;
use netfs_served::meta::log::format::{Header, Record, segment_first, segment_name};
use netfs_served::meta::record;

/// One value of the codec.
pub(crate) fn round<T: Encode + Decode<()> + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(value) = codec::decode::<T>(bytes) {
        let again = codec::encode(&value).expect("accepted, so it can be encoded");
        assert_eq!(codec::decode::<T>(&again).expect("own bytes"), value);
    }
}

pub(crate) fn run(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 16 {
        0 => {
            if let Ok(header) = Header::parse(bytes) {
                assert_eq!(Header::parse(&header.to_bytes()), Ok(header));
            }
        }
        1 => {
            if let Ok(record) = Record::parse(bytes, 0) {
                let len = record.byte_len();
                assert_eq!(record.to_bytes(0), &bytes[..len]);
            }
        }
        2 => round::<Command>(bytes),
        3 | 4 => {
            if let Ok(Some(mut acl)) = Acl::parse(bytes) {
                let again = Acl::parse(&acl.to_bytes()).expect("own bytes").expect("not empty");
                assert_eq!(again.to_bytes(), acl.to_bytes());
                let (inherited, _) = acl.inherit(0o777);
                assert_eq!(inherited.to_perm(0o4644) & 0o7000, 0o4000);
                acl.set_perm(0o751);
                assert_eq!(acl.to_perm(0), 0o751);
            }
        }
        5 => {
            if let Some(first) = std::str::from_utf8(bytes).ok().and_then(segment_first) {
                assert_eq!(segment_first(&segment_name(first)), Some(first));
            }
        }
        6 => round::<record::Volume>(bytes),
        7 => round::<record::State>(bytes),
        8 => round::<record::Inode>(bytes),
        9 => round::<record::Entry>(bytes),
        10 => round::<record::Listed>(bytes),
        11 => round::<record::Session>(bytes),
        12 => round::<record::Window>(bytes),
        13 => round::<record::Answer>(bytes),
        14 => round::<record::Trim>(bytes),
        _ => round::<record::Deletion>(bytes),
    }
}
