//! What can go wrong with a call or a connection, and how it travels.

use std::sync::Arc;

use quinn::{ConnectionError, VarInt};

/// Why a call has no answer.
///
/// A caller retries after [`Lost`](Self::Lost) and [`Unreachable`](Self::Unreachable) if the operation allows
/// it: the peer may or may not have done what was asked. After [`TooLarge`](Self::TooLarge) nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The caller's deadline passed first. The peer has been told to stop.
    #[error("no answer before the deadline")]
    Deadline,
    /// The peer gave the call up: its handler failed or was cancelled there.
    #[error("the peer gave up on the call")]
    Cancelled,
    /// The connection ended while the call was under way, or is about to end.
    #[error("connection lost: {0}")]
    Lost(Arc<str>),
    /// The peer answered the greeting with a refusal.
    #[error("refused by the peer: {text} (code {code})")]
    Refused {
        /// The number that the peer's application gave.
        code: u16,
        /// Its words.
        text: Arc<str>,
    },
    /// One side's certificate was not accepted by the other, or they have no protocol in common.
    #[error("the connection was not trusted: {0}")]
    Untrusted(Arc<str>),
    /// Nobody answered at the address, or it cannot be resolved.
    #[error("cannot reach {address}: {text}")]
    Unreachable {
        /// The address as configured.
        address: Arc<str>,
        /// What happened.
        text: Arc<str>,
    },
    /// Somebody broke the rules of the protocol. The connection is closed.
    #[error("protocol violation: {0}")]
    Protocol(Arc<str>),
    /// The message is more than the peer accepts. Nothing was sent.
    #[error("a {what} of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// Which part of the message.
        what: &'static str,
        /// Its size.
        size: u64,
        /// What is allowed.
        limit: u64,
    },
    /// This side has closed the connection.
    #[error("the connection was closed by this side")]
    Closed,
}

impl CallError {
    pub(super) fn lost(text: impl Into<Arc<str>>) -> Self {
        Self::Lost(text.into())
    }

    pub(super) fn protocol(text: impl Into<Arc<str>>) -> Self {
        Self::Protocol(text.into())
    }

    /// A word for it, for the label of a metric.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::Cancelled => "cancelled",
            Self::Lost(_) => "lost",
            Self::Refused { .. } => "refused",
            Self::Untrusted(_) => "untrusted",
            Self::Unreachable { .. } => "unreachable",
            Self::Protocol(_) => "protocol",
            Self::TooLarge { .. } => "too_large",
            Self::Closed => "closed",
        }
    }
}

/// The application error codes with which connections are closed and streams reset. They are part of the
/// wire format: numbers are never given a new meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// Nothing is wrong; the work is done.
    Done,
    /// The peer broke the protocol.
    Protocol,
    /// The peer did not greet in time.
    HelloTimeout,
    /// A limit on connections is reached.
    Overloaded,
    /// A call is no longer wanted (resets a stream).
    Cancelled,
    /// A handler failed (resets a stream).
    Failed,
    /// The greeting was refused by the application, with its own code.
    Refused(u16),
}

/// Codes from here on are [`CloseCode::Refused`].
const REFUSED_BASE: u32 = 0x1_0000;

impl CloseCode {
    pub(super) fn to_var_int(self) -> VarInt {
        VarInt::from_u32(match self {
            Self::Done => 0,
            Self::Protocol => 1,
            Self::HelloTimeout => 2,
            Self::Overloaded => 3,
            Self::Cancelled => 4,
            Self::Failed => 5,
            Self::Refused(code) => REFUSED_BASE + u32::from(code),
        })
    }

    fn from_var_int(code: VarInt) -> Option<Self> {
        Some(match u32::try_from(code.into_inner()).ok()? {
            0 => Self::Done,
            1 => Self::Protocol,
            2 => Self::HelloTimeout,
            3 => Self::Overloaded,
            4 => Self::Cancelled,
            5 => Self::Failed,
            code => Self::Refused(u16::try_from(code.checked_sub(REFUSED_BASE)?).ok()?),
        })
    }
}

/// TLS alerts travel as transport error codes from here, one byte.
const CRYPTO_ERRORS: std::ops::Range<u64> = 0x100..0x200;
/// The transport error of a server that takes no more connections.
const CONNECTION_REFUSED: u64 = 2;

impl From<ConnectionError> for CallError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => {
                let text: Arc<str> = String::from_utf8_lossy(&close.reason).into();
                match CloseCode::from_var_int(close.error_code) {
                    Some(CloseCode::Refused(code)) => Self::Refused { code, text },
                    Some(CloseCode::Protocol) => Self::Protocol(text),
                    Some(CloseCode::Done) => Self::lost("the peer said goodbye"),
                    Some(_) => Self::Lost(text),
                    None => Self::lost(format!("closed by the peer with an unknown code: {text}")),
                }
            }
            ConnectionError::ConnectionClosed(close) => {
                let code = u64::from(close.error_code);
                let reason = String::from_utf8_lossy(&close.reason);
                if CRYPTO_ERRORS.contains(&code) {
                    Self::Untrusted(format!("the peer says: {} {reason}", alert(code)).into())
                } else if code == CONNECTION_REFUSED {
                    Self::lost("the peer takes no more connections")
                } else {
                    Self::lost(format!("aborted by the peer: {} {reason}", close.error_code))
                }
            }
            ConnectionError::TransportError(error) => {
                if CRYPTO_ERRORS.contains(&u64::from(error.code)) {
                    Self::Untrusted(error.reason.into())
                } else {
                    Self::lost(error.to_string())
                }
            }
            ConnectionError::LocallyClosed => Self::Closed,
            ConnectionError::TimedOut => Self::lost("the peer has fallen silent"),
            ConnectionError::Reset => Self::lost("the peer has restarted"),
            ConnectionError::VersionMismatch => Self::protocol("no QUIC version in common"),
            ConnectionError::CidsExhausted => Self::lost("out of connection ids"),
        }
    }
}

/// The alerts that a person is likely to meet, in words.
fn alert(code: u64) -> &'static str {
    match code - CRYPTO_ERRORS.start {
        42 | 43 | 46 => "bad certificate;",
        44 => "certificate revoked;",
        45 => "certificate expired;",
        48 => "certificate of an authority that it does not trust;",
        116 => "a certificate is required;",
        120 => "no application protocol in common;",
        _ => "TLS alert;",
    }
}

impl From<quinn::WriteError> for CallError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::ConnectionLost(e) => e.into(),
            quinn::WriteError::Stopped(_) => Self::Cancelled,
            quinn::WriteError::ClosedStream => Self::Closed,
            quinn::WriteError::ZeroRttRejected => Self::lost("early data rejected"),
        }
    }
}

impl From<quinn::ReadError> for CallError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::ConnectionLost(e) => e.into(),
            quinn::ReadError::Reset(_) => Self::Cancelled,
            quinn::ReadError::ClosedStream | quinn::ReadError::IllegalOrderedRead => Self::Closed,
            quinn::ReadError::ZeroRttRejected => Self::lost("early data rejected"),
        }
    }
}
