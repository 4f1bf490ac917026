use super::*;
use crate::meta::acl;

const NO_ID: u32 = u32::MAX;

fn set(ino: Ino, mode: XattrMode) -> Op {
    Op::SetXattr { ino, name: b"user.a".to_vec(), value: b"v".to_vec(), mode }
}

fn remove(ino: Ino, name: &[u8]) -> Op {
    Op::RemoveXattr { ino, name: name.to_vec() }
}

#[test]
fn attributes_are_set_replaced_listed_and_removed() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    assert_eq!(world.xattr(file, b"user.a"), Err(Errno::ENODATA));
    assert_eq!(errno(world.op(set(file, XattrMode::Replace))), Errno::ENODATA);
    world.op(set(file, XattrMode::Create)).unwrap();
    assert_eq!(errno(world.op(set(file, XattrMode::Create))), Errno::EEXIST);
    world.op(set(file, XattrMode::Replace)).unwrap();
    world.set_xattr(file, b"trusted.b", b"").unwrap();
    assert!(world.attr(file).has_xattrs && world.attr(file).ctime == world.now());
    assert_eq!(world.xattr(file, b"user.a"), Ok(b"v".to_vec()));
    assert_eq!(world.xattr(file, b"trusted.b"), Ok(vec![]));
    let names = vec![b"trusted.b".to_vec(), b"user.a".to_vec()];
    let list = read(super::super::list_xattrs(&world.store, file));
    assert_eq!(list, Ok(Response::Xattrs(names)));
    world.check();
    world.op(remove(file, b"user.a")).unwrap();
    assert_eq!(errno(world.op(remove(file, b"user.a"))), Errno::ENODATA);
    world.op(remove(file, b"trusted.b")).unwrap();
    assert!(!world.attr(file).has_xattrs);
    world.check();
}

#[test]
fn names_and_sizes_have_limits() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    let mut fails = |name: &[u8], len| errno(world.set_xattr(file, name, &vec![0; len]));
    assert_eq!(fails(b"", 0), Errno::ERANGE);
    assert_eq!(fails(&[b'u'; 256], 0), Errno::ERANGE);
    assert_eq!(fails(b"user.", 0), Errno::EINVAL);
    assert_eq!(fails(b"other.x", 0), Errno::EOPNOTSUPP);
    assert_eq!(fails(b"system.x", 0), Errno::EOPNOTSUPP);
    assert_eq!(fails(b"user.x", 65537), Errno::E2BIG);
    world.set_xattr(file, b"user.x", &vec![0; 65536]).unwrap();
    let mut refused = None;
    for n in 0..1000 {
        let name = format!("user.{n:0250}");
        if let Err(errno) = world.set_xattr(file, name.as_bytes(), b"") {
            refused = Some((n, errno));
            break;
        }
    }
    // The list of names must fit into what `listxattr` can give.
    assert_eq!(refused, Some((255, Errno::ENOSPC)));
    world.check();
    world.unlink(ROOT, "f").unwrap();
    world.op(Op::Forget { inos: vec![file] }).unwrap();
    world.check();
}

#[test]
fn users_attributes_are_for_files_and_directories() {
    let mut world = World::new();
    let link = world.create(ROOT, "l", NewInode::Symlink(b"x".to_vec())).unwrap();
    assert_eq!(errno(world.set_xattr(link, b"user.a", b"v")), Errno::EPERM);
    world.set_xattr(link, b"trusted.a", b"v").unwrap();
    world.set_xattr(ROOT, b"user.a", b"v").unwrap();
    assert_eq!(errno(world.set_xattr(link, acl::ACCESS, b"")), Errno::EOPNOTSUPP);
}

fn minimal() -> Vec<u8> {
    acl::value(&[(1, 6, NO_ID), (4, 4, NO_ID), (32, 0, NO_ID)])
}

fn named(mask: u16) -> Vec<u8> {
    let entries = [(1, 7, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (16, mask, NO_ID), (32, 1, NO_ID)];
    acl::value(&entries)
}

#[test]
fn an_access_list_sets_the_permission_bits() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.set_xattr(file, acl::ACCESS, &named(6)).unwrap();
    assert_eq!((world.attr(file).perm, world.attr(file).has_xattrs), (0o761, true));
    assert_eq!(world.xattr(file, acl::ACCESS), Ok(named(6)));
    // One that says no more than permission bits can say is not kept.
    world.set_xattr(file, acl::ACCESS, &minimal()).unwrap();
    assert_eq!((world.attr(file).perm, world.attr(file).has_xattrs), (0o640, false));
    assert_eq!(world.xattr(file, acl::ACCESS), Err(Errno::ENODATA));
    assert_eq!(errno(world.set_xattr(file, acl::ACCESS, &named(6)[1..])), Errno::EOPNOTSUPP);
    assert_eq!(errno(world.set_xattr(file, acl::ACCESS, &named(6)[..9])), Errno::EINVAL);
    world.op(remove(file, acl::ACCESS)).unwrap();
    world.check();
}

#[test]
fn chmod_changes_the_mask() {
    let mut world = World::new();
    let file = world.file(ROOT, "f");
    world.set_xattr(file, acl::ACCESS, &named(6)).unwrap();
    world.set(file, SetAttr { perm: Some(0o701), ..SetAttr::default() }).unwrap();
    assert_eq!(world.attr(file).perm, 0o701);
    assert_eq!(world.xattr(file, acl::ACCESS), Ok(named(0)));
}

#[test]
fn default_lists_are_for_directories_and_are_inherited() {
    let mut world = World::new();
    let (dir, file) = (world.dir(ROOT, "d"), world.file(ROOT, "f"));
    assert_eq!(errno(world.set_xattr(file, acl::DEFAULT, &named(7))), Errno::EACCES);
    world.set_xattr(dir, acl::DEFAULT, &named(7)).unwrap();
    assert_eq!(world.attr(dir).perm, 0o755);

    // The mask of the process (0o022 here) does not count; what was asked for does.
    let (file, sub) = (world.file(dir, "f"), world.dir(dir, "s"));
    assert_eq!(world.attr(file).perm, 0o660);
    let entries = [(1, 6, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (16, 6, NO_ID), (32, 0, NO_ID)];
    assert_eq!(world.xattr(file, acl::ACCESS), Ok(acl::value(&entries)));
    assert_eq!(world.xattr(file, acl::DEFAULT), Err(Errno::ENODATA));
    assert_eq!(world.attr(sub).perm, 0o771);
    assert_eq!(world.xattr(sub, acl::DEFAULT), Ok(named(7)));
    assert_eq!(world.xattr(sub, acl::ACCESS), Ok(named(7)));
    let link = world.create(dir, "l", NewInode::Symlink(b"x".to_vec())).unwrap();
    assert_eq!((world.attr(link).perm, world.attr(link).has_xattrs), (0o777, false));

    // A minimal default list only takes permission bits away.
    world.set_xattr(dir, acl::DEFAULT, &minimal()).unwrap();
    let plain = world.file(dir, "plain");
    assert_eq!((world.attr(plain).perm, world.attr(plain).has_xattrs), (0o640, false));
    world.op(remove(dir, acl::DEFAULT)).unwrap();
    let plain = world.file(dir, "plainer");
    assert_eq!(world.attr(plain).perm, 0o644);
    world.check();
}
