//! The name in a certificate. Whoever shows one has been found to be signed by the cluster's authority; still, a name that is
//! not understood must be refused, and one that is accepted ends up in logs and file names.

use netfs_common::tls::PeerIdentity;

pub(crate) fn run(input: &[u8]) {
    match PeerIdentity::from_der(input) {
        Ok(identity) => {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.@".contains(&b);
            assert!(identity.name.len() <= 64 && identity.name.bytes().all(plain));
            assert!(!identity.name.starts_with(['.', '-']));
        }
        Err(error) => {
            let _ = error.to_string();
        }
    }
}
