//! The key file of the servers, and the keys of volumes under it.
//!
//! The file holds 32 random bytes as hexadecimal text; all servers of a cluster have the same one. It encrypts nothing but the keys of volumes,
//! each of which is made with its volume and travels, encrypted, in the cluster map. Who has neither a server's file
//! nor its memory cannot read what is on the disks; who loses the file has lost the encrypted volumes.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use netfs_common::coding::SealedKey;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::cipher::VolumeKey;
use crate::private;

/// Bytes of a key.
const KEY: usize = 32;
/// A file longer than this is no key file.
const MAX_FILE: u64 = 4096;

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system.
    #[error("key file {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// It is there, and was to be made.
    #[error(
        "key file {} exists already and is not replaced, since what is encrypted with it could never be read again: use it, or give another name",
        .0.display()
    )]
    Exists(PathBuf),
    /// Others could read it.
    #[error("key file {} can be read by others (mode {mode:o}): chmod 600 it, and consider what was encrypted with it as known to them", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is something else.
    #[error("{} is no key file: it must hold 64 hexadecimal digits, as `netfs-served key make` writes them", .0.display())]
    Senseless(PathBuf),
    /// It is another one.
    #[error(
        "key file {} is not the one with which the key of {what} was encrypted: give the one that the other servers have", path.display()
    )]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Whose key.
        what: String,
    },
    /// There is none.
    #[error(
        "{setting} is not set, and {what} is encrypted: give the key file that the other servers have"
    )]
    Missing {
        /// The setting.
        setting: &'static str,
        /// What needs it.
        what: String,
    },
}

/// The key under which the keys of volumes are.
#[derive(Clone)]
pub struct KeyFile {
    path: PathBuf,
    key: [u8; KEY],
}

/// Says nothing of the key.
impl std::fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl KeyFile {
    /// Makes one that was not there, for its owner alone.
    ///
    /// # Errors
    /// When it is there already, or cannot be made.
    pub fn make(path: &Path) -> Result<(), KeyError> {
        let io = |source| KeyError::Io { path: path.to_owned(), source };
        let mut key = [0; KEY];
        getrandom::fill(&mut key).map_err(|e| io(e.into()))?;
        let text: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let write = || {
            let mut file = private::file_options().create_new(true).write(true).open(path)?;
            writeln!(file, "{text}")?;
            file.sync_all()
        };
        write().map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_owned()),
            _ => io(source),
        })
    }

    /// Reads one.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn load(path: &Path) -> Result<KeyFile, KeyError> {
        let io = |source| KeyError::Io { path: path.to_owned(), source };
        let found = fs::metadata(path).map_err(io)?;
        let mode = found.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Open { path: path.to_owned(), mode });
        }
        let senseless = || KeyError::Senseless(path.to_owned());
        if !found.is_file() || found.len() > MAX_FILE {
            return Err(senseless());
        }
        let text = fs::read(path).map_err(io)?;
        let key = parse(text.trim_ascii()).ok_or_else(senseless)?;
        Ok(KeyFile { path: path.to_owned(), key })
    }

    fn cipher(&self, volume: u64, sealed: &SealedKey) -> Option<(LessSafeKey, Aad<Vec<u8>>)> {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &self.key).ok()?);
        let mut bound = b"netfs volume key 1".to_vec();
        bound.extend_from_slice(&volume.to_le_bytes());
        bound.extend_from_slice(sealed.cipher.to_string().as_bytes());
        Some((key, Aad::from(bound)))
    }

    /// Encrypts the key of a volume, by its number.
    ///
    /// # Errors
    /// Without random numbers it cannot be done.
    pub fn seal(&self, volume: u64, key: &VolumeKey) -> Result<SealedKey, KeyError> {
        let io = |source| KeyError::Io { path: self.path.clone(), source };
        let mut out = SealedKey { cipher: key.cipher(), nonce: [0; 12], sealed: [0; 48] };
        // So few keys are ever encrypted that random ones never meet.
        getrandom::fill(&mut out.nonce).map_err(|e| io(e.into()))?;
        let (text, room) = out.sealed.split_at_mut(KEY);
        text.copy_from_slice(key.bytes());
        let nonce = Nonce::assume_unique_for_key(out.nonce);
        let blank = SealedKey { sealed: [0; 48], ..out };
        let failed = || io(io::Error::other("the key cannot be encrypted"));
        let (cipher, bound) = self.cipher(volume, &blank).ok_or_else(failed)?;
        let tag = cipher.seal_in_place_separate_tag(nonce, bound, text).map_err(|_| failed())?;
        room.copy_from_slice(tag.as_ref());
        Ok(out)
    }

    /// The key of a volume, by its number.
    ///
    /// # Errors
    /// [`KeyError::Wrong`].
    pub fn open(&self, volume: u64, sealed: &SealedKey) -> Result<VolumeKey, KeyError> {
        let what = format!("volume number {volume}");
        let wrong = || KeyError::Wrong { path: self.path.clone(), what };
        let mut bytes = sealed.sealed;
        let nonce = Nonce::assume_unique_for_key(sealed.nonce);
        let opened = self.cipher(volume, sealed).and_then(|(cipher, bound)| {
            let text = cipher.open_in_place(nonce, bound, &mut bytes).ok()?;
            <[u8; KEY]>::try_from(&*text).ok()
        });
        opened.map(|key| VolumeKey::new(sealed.cipher, key)).ok_or_else(wrong)
    }
}

/// The bytes that hexadecimal digits stand for.
fn parse(text: &[u8]) -> Option<[u8; KEY]> {
    let digit = |b: u8| char::from(b).to_digit(16);
    let mut out = [0; KEY];
    if text.len() != 2 * KEY {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(out)
}
