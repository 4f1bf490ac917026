//! `netfs set`: what a directory gives to what is made in it.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use netfs_common::class::{Class, XATTR};

use super::args::SetArgs;
use super::error::CliError;

/// Sets it through the mount, as the user who asks: the daemon decides who may.
pub(super) fn run(args: &SetArgs) -> Result<(), CliError> {
    let refused = |error| CliError::Set { path: args.directory.clone(), why: explain(&error) };
    set(&args.directory, args.replicas).map_err(refused)?;
    let directory = args.directory.display();
    match args.replicas.replicas() {
        None => {
            say!("what is made in {directory} from now on has as many replicas as its volume says")
        }
        Some(1) => say!("what is made in {directory} from now on has one replica"),
        Some(n) => say!("what is made in {directory} from now on has {n} replicas"),
    }
    Ok(())
}

/// A number of replicas as it is given on the command line.
pub(super) fn parse(text: &str) -> Result<Class, String> {
    Class::parse(text.as_bytes()).ok_or_else(|| "it is neither 1 to 5 nor \"default\"".into())
}

/// One without "default".
pub(super) fn parse_number(text: &str) -> Result<Class, String> {
    let class = Class::parse(text.as_bytes()).filter(|class| *class != Class::DEFAULT);
    class.ok_or_else(|| "it is not 1 to 5".into())
}

fn set(directory: &Path, class: Class) -> io::Result<()> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    let name = CString::new(XATTR)?;
    let value = class.to_string();
    // SAFETY: both strings end with a NUL, the value has the length that is said, and all live until the call returns.
    let done = unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EINVAL) => "it is not on a mount of netfs".into(),
        Some(libc::ENOTDIR) => {
            "it is not a directory; a file keeps the replicas that it was made with".into()
        }
        Some(libc::EPERM) => "only its owner and root may".into(),
        Some(libc::ERANGE) => {
            "there are fewer data servers than that; one that is drained does not count".into()
        }
        Some(libc::ENOSPC) => {
            "the cluster map has no room for groups with another number of replicas".into()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_set_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let missing = SetArgs { directory: dir.path().join("x"), replicas: parse("3").unwrap() };
        let error = run(&missing).unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
        let elsewhere =
            SetArgs { directory: dir.path().into(), replicas: parse("default").unwrap() };
        let error = run(&elsewhere).unwrap_err().to_string();
        assert!(error.contains("not on a mount of netfs"), "{error}");
        assert!(parse("6").is_err() && parse("").is_err());
    }
}
