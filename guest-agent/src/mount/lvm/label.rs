//! The label of a physical volume, and where its metadata is (lvm2 `lib/format_text/layout.h`).

use std::io;

use crate::mount::bytes::{u32_le, u64_le};
use crate::mount::checksum;
use crate::mount::place::{Place, SECTOR};

/// What a physical volume says.
pub(super) struct Label {
    /// Its UUID, 32 characters.
    pub(super) uuid: String,
    /// The texts of its metadata areas, checked by their sums.
    pub(super) metadata: Vec<String>,
}

const MAGIC: &[u8] = b"LABELONE";
const KIND: &[u8] = b"LVM2 001";
const AREA_MAGIC: &[u8] = b"\x20LVM2\x20x[5A%r0N*>";
const AREA_HEADER: u64 = 512;
/// One that is not to be used.
const IGNORED: u32 = 1;
/// lvm makes areas of a few MiB at most.
const MOST: u64 = 64 << 20;

/// It may be in any of the first four sectors; `head` has more.
pub(in crate::mount) fn is_labelled(head: &[u8]) -> bool {
    find(head).is_some()
}

fn find(head: &[u8]) -> Option<usize> {
    (0..4).map(|sector| sector * SECTOR as usize).find(|at| {
        head.get(*at..at + 32).is_some_and(|label| label.starts_with(MAGIC) && label[24..].starts_with(KIND))
    })
}

pub(super) fn read(device: &Place) -> io::Result<Option<Label>> {
    let Some(head) = device.bytes::<4096>(0)? else { return Ok(None) };
    let Some(label) = find(&head) else { return Ok(None) };
    let header = label.saturating_add(usize::try_from(u32_le(&head, label + 20)).unwrap_or(usize::MAX));
    let Some(uuid) = head.get(header..header.saturating_add(32)) else { return Ok(None) };
    // Areas of data, a zero, areas of metadata, a zero: pairs of place and size.
    let pairs = head[header + 32..].get(8..).unwrap_or_default().chunks_exact(16);
    let pairs: Vec<_> = pairs.map(|pair| (u64_le(pair, 0), u64_le(pair, 8))).collect();
    let areas = pairs.iter().skip_while(|pair| pair.0 != 0).skip(1).take_while(|pair| pair.0 != 0);
    let mut metadata = Vec::new();
    for (start, size) in areas {
        metadata.extend(area(device, *start, *size)?);
    }
    Ok(Some(Label { uuid: String::from_utf8_lossy(uuid).into_owned(), metadata }))
}

/// The text that is in force in an area.
fn area(device: &Place, start: u64, size: u64) -> io::Result<Option<String>> {
    let Some(header) = device.bytes::<512>(start)? else { return Ok(None) };
    let (offset, length) = (u64_le(&header, 40), u64_le(&header, 48));
    let (sum, flags) = (u32_le(&header, 56), u32_le(&header, 60));
    let fits =
        size <= MOST && offset >= AREA_HEADER && offset < size && length <= size.saturating_sub(AREA_HEADER);
    if !header[4..].starts_with(AREA_MAGIC) || flags & IGNORED != 0 || length == 0 || !fits {
        return Ok(None);
    }
    // The area is a ring behind its header.
    let first = length.min(size - offset);
    let mut text = vec![0; usize::try_from(length).expect("an area is small")];
    let (before, after) = text.split_at_mut(usize::try_from(first).expect("an area is small"));
    if start.checked_add(size).is_none_or(|end| end > device.size_bytes()) {
        return Ok(None);
    }
    device.read_at(start + offset, before)?;
    device.read_at(start + AREA_HEADER, after)?;
    Ok((checksum::of_lvm(&text) == sum).then(|| String::from_utf8_lossy(&text).into_owned()))
}
