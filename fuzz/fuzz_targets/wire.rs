//! Every message that comes from the network: no input may panic, and what is accepted must
//! come back the same when it is encoded and decoded again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netfs_common::codec;
use netfs_common::wire::{Hello, HelloReply, data, meta};

macro_rules! round {
    ($t:ty, $bytes:expr) => {
        if let Ok(value) = codec::decode::<$t>($bytes) {
            let again = codec::encode(&value).expect("accepted, so it can be encoded");
            assert_eq!(codec::decode::<$t>(&again).expect("own bytes"), value);
        }
    };
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 8 {
        0 => round!(Hello, bytes),
        1 => round!(HelloReply, bytes),
        2 => round!(meta::Request, bytes),
        3 => round!(meta::Reply, bytes),
        4 => round!(meta::Push, bytes),
        5 => round!(meta::PushReply, bytes),
        6 => round!(data::Request, bytes),
        _ => round!(data::Reply, bytes),
    }
});
