//! What lets the peers of a server that was killed notice its restart at once.
//!
//! The restarted server knows none of the old connections, and answers their packets with a stateless reset
//! (RFC 9000, section 10.3). The peer believes it only if it carries the token that the server had given it
//! before, so the key of tokens has to be the same after the restart: it is derived from the server's private
//! key and its port. Without that, peers wait for the idle timeout.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};

use crate::tls::{EndpointKey, EndpointSecret};

struct ResetKey(EndpointKey);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(&self.0.tag(data));
    }

    fn signature_len(&self) -> usize {
        EndpointKey::TAG_BYTES
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let expected = self.0.tag(data);
        if signature.len() != expected.len() {
            return Err(CryptoError);
        }
        // In constant time: where they differ is nobody's business.
        let difference = expected.iter().zip(signature).fold(0, |all, (a, b)| all | (a ^ b));
        if difference == 0 { Ok(()) } else { Err(CryptoError) }
    }
}

/// Connection ids that are nothing but random. Quinn's own are recognised by a key that is new in each life,
/// and packets with others are dropped without an answer.
struct RandomIds;

const ID_BYTES: usize = 8;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_BYTES];
        if getrandom::fill(&mut id).is_err() {
            // Not of cryptographic quality, but different each time, which is what matters most.
            id = RandomState::new().hash_one(id).to_le_bytes();
        }
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// An endpoint whose resets are believed by the peers of its earlier lives at the same port.
pub(super) fn endpoint_config(secret: &EndpointSecret, port: u16) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(ResetKey(secret.key("stateless reset", port))));
    config.cid_generator(|| Box::new(RandomIds));
    config
}
