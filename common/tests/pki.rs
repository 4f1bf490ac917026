//! Certificates as an operator makes and loads them.

// The lint's exemption covers test functions, not what they share.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use netfs_common::tls::pki::{self, IssueOptions, Issued, Leaf};
use netfs_common::tls::{Identity, Role, TlsError};

fn server(ca: &Path, out: &Path) -> Issued {
    let leaf =
        Leaf::Server { name: "s1".into(), names: vec!["host.test".into(), "10.0.0.1".into()] };
    pki::issue(ca, &leaf, out, &IssueOptions::default()).unwrap()
}

fn client(ca: &Path, out: &Path) -> Issued {
    pki::issue(ca, &Leaf::Client { name: "alice".into() }, out, &IssueOptions::default()).unwrap()
}

#[test]
fn issued_certificates_load_and_name_their_holder_and_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("pki");
    let cluster = pki::init(&ca, "test").unwrap();
    server(&ca, &dir.path().join("server"));
    client(&ca, &dir.path().join("client"));

    let server = Identity::load_dir(&dir.path().join("server")).unwrap();
    assert_eq!(server.peer().role, Role::Server);
    assert_eq!(server.peer().cluster, cluster);
    server.server_config().unwrap();
    server.client_config().unwrap();

    let client = Identity::load_dir(&dir.path().join("client")).unwrap();
    assert_eq!(client.peer().name, "alice");
    assert_eq!(client.peer().role, Role::Client);
    client.client_config().unwrap();
    assert!(matches!(client.server_config(), Err(TlsError::WrongRole { .. })));
}

#[test]
fn keys_are_private_and_nothing_is_overwritten_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("pki");
    pki::init(&ca, "test").unwrap();
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&ca), 0o700);
    assert_eq!(mode(&ca.join(pki::CA_KEY_FILE)), 0o600);
    assert!(matches!(pki::init(&ca, "test"), Err(TlsError::Exists { .. })));

    let out = dir.path().join("client");
    let issued = client(&ca, &out);
    assert_eq!(mode(&issued.key), 0o600);
    let before = fs::read(&issued.key).unwrap();
    let leaf = Leaf::Client { name: "bob".into() };
    let again = pki::issue(&ca, &leaf, &out, &IssueOptions::default());
    assert!(matches!(again, Err(TlsError::Exists { .. })));
    assert_eq!(fs::read(&issued.key).unwrap(), before);

    let forced = IssueOptions { overwrite: true, ..IssueOptions::default() };
    pki::issue(&ca, &leaf, &out, &forced).unwrap();
    assert_eq!(Identity::load_dir(&out).unwrap().peer().name, "bob");
    let leftovers = fs::read_dir(&out).unwrap().count();
    assert_eq!(leftovers, 3, "only ca, certificate and key");
}

#[test]
fn what_does_not_belong_together_is_refused_with_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let (ca1, ca2) = (dir.path().join("pki1"), dir.path().join("pki2"));
    pki::init(&ca1, "one").unwrap();
    pki::init(&ca2, "two").unwrap();
    let a = client(&ca1, &dir.path().join("a"));
    let b = client(&ca2, &dir.path().join("b"));
    let c = client(&ca1, &dir.path().join("c"));

    let one_line = |e: TlsError| {
        let text = e.to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    };
    let foreign = one_line(Identity::load(&b.ca, &a.cert, &a.key).unwrap_err());
    assert!(foreign.contains("is not signed by the authority"), "{foreign}");
    let key = one_line(Identity::load(&a.ca, &a.cert, &c.key).unwrap_err());
    assert!(key.contains("does not belong"), "{key}");
    let missing = one_line(Identity::load(&a.ca, Path::new("/nowhere"), &a.key).unwrap_err());
    assert!(missing.contains("cannot read /nowhere"), "{missing}");
    let swapped = one_line(Identity::load(&a.ca, &a.key, &a.key).unwrap_err());
    assert!(swapped.contains("no usable certificate"), "{swapped}");
    let as_ca = one_line(Identity::load(&a.cert, &a.cert, &a.key).unwrap_err());
    assert!(as_ca.contains("one of role authority is needed"), "{as_ca}");

    fs::set_permissions(&a.key, fs::Permissions::from_mode(0o644)).unwrap();
    let open = one_line(Identity::load(&a.ca, &a.cert, &a.key).unwrap_err());
    assert!(open.contains("accessible to others") && open.contains("0644"), "{open}");
}

#[test]
fn names_and_validity_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("pki");
    assert!(matches!(pki::init(&ca, "a/b"), Err(TlsError::BadName { .. })));
    pki::init(&ca, "test").unwrap();
    let out = dir.path().join("out");
    for name in ["", "../x", "a b", "ü", ".hidden", &"x".repeat(65)] {
        let leaf = Leaf::Client { name: name.into() };
        let refused = pki::issue(&ca, &leaf, &out, &IssueOptions::default());
        assert!(matches!(refused, Err(TlsError::BadName { .. })), "{name}");
    }
    let leaf = Leaf::Server { name: "s".into(), names: vec!["not a name".into()] };
    let refused = pki::issue(&ca, &leaf, &out, &IssueOptions::default());
    assert!(matches!(refused, Err(TlsError::BadName { .. })));
    let leaf = Leaf::Client { name: "a".into() };
    for validity_days in [0, 100_000] {
        let options = IssueOptions { validity_days, ..IssueOptions::default() };
        let refused = pki::issue(&ca, &leaf, &out, &options);
        assert!(matches!(refused, Err(TlsError::BadValidity { .. })));
    }
    assert!(!out.exists(), "a refused request leaves nothing behind");
}

#[test]
fn show_tells_who_what_and_until_when() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("pki");
    let cluster = pki::init(&ca, "test").unwrap();
    let hex = format!("{:032x}", u128::from_be_bytes(cluster));
    let text = pki::show(&ca.join(pki::CA_FILE)).unwrap().join("\n");
    assert!(text.contains("role:      authority") && text.contains(&hex), "{text}");
    let text = pki::show(&server(&ca, &dir.path().join("s")).cert).unwrap().join("\n");
    for part in ["role:      server", "name:      s1", "host.test", "10.0.0.1", "netfs-server"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(text.contains("usable as: server, client"), "{text}");
    let error = pki::show(&ca.join(pki::CA_KEY_FILE)).unwrap_err().to_string();
    assert!(error.contains("no usable certificate"), "{error}");
}
