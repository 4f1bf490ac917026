//! Tests of packing; those with a store around it are in `store/tests/codecs.rs`.

use super::*;

const SCOPE: Scope = [3; 16];
const CHUNK: ChunkKey = ChunkKey { ino: 7, generation: 1, index: 2 };

fn keyed(compression: Compression) -> Codec {
    Codec::new(compression, Some(VolumeKey::fixed(Cipher::Aes256Gcm, [5; 32])))
}

#[test]
fn nothing_is_ever_decompressed_to_more_than_its_plain_length() {
    // A bomb: a frame that says it is short, and is long.
    for how in [Compression::Lz4, Compression::Zstd] {
        let mut bomb = Vec::new();
        let packing = compress::pack(how, &vec![0; 1 << 20], &mut bomb);
        assert!(bomb.len() < 10_000);
        for len in [0, 1, 4096, (1 << 20) - 1, (1 << 20) + 1] {
            let mut out = Vec::new();
            let refused = compress::unpack(packing, &bomb, len, &mut out);
            assert!(matches!(refused, Err(CodecError::Damaged(_))), "{len}");
            assert!(out.capacity() <= (1 << 20) + 1 && out.is_empty());
        }
        let mut out = vec![9];
        compress::unpack(packing, &bomb, 1 << 20, &mut out).unwrap();
        assert!(out.len() == (1 << 20) + 1 && out[0] == 9);
    }
}

#[test]
fn any_bytes_are_decoded_or_refused() {
    let plain: Vec<u8> = (0..20_000u32).flat_map(|n| (n / 9).to_le_bytes()).collect();
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let codec = keyed(compression).with_frames(12);
        let packed = codec.encode(&SCOPE, &CHUNK, 77, &[&plain]).unwrap().unwrap();
        let range = (77, plain.len() as u32);
        assert_eq!(codec.decode(&SCOPE, &CHUNK, range, &packed).unwrap(), plain);
        let mut x = 1u64;
        for _ in 0..3000 {
            x = netfs_common::map::mix(x);
            let mut bad = packed.clone();
            let at = if x & 1 == 0 { x >> 8 & 0xff } else { (x >> 8) % packed.len() as u64 };
            bad[at as usize] ^= (x >> 40) as u8 | 1;
            if x & 2 == 0 {
                bad.truncate((x >> 16) as usize % bad.len());
            }
            assert!(codec.decode(&SCOPE, &CHUNK, range, &bad).is_err());
            seal_checksums(&mut bad, &CHUNK, range);
            let opened = codec.decode(&SCOPE, &CHUNK, range, &bad);
            assert!(opened.is_err() || opened.unwrap() == plain);
        }
    }
}

#[test]
fn parts_of_a_range_are_ranges() {
    let plain: Vec<u8> = (0..30_000u32).flat_map(|n| (n / 9).to_le_bytes()).collect();
    let codec = keyed(Compression::Zstd).with_frames(13);
    let packed = codec.encode(&SCOPE, &CHUNK, 100, &[&plain]).unwrap().unwrap();
    let table = Table::parse(&packed, &CHUNK, (100, plain.len() as u32)).unwrap();
    for from in 0..table.frames.len() {
        for to in from + 1..=table.frames.len() {
            let part = table.part(&table.frames[from..to]).unwrap();
            let mut bytes = part.encode(&CHUNK);
            let first = &table.frames[from];
            let stored = part.stored() as usize - bytes.len();
            bytes.extend(&packed[first.at as usize..][..stored]);
            let there = codec.decode(&SCOPE, &CHUNK, part.range, &bytes).unwrap();
            let at = (part.range.0 - 100) as usize;
            assert_eq!(there, plain[at..at + part.range.1 as usize]);
        }
    }
}

/// What was encrypted once must be readable for ever.
#[test]
fn the_form_of_encrypted_ranges_is_pinned() {
    let hex = include_str!("pinned.hex").trim();
    let digits: Vec<u8> = hex.bytes().map(|b| char::from(b).to_digit(16).unwrap() as u8).collect();
    let packed: Vec<u8> = digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect();
    let plain = [b"pinned ".repeat(20).as_slice(), b"and its end"].concat();
    let range = (4000, plain.len() as u32);
    let codec = keyed(Compression::Zstd).with_frames(12);
    assert_eq!(codec.decode(&SCOPE, &CHUNK, range, &packed).unwrap(), plain);
}

#[test]
fn a_key_file_is_for_its_owner_and_opens_what_it_has_sealed() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("key"), dir.path().join("other"));
    KeyFile::make(&path).unwrap();
    KeyFile::make(&other).unwrap();
    let refused = KeyFile::make(&path).unwrap_err().to_string();
    assert!(
        refused.contains("exists already") && refused.contains(path.to_str().unwrap()),
        "{refused}"
    );
    let (file, other) = (KeyFile::load(&path).unwrap(), KeyFile::load(&other).unwrap());
    let key = VolumeKey::draw(Cipher::ChaCha20Poly1305).unwrap();
    let sealed = file.seal(3, &key).unwrap();
    assert!(file.open(3, &sealed).unwrap().is(&key));
    assert!(matches!(file.open(4, &sealed), Err(KeyError::Wrong { .. })), "of another volume");
    assert!(matches!(other.open(3, &sealed), Err(KeyError::Wrong { .. })));
    let weaker = netfs_common::coding::SealedKey { cipher: Cipher::Aes256Gcm, ..sealed };
    assert!(matches!(file.open(3, &weaker), Err(KeyError::Wrong { .. })));
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    assert!(matches!(KeyFile::load(&path), Err(KeyError::Open { mode: 0o640, .. })));
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    for text in ["", "xyz", &"0".repeat(63), &"g".repeat(64), &"0".repeat(66)] {
        std::fs::write(&path, text).unwrap();
        assert!(matches!(KeyFile::load(&path), Err(KeyError::Senseless(_))), "{text}");
    }
    assert!(format!("{file:?} {key:?}").contains("KeyFile"));
    assert!(!format!("{file:?} {key:?}").contains('['), "keys are not to be logged");
}
