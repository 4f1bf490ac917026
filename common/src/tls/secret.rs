//! A secret that a node has again after a restart, without keeping anything but its certificate's key.

use std::fmt;

use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::crypto::tls13::{Hkdf, HkdfExpander, OkmBlock};

/// Derived from the private key of an identity, one way only.
pub struct EndpointSecret {
    hkdf: &'static dyn Hkdf,
    expander: Box<dyn HkdfExpander>,
}

impl fmt::Debug for EndpointSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointSecret").finish_non_exhaustive()
    }
}

impl EndpointSecret {
    /// `None` if the TLS library lacks what every TLS library has.
    pub(super) fn derive(private_key: &[u8]) -> Option<EndpointSecret> {
        let hkdf = TLS13_AES_128_GCM_SHA256.tls13()?.hkdf_provider;
        let expander = hkdf.extract_from_secret(Some(b"netfs/1 endpoint"), private_key);
        Some(EndpointSecret { hkdf, expander })
    }

    /// A key for one purpose of the endpoint at one port.
    pub fn key(&self, purpose: &str, port: u16) -> EndpointKey {
        let info: [&[u8]; 3] = [purpose.as_bytes(), &[0], &port.to_be_bytes()];
        EndpointKey { hkdf: self.hkdf, key: self.expander.expand_block(&info) }
    }
}

/// A key for authenticating what only this endpoint can have made.
pub struct EndpointKey {
    hkdf: &'static dyn Hkdf,
    key: OkmBlock,
}

impl EndpointKey {
    /// Bytes of an authentication code.
    pub const TAG_BYTES: usize = 32;

    /// The authentication code (HMAC-SHA-256) of a message.
    pub fn tag(&self, message: &[u8]) -> [u8; Self::TAG_BYTES] {
        let tag = self.hkdf.hmac_sign(&self.key, message);
        let mut out = [0; Self::TAG_BYTES];
        let len = tag.as_ref().len().min(out.len());
        out[..len].copy_from_slice(&tag.as_ref()[..len]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_depend_on_everything_they_should_and_on_nothing_else() {
        let tag = |secret: &[u8], purpose, port| {
            EndpointSecret::derive(secret).unwrap().key(purpose, port).tag(b"message")
        };
        let first = tag(b"key", "reset", 7400);
        assert_eq!(tag(b"key", "reset", 7400), first);
        assert_ne!(tag(b"kez", "reset", 7400), first);
        assert_ne!(tag(b"key", "ids", 7400), first);
        assert_ne!(tag(b"key", "reset", 7401), first);
    }
}
