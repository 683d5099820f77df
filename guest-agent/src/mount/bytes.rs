//! Numbers and texts in a block of bytes. The caller knows that the block is long enough.

pub(super) fn u16_le(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(block[at..at + 2].try_into().expect("two bytes"))
}

pub(super) fn u16_be(block: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(block[at..at + 2].try_into().expect("two bytes"))
}

pub(super) fn u32_le(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(block[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_le(block: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"))
}

/// Up to the first zero.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
