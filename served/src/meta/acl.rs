//! POSIX access control lists (`acl(5)`), as the extended attributes that the kernel knows.

use netfs_common::errno::Errno;

/// The list that permissions are checked by.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The list that new entries of a directory get.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AclEntry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A valid list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl(Vec<AclEntry>);

impl Acl {
    /// From the attribute's value; an empty list is none at all.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for an unknown version, `EINVAL` for whatever is not a valid list.
    pub fn parse(value: &[u8]) -> Result<Option<Acl>, Errno> {
        if value.is_empty() {
            return Ok(None);
        }
        let (version, rest) = value.split_first_chunk::<4>().ok_or(Errno::EINVAL)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Errno::EOPNOTSUPP);
        }
        let (entries, excess) = rest.as_chunks::<8>();
        if !excess.is_empty() {
            return Err(Errno::EINVAL);
        }
        let acl = Acl(entries.iter().map(AclEntry::from_bytes).collect());
        if acl.0.is_empty() {
            return Ok(None);
        }
        acl.validate()?;
        Ok(Some(acl))
    }

    /// The attribute's value.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for e in &self.0 {
            out.extend(e.tag.to_le_bytes());
            out.extend(e.perm.to_le_bytes());
            out.extend(e.id.to_le_bytes());
        }
        out
    }

    /// The entries must come in the order of their tags, each of the three classes once, and
    /// with a mask where anybody is named.
    fn validate(&self) -> Result<(), Errno> {
        let mut last = 0;
        for e in &self.0 {
            let repeats = matches!(e.tag, USER | GROUP) && e.tag == last;
            let known = matches!(e.tag, USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER);
            if !known || e.perm > 7 || (e.tag <= last && !repeats) {
                return Err(Errno::EINVAL);
            }
            if matches!(e.tag, USER | GROUP) && e.id == NO_ID {
                return Err(Errno::EINVAL);
            }
            last = e.tag;
        }
        let has = |tag| self.0.iter().any(|e| e.tag == tag);
        let classes = has(USER_OBJ) && has(GROUP_OBJ) && has(OTHER);
        if !classes || ((has(USER) || has(GROUP)) && !has(MASK)) {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    /// Whether permission bits say the same.
    pub fn is_minimal(&self) -> bool {
        self.0.iter().all(|e| matches!(e.tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    /// `perm` with the bits that this list stands for.
    pub fn to_perm(&self, perm: u16) -> u16 {
        let group = if self.0.iter().any(|e| e.tag == MASK) { MASK } else { GROUP_OBJ };
        let bits = |tag| self.0.iter().find(|e| e.tag == tag).map_or(0, |e| e.perm);
        (perm & !0o777) | (bits(USER_OBJ) << 6) | (bits(group) << 3) | bits(OTHER)
    }

    /// Follows `chmod(2)`: the group's bits are those of the mask where there is one.
    pub fn set_perm(&mut self, perm: u16) {
        let group = if self.0.iter().any(|e| e.tag == MASK) { MASK } else { GROUP_OBJ };
        for e in &mut self.0 {
            match e.tag {
                USER_OBJ => e.perm = (perm >> 6) & 7,
                OTHER => e.perm = perm & 7,
                tag if tag == group => e.perm = (perm >> 3) & 7,
                _ => {}
            }
        }
    }

    /// What a new inode gets from this default list when `perm` is asked for: its list and its
    /// permission bits. Both can only take away from each other.
    pub fn inherit(&self, perm: u16) -> (Acl, u16) {
        let mut acl = self.clone();
        let allowed = self.to_perm(0) & perm;
        acl.set_perm(allowed);
        (acl, (perm & !0o777) | allowed)
    }
}

impl AclEntry {
    fn from_bytes(b: &[u8; 8]) -> AclEntry {
        let [t0, t1, p0, p1, i0, i1, i2, i3] = *b;
        let tag = u16::from_le_bytes([t0, t1]);
        let id = u32::from_le_bytes([i0, i1, i2, i3]);
        AclEntry {
            tag,
            perm: u16::from_le_bytes([p0, p1]),
            id: if matches!(tag, USER | GROUP) { id } else { NO_ID },
        }
    }
}

#[cfg(test)]
pub(crate) fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    Acl(entries.iter().map(|&(tag, perm, id)| AclEntry { tag, perm, id }).collect()).to_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMED: &[(u16, u16, u32)] =
        &[(1, 7, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (16, 6, NO_ID), (32, 1, NO_ID)];

    #[test]
    fn a_valid_list_survives_a_round_trip() {
        let bytes = value(NAMED);
        assert_eq!(Acl::parse(&bytes).unwrap().unwrap().to_bytes(), bytes);
        assert_eq!(Acl::parse(b"").unwrap(), None);
        assert_eq!(Acl::parse(&[2, 0, 0, 0]).unwrap(), None);
    }

    #[test]
    fn malformed_lists_are_refused() {
        let bad: &[&[(u16, u16, u32)]] = &[
            &[(1, 7, NO_ID)],
            &[(1, 7, NO_ID), (4, 5, NO_ID)],
            &[(1, 8, NO_ID), (4, 5, NO_ID), (32, 0, NO_ID)],
            &[(4, 5, NO_ID), (1, 7, NO_ID), (32, 0, NO_ID)],
            &[(1, 7, NO_ID), (1, 7, NO_ID), (4, 5, NO_ID), (32, 0, NO_ID)],
            &[(1, 7, NO_ID), (2, 7, 5), (4, 5, NO_ID), (32, 0, NO_ID)],
            &[(1, 7, NO_ID), (2, 7, NO_ID), (4, 5, NO_ID), (16, 7, NO_ID), (32, 0, NO_ID)],
            &[(1, 7, NO_ID), (3, 7, 5), (4, 5, NO_ID), (32, 0, NO_ID)],
        ];
        for entries in bad {
            assert_eq!(Acl::parse(&value(entries)), Err(Errno::EINVAL), "{entries:?}");
        }
        let good = value(NAMED);
        assert_eq!(Acl::parse(&good[..good.len() - 1]), Err(Errno::EINVAL));
        assert_eq!(Acl::parse(&good[..3]), Err(Errno::EINVAL));
        assert_eq!(Acl::parse(&[1, 0, 0, 0]), Err(Errno::EOPNOTSUPP));
    }

    #[test]
    fn permission_bits_follow_the_mask() {
        let mut acl = Acl::parse(&value(NAMED)).unwrap().unwrap();
        assert!(!acl.is_minimal());
        assert_eq!(acl.to_perm(0o4000), 0o4761);
        acl.set_perm(0o640);
        assert_eq!(
            acl.to_bytes(),
            value(&[(1, 6, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (16, 4, NO_ID), (32, 0, NO_ID)])
        );
    }

    #[test]
    fn inheritance_takes_away_what_was_not_asked_for() {
        let acl = Acl::parse(&value(NAMED)).unwrap().unwrap();
        let (list, perm) = acl.inherit(0o2666);
        assert_eq!(perm, 0o2660);
        assert_eq!(
            list.to_bytes(),
            value(&[(1, 6, NO_ID), (2, 6, 1000), (4, 5, NO_ID), (16, 6, NO_ID), (32, 0, NO_ID)])
        );
    }
}
