//! What the tests' application writes: records of one block, each with its number and a checksum,
//! synced one by one. A snapshot holds every record that was acknowledged before it, whole.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// A record's size, in bytes.
pub const RECORD: usize = 4096;

/// The record of this number.
pub fn record(number: u64) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    for (index, byte) in bytes.iter_mut().enumerate().skip(16) {
        // Different in each record, so that a block of another is noticed.
        *byte = (number.wrapping_mul(31).wrapping_add(index as u64) % 251) as u8;
    }
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    let sum = crc32fast::hash(&bytes[16..]) ^ crc32fast::hash(&bytes[..8]);
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// How many records, from the first on, are there and whole; an error if one behind them is whole
/// too: then one in the middle was lost.
pub fn verify(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut whole = 0;
    let mut broken = None;
    let mut bytes = [0; RECORD];
    for number in 0.. {
        match file.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
        if bytes != record(number) {
            broken.get_or_insert(number);
        } else if let Some(lost) = broken {
            return Err(io::Error::other(format!(
                "the record {lost} is broken, and {number} behind it is whole"
            )));
        } else {
            whole = number + 1;
        }
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_verified_up_to_the_first_broken_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        let mut bytes: Vec<u8> = (0..5).flat_map(record).collect();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(verify(&path).unwrap(), 5);
        std::fs::write(&path, &bytes[..RECORD * 4 + 100]).unwrap();
        assert_eq!(verify(&path).unwrap(), 4);
        bytes[RECORD * 4 + 100] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(verify(&path).unwrap(), 4);
        bytes[RECORD * 2 + 100] ^= 1;
        bytes[RECORD * 4 + 100] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(verify(&path).is_err());
    }
}
