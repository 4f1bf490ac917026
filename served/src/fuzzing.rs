//! What the fuzz targets run, and tests with random inputs of their own: what is on disk, and what clients ask for, holds
//! arbitrary bytes. No part of a normal build.
//!
//! An input is a little program: it makes something sound, changes bytes of it, and then what is promised of damaged files is
//! checked. After some of the changes all checksums are made right again ("sealed"), so that what lies behind them is reached
//! too: values that nobody ever wrote, but that a fault in a program could have.

pub use crate::data::store::fuzzing::recover as segment_store;
pub use crate::meta::log::fuzzing::recover as command_log;
pub use crate::meta::namespace::fuzzing::{commands, damaged_store};

/// An input, read from its begin; beyond its end there are zeros.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl Input<'_> {
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(crate) fn number<const N: usize>(&mut self) -> u64 {
        (0..N).fold(0, |n, i| n | u64::from(self.byte()) << (8 * i))
    }

    pub(crate) fn take(&mut self, len: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }

    /// One of the numbers at which things change, or any.
    pub(crate) fn telling(&mut self) -> u64 {
        match self.byte() % 8 {
            0 => 0,
            1 => u64::MAX,
            2 => u64::from(u32::MAX),
            3 => u64::MAX - self.number::<1>(),
            4 => 1 << (self.byte() % 64),
            5 => self.number::<8>(),
            _ => self.number::<1>(),
        }
    }
}

/// Overwrites up to eight bytes, as far as there are any.
pub(crate) fn put(bytes: &mut [u8], at: usize, value: u64, width: usize) {
    for (i, byte) in value.to_le_bytes().into_iter().take(width).enumerate() {
        if let Some(old) = bytes.get_mut(at.saturating_add(i)) {
            *old = byte;
        }
    }
}

/// Runs random inputs of at most `longest` bytes, one a seed. `NETFS_FUZZ_INPUTS` asks for another number of them.
#[cfg(test)]
pub(crate) fn try_inputs(
    count: u64,
    longest: u64,
    run: impl Fn(&[u8]) + std::panic::RefUnwindSafe,
) {
    let asked = std::env::var("NETFS_FUZZ_INPUTS").ok().and_then(|s| s.parse().ok());
    for seed in 0..asked.unwrap_or(count) {
        // SplitMix64.
        let mut state = seed << 32;
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        let len = next() % longest;
        let input: Vec<u8> = (0..len).map(|_| next() as u8).collect();
        let result = std::panic::catch_unwind(|| run(&input));
        assert!(result.is_ok(), "seed {seed} shows it: {input:?}");
    }
}
