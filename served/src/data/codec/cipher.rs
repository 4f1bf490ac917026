//! Encrypting frames.

use std::sync::Arc;

use netfs_common::coding::Cipher;
use ring::aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};

use super::table::Frame;
use super::{CodecError, Scope};
use crate::data::store::ChunkKey;

/// What encryption adds to each frame. The same for both ciphers.
pub(super) const TAG: usize = 16;
/// What the derived keys are for, and the version of how.
const PURPOSE: &[u8] = b"netfs packed range 1";
/// The length of what a frame is bound to.
const BOUND: usize = 8 + 4 + 8 + 4 + 4 + 1;

pub(super) fn algorithm(cipher: Cipher) -> &'static Algorithm {
    match cipher {
        Cipher::Aes256Gcm => &AES_256_GCM,
        Cipher::ChaCha20Poly1305 => &CHACHA20_POLY1305,
    }
}

/// The key of a volume.
#[derive(Clone)]
pub struct VolumeKey {
    cipher: Cipher,
    bytes: Arc<[u8; 32]>,
}

impl VolumeKey {
    pub(super) fn new(cipher: Cipher, bytes: [u8; 32]) -> VolumeKey {
        VolumeKey { cipher, bytes: Arc::new(bytes) }
    }

    /// One that everybody knows.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn fixed(cipher: Cipher, bytes: [u8; 32]) -> VolumeKey {
        VolumeKey::new(cipher, bytes)
    }

    /// Draws one.
    ///
    /// # Errors
    /// Without random numbers there is none.
    pub fn draw(cipher: Cipher) -> Result<VolumeKey, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(VolumeKey::new(cipher, bytes))
    }

    /// What it is for.
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// Whether it is the same.
    pub fn is(&self, other: &VolumeKey) -> bool {
        self.cipher == other.cipher && self.bytes == other.bytes
    }
}

/// Says nothing of the key.
impl std::fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolumeKey").field("cipher", &self.cipher).finish_non_exhaustive()
    }
}

/// The key of one packed range.
pub(super) struct RangeKey(LessSafeKey);

impl RangeKey {
    pub(super) fn derive(
        key: &VolumeKey,
        scope: &Scope,
        salt: &[u8; 16],
    ) -> Result<RangeKey, CodecError> {
        let cipher = key.cipher.to_string();
        let info = [PURPOSE, scope, cipher.as_bytes()];
        let secret = Salt::new(HKDF_SHA256, salt).extract(&key.bytes[..]);
        // It fails for lengths beyond those of any cipher only.
        let derived = secret.expand(&info, algorithm(key.cipher)).map_err(|_| CodecError::NoKey)?;
        Ok(RangeKey(LessSafeKey::new(UnboundKey::from(derived))))
    }

    /// Encrypts a frame in place; the last bytes are room for the tag.
    pub(super) fn seal(
        &self,
        chunk: &ChunkKey,
        frame: &Frame,
        bits: u8,
        bytes: &mut [u8],
    ) -> Result<(), CodecError> {
        let (text, room) = bytes.split_at_mut(frame.stored as usize - TAG);
        let bound = Aad::from(bound(chunk, frame));
        // It fails for texts of many GiB only.
        let tag = self.0.seal_in_place_separate_tag(nonce(frame, bits), bound, text);
        room.copy_from_slice(tag.map_err(|_| CodecError::Forged)?.as_ref());
        Ok(())
    }

    /// Decrypts a frame in place.
    pub(super) fn open<'a>(
        &self,
        chunk: &ChunkKey,
        frame: &Frame,
        bits: u8,
        bytes: &'a mut [u8],
    ) -> Result<&'a [u8], CodecError> {
        let bound = Aad::from(bound(chunk, frame));
        match self.0.open_in_place(nonce(frame, bits), bound, bytes) {
            Ok(text) => Ok(text),
            Err(_) => Err(CodecError::Forged),
        }
    }
}

/// Once for each key: a range has one frame with this number, and a range has a key of its own.
fn nonce(frame: &Frame, bits: u8) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&(frame.offset >> bits).to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn bound(chunk: &ChunkKey, frame: &Frame) -> [u8; BOUND] {
    let mut out = [0; BOUND];
    out[..8].copy_from_slice(&chunk.ino.to_le_bytes());
    out[8..12].copy_from_slice(&chunk.generation.to_le_bytes());
    out[12..20].copy_from_slice(&chunk.index.to_le_bytes());
    out[20..24].copy_from_slice(&frame.offset.to_le_bytes());
    out[24..28].copy_from_slice(&frame.len.to_le_bytes());
    out[28] = frame.packing as u8;
    out
}
