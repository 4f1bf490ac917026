//! What the metadata server reads from its disk and what clients store in it: log headers and records, commands,
//! access control lists. No input may panic, and what is accepted says the same when written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netfs_common::codec;
use netfs_served::meta::acl::Acl;
use netfs_served::meta::command::Command;
use netfs_served::meta::log::format::{Header, Record, segment_first};

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 5 {
        0 => {
            if let Ok(header) = Header::parse(bytes) {
                let again = header.to_bytes();
                assert!(Header::parse(&again).is_ok());
            }
        }
        1 => {
            if let Ok(record) = Record::parse(bytes, 0) {
                let len = record.byte_len();
                assert_eq!(record.to_bytes(0), &bytes[..len]);
            }
        }
        2 => {
            if let Ok(command) = codec::decode::<Command>(bytes) {
                let again = codec::encode(&command).expect("accepted, so it can be encoded");
                assert_eq!(codec::decode::<Command>(&again).expect("own bytes"), command);
            }
        }
        3 => {
            if let Ok(Some(acl)) = Acl::parse(bytes) {
                let again = Acl::parse(&acl.to_bytes()).expect("own bytes").expect("not empty");
                assert_eq!(again.to_bytes(), acl.to_bytes());
                let (inherited, _) = acl.inherit(0o777);
                let _ = inherited.to_perm(0o644);
            }
        }
        _ => {
            let _ = std::str::from_utf8(bytes).map(segment_first);
        }
    }
});
