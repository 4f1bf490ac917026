//! Making frames smaller.

use std::cell::RefCell;

use netfs_common::coding::Compression;

use super::CodecError;

/// Fast: what is written must not wait.
const ZSTD_LEVEL: i32 = 1;

/// How a frame is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Packing {
    Plain = 0,
    Lz4 = 1,
    Zstd = 2,
}

impl Packing {
    pub(super) fn from_bits(bits: u32) -> Option<Packing> {
        Some(match bits {
            0 => Packing::Plain,
            1 => Packing::Lz4,
            2 => Packing::Zstd,
            _ => return None,
        })
    }
}

thread_local! {
    // To make one takes longer than to compress a frame.
    static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Appends a frame, compressed if that makes it smaller, and says how it is.
pub(super) fn pack(how: Compression, data: &[u8], out: &mut Vec<u8>) -> Packing {
    let at = out.len();
    let (packing, room) = match how {
        Compression::None => (Packing::Plain, 0),
        Compression::Lz4 => (Packing::Lz4, lz4_flex::block::get_maximum_output_size(data.len())),
        Compression::Zstd => (Packing::Zstd, data.len()),
    };
    out.resize(at + room, 0);
    let packed = match packing {
        Packing::Plain => None,
        Packing::Lz4 => lz4_flex::block::compress_into(data, &mut out[at..]).ok(),
        Packing::Zstd => zstd_pack(data, &mut out[at..]),
    };
    // What cannot be compressed does not fit, which is no failure.
    match packed.filter(|len| *len < data.len()) {
        Some(len) => {
            out.truncate(at + len);
            packing
        }
        None => {
            out.truncate(at);
            out.extend_from_slice(data);
            Packing::Plain
        }
    }
}

fn zstd_pack(data: &[u8], out: &mut [u8]) -> Option<usize> {
    COMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
        }
        slot.as_mut()?.compress_to_buffer(data, out).ok()
    })
}

/// Appends the bytes of a frame, which has `len` of them. Never takes memory for more.
pub(super) fn unpack(
    packing: Packing,
    packed: &[u8],
    len: usize,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let at = out.len();
    let got = match packing {
        Packing::Plain => {
            out.extend_from_slice(packed);
            Some(packed.len())
        }
        Packing::Lz4 => {
            out.resize(at + len, 0);
            lz4_flex::block::decompress_into(packed, &mut out[at..]).ok()
        }
        Packing::Zstd => {
            out.resize(at + len, 0);
            zstd_unpack(packed, &mut out[at..])
        }
    };
    match got {
        Some(got) if got == len => Ok(()),
        _ => {
            out.truncate(at);
            Err(CodecError::Damaged("it cannot be decompressed to its length"))
        }
    }
}

fn zstd_unpack(packed: &[u8], out: &mut [u8]) -> Option<usize> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = zstd::bulk::Decompressor::new().ok();
        }
        slot.as_mut()?.decompress_to_buffer(packed, out).ok()
    })
}
