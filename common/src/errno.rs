//! Error numbers as they travel between client and server.

use std::fmt;

use bincode::{Decode, Encode};

/// A Linux error number (`errno(3)`), always positive.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident),* $(,)?) => {
        impl Errno {
            $(
                #[doc = concat!("See `", stringify!($name), "` in `errno(3)`.")]
                pub const $name: Errno = Errno(libc::$name);
            )*

            fn symbol(self) -> Option<&'static str> {
                match self.0 {
                    $(libc::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos!(
    E2BIG,
    EACCES,
    EAGAIN,
    EBADF,
    EBUSY,
    EDEADLK,
    EDQUOT,
    EEXIST,
    EFBIG,
    EINTR,
    EINVAL,
    EIO,
    EISDIR,
    ELOOP,
    EMFILE,
    EMLINK,
    ENAMETOOLONG,
    ENFILE,
    ENODATA,
    ENODEV,
    ENOENT,
    ENOLCK,
    ENOMEM,
    ENOSPC,
    ENOSYS,
    ENOTCONN,
    ENOTDIR,
    ENOTEMPTY,
    ENOTTY,
    ENXIO,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
    EPROTO,
    ERANGE,
    EROFS,
    ESHUTDOWN,
    ESTALE,
    ETIMEDOUT,
    ETXTBSY,
    EXDEV,
);

impl Errno {
    /// The number itself, for a caller that speaks C.
    pub fn raw(self) -> i32 {
        self.0
    }

    /// From a raw number; anything that is not an error number becomes `EIO`.
    pub fn from_raw(raw: i32) -> Errno {
        if (1..4096).contains(&raw) { Errno(raw) } else { Errno::EIO }
    }

    /// The error number of an I/O error; `EIO` where it has none.
    pub fn from_io(error: &std::io::Error) -> Errno {
        error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.symbol() {
            Some(s) => f.write_str(s),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Errno {}
