//! A question about a path, as one line of the control socket.

use std::fmt;

use netfs_common::id::Ino;

use crate::vfs::Place;

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    /// What the answer calls it.
    pub(super) shown: Vec<u8>,
    /// Where it is.
    pub(super) place: Place,
}

impl Question {
    /// Reads `SHOWN inode:NUMBER` or `SHOWN path:NAMES`, both with everything but plain characters escaped.
    pub(super) fn parse(text: &str) -> Option<Question> {
        let (shown, place) = text.split_once(' ')?;
        let place = match place.split_once(':')? {
            ("inode", number) => Place::Inode(Ino(number.parse().ok()?)),
            ("path", names) => {
                let names = unescape(names)?;
                let names = names.split(|b| *b == b'/').filter(|n| !n.is_empty());
                Place::Path(names.map(<[u8]>::to_vec).collect())
            }
            _ => return None,
        };
        Some(Question { shown: unescape(shown)?, place })
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = escape(&self.shown);
        match &self.place {
            Place::Inode(ino) => write!(f, "{shown} inode:{}", ino.0),
            Place::Path(names) => write!(f, "{shown} path:{}", escape(&names.join(&b'/'))),
        }
    }
}

fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for b in bytes {
        match b {
            b'/' | b'.' | b'-' | b'_' => text.push(char::from(*b)),
            b if b.is_ascii_alphanumeric() => text.push(char::from(*b)),
            b => text.push_str(&format!("%{b:02x}")),
        }
    }
    text
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_survives_its_line() {
        let names = vec![b"a b".to_vec(), b"..".to_vec(), vec![0xff, b'\n', b'%', b':']];
        for place in [Place::Path(names), Place::Path(vec![]), Place::Inode(Ino(u64::MAX))] {
            let question = Question { shown: "/mnt/ä b".into(), place };
            let line = question.to_string();
            assert!(line.is_ascii() && !line.contains('\n'), "{line}");
            assert_eq!(Question::parse(&line), Some(question));
        }
    }

    #[test]
    fn nonsense_is_no_question() {
        for text in [
            "",
            "x",
            "x y",
            "x inode:",
            "x inode:-1",
            "x path:%",
            "x path:%4",
            "x path:%zz",
            "%1 path:",
        ] {
            assert_eq!(Question::parse(text), None, "{text}");
        }
    }
}
