//! The class of a file's data: how many replicas it gets, if that was said for its directory.
//!
//! Where a chunk is follows from its name alone. So the class is part of the name: it has the upper bits of the *generation*
//! ([`crate::id::ChunkId`]), and below them is counted how often the contents were discarded. A file has the class that its directory had
//! when it was made, and keeps it for life; so of two generations of a file the one with the higher [`count`] is the later one. A
//! directory has no chunks, and its generation is nothing but the class of what is made in it. Generations of before there were
//! classes are of the default class as they stand.

use std::fmt;

use bincode::{Decode, Encode};

use crate::map::MAX_REPLICAS;

/// The extended attribute that shows the class of a file or directory, and sets that of a directory: a number of replicas, or
/// `default`.
pub const XATTR: &[u8] = b"netfs.replicas";

/// The bits below the class.
const COUNT_BITS: u32 = 29;
const COUNT: u32 = (1 << COUNT_BITS) - 1;

/// How many replicas data gets: what its volume says, or a number of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct Class(u8);

impl Class {
    /// What the volume says.
    pub const DEFAULT: Class = Class(0);

    /// So many replicas, 1 to [`MAX_REPLICAS`].
    pub fn with_replicas(replicas: u8) -> Option<Class> {
        (1..=MAX_REPLICAS).contains(&usize::from(replicas)).then_some(Class(replicas))
    }

    /// The class that a generation names; it may be none that there is.
    pub fn of(generation: u32) -> Class {
        // Three bits.
        Class((generation >> COUNT_BITS) as u8)
    }

    /// As people write it.
    pub fn parse(text: &[u8]) -> Option<Class> {
        match text.trim_ascii() {
            b"default" | b"0" => Some(Class::DEFAULT),
            [digit] => Class::with_replicas(digit.checked_sub(b'0')?),
            _ => None,
        }
    }

    /// How many replicas; `None`: what the volume says.
    pub fn replicas(self) -> Option<u8> {
        (self != Class::DEFAULT).then_some(self.0)
    }

    /// Whether there is such a class.
    pub fn exists(self) -> bool {
        usize::from(self.0) <= MAX_REPLICAS
    }

    /// The first generation of a file of this class.
    pub fn first_generation(self) -> u32 {
        u32::from(self.0) << COUNT_BITS
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.replicas() {
            Some(replicas) => write!(f, "{replicas}"),
            None => f.write_str("default"),
        }
    }
}

/// How often the contents of a file were discarded before those of this generation.
pub fn count(generation: u32) -> u32 {
    generation & COUNT
}

/// A later generation of the same class; `None` when the numbers are used up.
pub fn later(generation: u32, step: u32) -> Option<u32> {
    let next = count(generation).checked_add(step).filter(|next| *next <= COUNT)?;
    Some(Class::of(generation).first_generation() | next)
}

/// Whether a generation of a file comes after another one of the same file.
pub fn is_later(generation: u32, than: u32) -> bool {
    Class::of(generation) == Class::of(than) && count(generation) > count(than)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_counts_within_its_class_and_never_beyond() {
        for replicas in 1..=5 {
            let class = Class::with_replicas(replicas).unwrap();
            let first = class.first_generation();
            assert_eq!((Class::of(first), count(first)), (class, 0));
            let next = later(first, 1 << 16).unwrap();
            assert_eq!((Class::of(next), count(next)), (class, 1 << 16));
            assert!(is_later(next, first) && !is_later(first, next) && !is_later(first, first));
            let last = first | COUNT;
            assert_eq!(later(last, 1), None);
            assert_eq!(later(next, u32::MAX), None);
            assert_eq!(later(last - 1, 1), Some(last));
            assert!(!is_later(last, 0) && !is_later(0, first));
        }
        assert_eq!(later(COUNT, 1), None);
        assert_eq!(later(7, 1), Some(8));
    }

    #[test]
    fn classes_are_one_to_five_replicas_or_what_the_volume_says() {
        assert_eq!(Class::with_replicas(0), None);
        assert_eq!(Class::with_replicas(6), None);
        assert_eq!(Class::of(12345), Class::DEFAULT);
        assert!(!Class::of(u32::MAX).exists() && Class::of(5 << COUNT_BITS).exists());
        assert_eq!(Class::parse(b"3\n"), Class::with_replicas(3));
        assert_eq!(Class::parse(b"default"), Some(Class::DEFAULT));
        assert_eq!(Class::parse(b"0"), Some(Class::DEFAULT));
        for bad in [&b"6"[..], b"", b"-1", b"33", b"three", b"/"] {
            assert_eq!(Class::parse(bad), None, "{bad:?}");
        }
        let shown = [Class::DEFAULT, Class(3)].map(|class| class.to_string());
        assert_eq!(shown, ["default", "3"]);
    }
}
