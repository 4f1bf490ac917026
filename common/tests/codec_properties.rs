//! Properties of the codec over arbitrary input.

#![allow(clippy::unwrap_used, reason = "a failure is a panic here")]

use netfs_common::attr::Timestamp;
use netfs_common::codec;
use netfs_common::id::{Ino, OpSeq};
use netfs_common::name::Name;
use netfs_common::wire::{Hello, HelloReply, data, meta};
use proptest::prelude::*;

fn names() -> impl Strategy<Value = Name> {
    proptest::collection::vec(any::<u8>(), 1..=255)
        .prop_filter_map("not a name", |bytes| Name::new(bytes).ok())
}

fn ops() -> impl Strategy<Value = meta::Op> {
    prop_oneof![
        (any::<u64>(), names(), any::<u64>(), names()).prop_map(|(p, n, q, m)| {
            let mode = meta::RenameMode::Exchange;
            meta::Op::Rename { parent: Ino(p), name: n, new_parent: Ino(q), new_name: m, mode }
        }),
        (any::<u64>(), names()).prop_map(|(p, n)| meta::Op::Unlink { parent: Ino(p), name: n }),
        (any::<u64>(), proptest::collection::vec(any::<u8>(), 0..20_000), any::<i64>()).prop_map(
            |(ino, data, secs)| meta::Op::WriteInline {
                ino: Ino(ino),
                generation: 0,
                size: data.len() as u64,
                data,
                mtime: Timestamp { secs, nanos: 1 },
            }
        ),
        proptest::collection::vec(any::<u64>().prop_map(Ino), 0..100)
            .prop_map(|inos| meta::Op::Forget { inos }),
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(seq in any::<u64>(), secs in any::<i64>(), op in ops()) {
        let mutation = meta::Mutation {
            seq: OpSeq(seq),
            answered: OpSeq(seq / 2),
            time: Timestamp { secs, nanos: 999_999_999 },
            sync: true,
            op,
        };
        let request = meta::Request::Mutate(mutation);
        let bytes = codec::encode(&request).unwrap();
        prop_assert_eq!(codec::decode::<meta::Request>(&bytes).unwrap(), request);
        prop_assert!(codec::decode::<meta::Request>(&bytes[..bytes.len() - 1]).is_err());
        let mut longer = bytes;
        longer.push(0);
        prop_assert!(codec::decode::<meta::Request>(&longer).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = codec::decode::<meta::Request>(&bytes);
        let _ = codec::decode::<meta::Reply>(&bytes);
        let _ = codec::decode::<data::Request>(&bytes);
        let _ = codec::decode::<data::Reply>(&bytes);
        let _ = codec::decode::<Hello>(&bytes);
        if let Ok(reply) = codec::decode::<HelloReply>(&bytes)
            && let Some(volume) = reply.volume
        {
            let _ = volume.map.validate();
        }
    }

    #[test]
    fn times_survive_the_way_through_the_system_clock(secs in -4_000_000_000i64..40_000_000_000, nanos in 0u32..1_000_000_000) {
        let t = Timestamp { secs, nanos };
        prop_assert_eq!(Timestamp::from(std::time::SystemTime::from(t)), t);
    }
}
