//! Every message that comes from the network: no input may panic, and what is accepted must
//! come back the same when it is encoded and decoded again.

use netfs_common::wire::{Hello, HelloReply, data, meta};

use crate::meta::round;

pub(crate) fn run(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 8 {
        0 => round::<Hello>(bytes),
        1 => round::<HelloReply>(bytes),
        2 => round::<meta::Request>(bytes),
        3 => round::<meta::Answer>(bytes),
        4 => round::<meta::Push>(bytes),
        5 => round::<meta::PushReply>(bytes),
        6 => round::<data::Request>(bytes),
        _ => round::<data::Reply>(bytes),
    }
}
