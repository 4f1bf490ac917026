//! The one place that knows how messages and stored values become bytes.
//!
//! The format is bincode 2 in its standard configuration (variable-length integers, little
//! endian), always decoded with a limit and to the last byte. To change the format, change
//! this module and raise [`crate::wire::PROTOCOL`] and the format version of every store.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::{Decode, Encode};

/// The most bytes that one decoded value may claim, whatever it says of itself. It is above the
/// largest message (a listing) and far below what would hurt.
pub const MAX_DECODED_BYTES: usize = 4 << 20;

const CONFIG: Configuration<LittleEndian, Varint, Limit<MAX_DECODED_BYTES>> =
    bincode::config::standard().with_limit::<MAX_DECODED_BYTES>();

/// Why bytes are not a message, or a message cannot be bytes.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The bytes are not a value of the type.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// The value is followed by bytes that do not belong to it.
    #[error("malformed message: {0} bytes too many")]
    Trailing(usize),
    /// The value cannot be encoded.
    #[error("message cannot be encoded: {0}")]
    Unencodable(String),
}

/// The bytes of a value.
///
/// # Errors
/// [`CodecError::Unencodable`] when the value is above the limit.
pub fn encode<T: Encode>(value: &T) -> Result<Vec<u8>, CodecError> {
    bincode::encode_to_vec(value, CONFIG).map_err(|e| CodecError::Unencodable(e.to_string()))
}

/// The value of bytes, all of them.
///
/// # Errors
/// Whatever is not exactly one value within the limit.
pub fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, used) = bincode::decode_from_slice(bytes, CONFIG)
        .map_err(|e| CodecError::Malformed(e.to_string()))?;
    match bytes.len() - used {
        0 => Ok(value),
        more => Err(CodecError::Trailing(more)),
    }
}
