//! Names of directory entries.

use std::fmt;

use bincode::de::Decoder;
use bincode::error::DecodeError;
use bincode::{Decode, Encode};

use crate::errno::Errno;

/// The longest name, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;

/// The name of a directory entry: 1 to 255 bytes, neither `.` nor `..`, without `/` and NUL.
///
/// The rules hold for every value of the type, also for one that was decoded from the network.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Encode)]
pub struct Name(Vec<u8>);

impl Name {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// `ENAMETOOLONG` beyond 255 bytes, `EINVAL` for any other breach.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Name, Errno> {
        let bytes = bytes.into();
        if bytes.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let special = bytes.is_empty() || bytes == b"." || bytes == b"..";
        if special || bytes.iter().any(|b| matches!(b, b'/' | 0)) {
            return Err(Errno::EINVAL);
        }
        Ok(Name(bytes))
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl<C> Decode<C> for Name {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Name::new(Vec::<u8>::decode(decoder)?).map_err(|_| DecodeError::Other("not a name"))
    }
}

impl<'de, C> bincode::BorrowDecode<'de, C> for Name {
    fn borrow_decode<D: bincode::de::BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, DecodeError> {
        <Name as Decode<C>>::decode(decoder)
    }
}
