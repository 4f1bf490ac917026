//! How the chunks of a volume are stored: compressed, encrypted.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// How what is written to a volume is compressed. It may change: it counts for what is written from then on.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// By LZ4: it costs little time and saves less.
    Lz4,
    /// By Zstandard: it saves more and costs more time.
    Zstd,
}

/// How a volume is encrypted, as an operator says it. It is fixed when the volume is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encryption {
    /// Not at all.
    #[default]
    #[serde(rename = "none")]
    None,
    /// By AES with keys of 256 bits in Galois counter mode: fast where the processor has instructions for it.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
    /// By ChaCha20 with Poly1305: fast on every processor.
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305,
}

impl Encryption {
    /// The cipher, if there is one.
    pub fn cipher(self) -> Option<Cipher> {
        match self {
            Encryption::None => None,
            Encryption::Aes256Gcm => Some(Cipher::Aes256Gcm),
            Encryption::ChaCha20Poly1305 => Some(Cipher::ChaCha20Poly1305),
        }
    }
}

/// A way of encryption that notices changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Cipher {
    /// See [`Encryption::Aes256Gcm`].
    Aes256Gcm,
    /// See [`Encryption::ChaCha20Poly1305`].
    ChaCha20Poly1305,
}

impl std::fmt::Display for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Cipher::Aes256Gcm => "aes-256-gcm",
            Cipher::ChaCha20Poly1305 => "chacha20-poly1305",
        })
    }
}

/// The key of a volume, encrypted under the key file of the servers: only who has that file can use it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SealedKey {
    /// What the key is for.
    pub cipher: Cipher,
    /// Drawn when it was encrypted.
    pub nonce: [u8; 12],
    /// The encrypted key, and the tag by which a wrong key file is noticed.
    pub sealed: [u8; 48],
}

/// How the chunks of a volume are stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Coding {
    /// For what is written from now on.
    pub compression: Compression,
    /// Its key, if it is encrypted.
    pub key: Option<SealedKey>,
}
