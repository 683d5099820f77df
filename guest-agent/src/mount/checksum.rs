//! The checksums of LVM and btrfs: both are CRC-32 with the bits reflected, and differ from zlib's in
//! their polynomial, beginning and end. A few kilobytes are summed up: a table would save nothing.

/// LVM's (lvm2 `lib/misc/crc.c`): zlib's polynomial, a beginning of its own, and no end.
pub(super) fn of_lvm(bytes: &[u8]) -> u32 {
    crc(0xedb8_8320, 0xf597_a6cf, bytes)
}

/// CRC-32C (RFC 3720 §12.1), as btrfs uses it.
pub(super) fn of_btrfs(bytes: &[u8]) -> u32 {
    !crc(0x82f6_3b78, !0, bytes)
}

fn crc(polynomial: u32, begin: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(begin, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { polynomial } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_sums_come_out() {
        assert_eq!(of_btrfs(b"123456789"), 0xe306_9283);
        // With zlib's beginning and end the same polynomial gives zlib's known sum.
        assert_eq!(!crc(0xedb8_8320, !0, b"123456789"), 0xcbf4_3926);
    }
}
