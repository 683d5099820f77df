//! The metadata of an image (`rbd image-meta list`), read and written by the methods of the OSD's class `rbd`
//! on the image's header (Ceph `src/cls/rbd/cls_rbd.cc`, `metadata_list` and below).
//!
//! Not by librbd: its `rbd_metadata_set` wants the image's exclusive lock, and whoever dies with that lock stops
//! the guest's writes for half a minute (docs/decisions/0012-rbd.md).

use super::ffi::cluster::Pool;
use crate::drivers::{DriverError, Kind};

/// How many keys are asked for at once; as many as the class reads in one go (`RBD_MAX_KEYS_READ`).
const PAGE: u64 = 64;

/// The object that holds an image's header.
fn header(image: &str) -> String {
    format!("rbd_header.{image}")
}

/// Sets one key. The image must be open: on an image that is gone it would make a header anew.
pub(super) fn set(pool: &Pool, image: &str, key: &str, value: &str) -> Result<(), DriverError> {
    let mut input = 1_u32.to_le_bytes().to_vec();
    put(&mut input, key.as_bytes());
    put(&mut input, value.as_bytes());
    pool.exec(&header(image), c"metadata_set", &input).map(|_| ())
}

/// Removes one key; absent is fine.
pub(super) fn remove(pool: &Pool, image: &str, key: &str) -> Result<(), DriverError> {
    let mut input = Vec::new();
    put(&mut input, key.as_bytes());
    absent_is(pool.exec(&header(image), c"metadata_remove", &input).map(|_| ()), ())
}

/// The value of one key, if the image is there and has it.
pub(super) fn get(pool: &Pool, image: &str, key: &str) -> Result<Option<String>, DriverError> {
    let mut input = Vec::new();
    put(&mut input, key.as_bytes());
    let Some(answer) = absent_is(pool.exec(&header(image), c"metadata_get", &input).map(Some), None)? else {
        return Ok(None);
    };
    let mut rest = &answer[..];
    let value = take(&mut rest).ok_or_else(|| malformed(image))?;
    Ok(Some(String::from_utf8_lossy(value).into_owned()))
}

/// All keys that begin so, with their values. An image that is gone has none.
pub(super) fn list(pool: &Pool, image: &str, prefix: &str) -> Result<Vec<(String, String)>, DriverError> {
    let mut found = Vec::new();
    let mut after = prefix.to_owned();
    loop {
        let mut input = Vec::new();
        put(&mut input, after.as_bytes());
        input.extend(PAGE.to_le_bytes());
        let answer = absent_is(pool.exec(&header(image), c"metadata_list", &input).map(Some), None)?;
        let Some(answer) = answer else { return Ok(Vec::new()) };
        let page = parse(&answer).ok_or_else(|| malformed(image))?;
        let is_last = (page.len() as u64) < PAGE;
        for (key, value) in page {
            // In the order of the alphabet: behind ours come others'.
            if !key.starts_with(prefix) {
                return Ok(found);
            }
            after.clone_from(&key);
            found.push((key, value));
        }
        if is_last {
            return Ok(found);
        }
    }
}

fn absent_is<T>(answer: Result<T, DriverError>, absent: T) -> Result<T, DriverError> {
    match answer {
        Err(error) if error.kind == Kind::NotFound => Ok(absent),
        other => other,
    }
}

fn malformed(image: &str) -> DriverError {
    DriverError::new(Kind::Failed, format!("understand the metadata of the image {image}"))
}

/// A `map<string, bufferlist>` as Ceph encodes it: a count, then texts and bytes with their lengths.
fn parse(bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let (count, mut rest) = bytes.split_first_chunk::<4>()?;
    let mut pairs = Vec::new();
    for _ in 0..u32::from_le_bytes(*count) {
        let key = take(&mut rest)?;
        let value = take(&mut rest)?;
        pairs.push((String::from_utf8_lossy(key).into_owned(), String::from_utf8_lossy(value).into_owned()));
    }
    Some(pairs)
}

fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("a manifest is smaller than 4 GiB");
    to.extend(len.to_le_bytes());
    to.extend(bytes);
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, behind) = rest.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    let (bytes, behind) = behind.split_at_checked(len)?;
    *rest = behind;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(pairs: &[(String, String)]) -> Vec<u8> {
        let mut bytes = u32::try_from(pairs.len()).unwrap().to_le_bytes().to_vec();
        for (key, value) in pairs {
            put(&mut bytes, key.as_bytes());
            put(&mut bytes, value.as_bytes());
        }
        bytes
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_parsed_and_nothing_shorter_is(
            pairs in proptest::collection::vec(("[ -~]{0,20}", "\\PC{0,40}"), 0..5), cut in 1_usize..8
        ) {
            let bytes = encoded(&pairs);
            prop_assert_eq!(parse(&bytes), Some(pairs));
            prop_assert_eq!(parse(&bytes[..bytes.len().saturating_sub(cut)]), None);
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn a_count_alone_allocates_nothing_of_its_size() {
        assert_eq!(parse(&[0xff, 0xff, 0xff, 0xff]), None);
    }
}
