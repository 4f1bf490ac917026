//! Whose the objects of a bucket are.
//!
//! Names of objects have the installation of the certificates in them, but two file systems may have the same certificates: one whose metadata was
//! made anew, or a second one beside it. Numbers of inodes begin anew there, so neither knows the chunks of the other, and a sweep would remove
//! them as needless. So beside the objects there is one that names the metadata to which they belong, with a random number of the bucket's
//! own. Each data server notes what it has found, and uses a bucket with that object only: not one of other metadata, and not
//! one that was exchanged or emptied, where nothing of what is away would be found.
//!
//! Both the object and the note are text, one line for each thing, so that an operator can read and put them:
//! `netfs bucket 1`, `owner` and `number` with 32 hexadecimal digits each.

use netfs_common::id::ClusterId;

/// What the text begins with, with the version of its form.
const FORM: &str = "netfs bucket 1\n";

/// What the object says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The metadata to which the objects belong.
    pub owner: [u8; 16],
    /// A number that no other bucket has.
    pub number: [u8; 16],
}

impl Marker {
    /// As it is kept.
    pub fn text(&self) -> String {
        format!("{FORM}owner {}\nnumber {}\n", ClusterId(self.owner), ClusterId(self.number))
    }

    /// What a text says, if it is of this form.
    pub fn parse(text: &[u8]) -> Option<Marker> {
        let body = std::str::from_utf8(text).ok()?.strip_prefix(FORM)?;
        let mut lines = body.lines();
        let mut number = |name: &str| {
            let digits = lines.next()?.strip_prefix(name)?.strip_prefix(' ')?;
            let is_whole = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
            let number = u128::from_str_radix(digits, 16).ok().filter(|_| is_whole)?;
            Some(number.to_be_bytes())
        };
        let found = Marker { owner: number("owner")?, number: number("number")? };
        lines.next().is_none().then_some(found)
    }
}

/// What a data directory knows of the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// Nothing, for it may be older than such knowledge.
    Unknown,
    /// It has never used one.
    Unused,
    /// It uses this one.
    Used(Marker),
}

/// What is found in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The marker.
    Marked(Marker),
    /// Something else in its place.
    Strange,
    /// No marker.
    Bare {
        /// There are objects.
        has_objects: bool,
    },
}

/// What is to be done with a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is used.
    Use,
    /// It is used from now on, which is to be noted first.
    Note(Marker),
    /// It is nobody's: the marker is to be put there.
    Mark,
    /// It is left alone.
    Refuse(Refusal),
}

/// Why a bucket is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is of other metadata.
    #[error(
        "its objects belong to another file system, {}, or to this one before its metadata was made anew: give this one a prefix or a bucket of its own",
        ClusterId(*.0)
    )]
    Foreign([u8; 16]),
    /// It has another number.
    #[error("it is another bucket than before: bring back the old one")]
    Exchanged,
    /// What is away is not there.
    #[error(
        "it has no marker, so it is another bucket or prefix than before, or was emptied: bring back the old one"
    )]
    Gone,
    /// It has objects of nobody known.
    #[error(
        "it has objects and no marker, and this server has never used it: nobody knows whose they are"
    )]
    Unclaimed,
    /// The marker cannot be understood.
    #[error("its marker is damaged, or of a later version of the program")]
    Strange,
}

/// What a data server that belongs to `owner` does with what it sees; `away`: there are bytes that it has in the bucket only.
pub fn judge(owner: [u8; 16], past: Past, away: bool, seen: Seen) -> Verdict {
    match (seen, past) {
        (Seen::Strange, _) => Verdict::Refuse(Refusal::Strange),
        (Seen::Marked(found), _) if found.owner != owner => {
            Verdict::Refuse(Refusal::Foreign(found.owner))
        }
        (Seen::Marked(found), Past::Used(known)) => match found == known {
            true => Verdict::Use,
            false => Verdict::Refuse(Refusal::Exchanged),
        },
        (Seen::Marked(found), _) => Verdict::Note(found),
        (Seen::Bare { .. }, Past::Used(_)) => Verdict::Refuse(Refusal::Gone),
        (Seen::Bare { has_objects: false }, _) if away => Verdict::Refuse(Refusal::Gone),
        (Seen::Bare { has_objects: true }, Past::Unused) => Verdict::Refuse(Refusal::Unclaimed),
        // Nothing can be taken from anybody, or they are this server's from before there were markers.
        (Seen::Bare { .. }, _) => Verdict::Mark,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Marker = Marker { owner: [1; 16], number: [7; 16] };
    const THEIRS: Marker = Marker { owner: [2; 16], number: [8; 16] };

    #[test]
    fn a_marker_is_understood_again_and_nothing_else_is() {
        let text = OURS.text();
        assert_eq!(
            text,
            "netfs bucket 1\nowner 01010101010101010101010101010101\nnumber 07070707070707070707070707070707\n"
        );
        assert_eq!(Marker::parse(text.as_bytes()), Some(OURS));
        for end in 0..text.len() - 1 {
            assert_eq!(Marker::parse(&text.as_bytes()[..end]), None, "cut at {end}");
        }
        for other in [text.replace('1', "2"), text.replace("07", "+7"), format!("{text}x\n")] {
            assert_eq!(Marker::parse(other.as_bytes()).filter(|m| *m == OURS), None, "{other}");
        }
        assert_eq!(Marker::parse(b"\xff"), None);
    }

    #[test]
    fn a_bucket_of_other_metadata_is_left_alone_whatever_is_known() {
        for past in [Past::Unknown, Past::Unused, Past::Used(OURS), Past::Used(THEIRS)] {
            for away in [false, true] {
                let verdict = judge(OURS.owner, past, away, Seen::Marked(THEIRS));
                assert_eq!(verdict, Verdict::Refuse(Refusal::Foreign(THEIRS.owner)));
                let verdict = judge(OURS.owner, past, away, Seen::Strange);
                assert_eq!(verdict, Verdict::Refuse(Refusal::Strange));
            }
        }
    }

    #[test]
    fn a_bucket_is_used_if_it_is_the_one_of_before_or_was_nobodys() {
        let judge = |past, away, seen| judge(OURS.owner, past, away, seen);
        let (empty, full) = (Seen::Bare { has_objects: false }, Seen::Bare { has_objects: true });
        let (gone, exchanged) =
            (Verdict::Refuse(Refusal::Gone), Verdict::Refuse(Refusal::Exchanged));
        let marked = Seen::Marked(OURS);
        assert_eq!(judge(Past::Used(OURS), true, marked), Verdict::Use);
        assert_eq!(judge(Past::Unused, false, marked), Verdict::Note(OURS));
        assert_eq!(judge(Past::Unknown, true, marked), Verdict::Note(OURS));
        // It was made anew by another server of this file system.
        let other = Marker { number: [9; 16], ..OURS };
        assert_eq!(judge(Past::Used(OURS), false, Seen::Marked(other)), exchanged);
        for away in [false, true] {
            assert_eq!(judge(Past::Used(OURS), away, empty), gone);
            assert_eq!(judge(Past::Used(OURS), away, full), gone);
            assert_eq!(judge(Past::Unused, away, full), Verdict::Refuse(Refusal::Unclaimed));
            // From before there were markers.
            assert_eq!(judge(Past::Unknown, away, full), Verdict::Mark);
        }
        for past in [Past::Unknown, Past::Unused] {
            assert_eq!(judge(past, false, empty), Verdict::Mark);
            assert_eq!(judge(past, true, empty), gone);
        }
    }
}
