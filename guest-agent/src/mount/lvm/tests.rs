//! On devices laid out as lvm does it; that lvm itself is read too is proved in a machine (`tests/stories`).

use super::super::checksum;
use super::super::place::tests::image;
use super::*;

const EXTENT: u64 = 8;
const BEGIN: u64 = 2048;
const SIZE: usize = 4 << 20;

/// A physical volume with one metadata area, as lvm lays it out; its extents are filled with this letter,
/// growing by one for each.
fn physical(uuid: &str, letter: u8, text: &str, wraps: bool) -> Arc<Place> {
    let mut bytes = vec![0; SIZE];
    bytes[512..520].copy_from_slice(b"LABELONE");
    bytes[520] = 1;
    bytes[532] = 32;
    bytes[536..544].copy_from_slice(b"LVM2 001");
    bytes[544..576].copy_from_slice(uuid.as_bytes());
    let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    let (area, size) = (4096, 1_044_480);
    put(576, SIZE as u64);
    put(584, 1 << 20);
    put(616, area);
    put(624, size);
    let offset = if wraps { size - 10 } else { 512 };
    let at = usize::try_from(area).unwrap();
    put(at + 40, offset);
    put(at + 48, text.len() as u64);
    put(at + 56, checksum::of_lvm(text.as_bytes()).into());
    bytes[at + 4..at + 20].copy_from_slice(b"\x20LVM2\x20x[5A%r0N*>");
    for (index, byte) in text.bytes().enumerate() {
        let place = offset as usize + index;
        let place = if place < size as usize { place } else { 512 + place - size as usize };
        bytes[at + place] = byte;
    }
    for (index, extent) in bytes[1 << 20..].chunks_mut(4096).enumerate() {
        extent.fill(letter + u8::try_from(index % 20).unwrap());
    }
    image(&bytes)
}

fn uuid(letter: char) -> String {
    std::iter::repeat_n(letter, 32).collect()
}

fn group(sequence: u32, volumes: &str) -> String {
    let dashed = |letter: char| {
        let text = uuid(letter);
        [&text[..6], &text[6..10], &text[10..14], &text[14..18], &text[18..22], &text[22..26], &text[26..]]
            .join("-")
    };
    format!(
        "vg0 {{ seqno = {sequence} extent_size = {EXTENT} physical_volumes {{ \
         pv0 {{ id = \"{}\" pe_start = {BEGIN} }} pv1 {{ id = \"{}\" pe_start = {BEGIN} }} }} \
         logical_volumes {{ {volumes} }} }}\n",
        dashed('a'),
        dashed('b')
    )
}

const JOINED: &str = "joined { status = [\"READ\", \"WRITE\", \"VISIBLE\"] segment_count = 2 \
     segment1 { start_extent = 0 extent_count = 2 type = \"striped\" stripe_count = 1 stripes = [ \"pv1\", 3 ] } \
     segment2 { start_extent = 2 extent_count = 1 type = \"striped\" stripe_count = 1 stripes = [ \"pv0\", 0 ] } }";
const STRIPED: &str = "striped { status = [\"VISIBLE\"] segment_count = 1 segment1 { start_extent = 0 \
     extent_count = 4 type = \"striped\" stripe_count = 2 stripe_size = 8 stripes = [ \"pv0\", 1, \"pv1\", 1 ] } }";
const OTHERS: &str = "hidden { status = [\"READ\"] segment_count = 0 } \
     thin { status = [\"VISIBLE\"] segment_count = 1 segment1 { start_extent = 0 extent_count = 1 type = \"thin\" } } \
     hole { status = [\"VISIBLE\"] segment_count = 1 segment1 { start_extent = 1 extent_count = 1 type = \"striped\" \
     stripes = [ \"pv0\", 0 ] } }";

fn letters(place: &Place) -> String {
    let mut bytes = vec![0; usize::try_from(place.size_bytes()).unwrap()];
    place.read_at(0, &mut bytes).unwrap();
    bytes.chunks(4096).map(|extent| char::from(extent[0])).collect()
}

#[test]
fn a_volume_is_read_from_where_its_extents_are() {
    let text = group(3, &format!("{JOINED} {STRIPED} {OTHERS}"));
    for wraps in [false, true] {
        let (first, second) =
            (physical(&uuid('a'), b'a', &text, wraps), physical(&uuid('b'), b'A', &text, wraps));
        let volumes = volumes(&[second, first]).unwrap();
        let names: Vec<_> = volumes.iter().map(|volume| volume.name.as_str()).collect();
        assert_eq!(names, ["joined", "striped", "thin", "hole"]);
        assert_eq!(letters(volumes[0].place.as_ref().unwrap()), "DEa");
        assert_eq!(letters(volumes[1].place.as_ref().unwrap()), "bBcC");
        assert!(volumes[2].place.as_ref().unwrap_err().contains("type thin"));
        assert!(volumes[3].place.as_ref().unwrap_err().contains("gap"));
    }
}

#[test]
fn the_newest_metadata_counts_and_a_missing_device_is_said() {
    let (old, new) = (group(3, STRIPED), group(4, JOINED));
    let both = [physical(&uuid('a'), b'a', &old, false), physical(&uuid('b'), b'A', &new, false)];
    assert_eq!(volumes(&both).unwrap()[0].name, "joined");
    let told = volumes(&both[1..]).unwrap();
    assert!(told[0].place.as_ref().unwrap_err().contains("not in the snapshot"));
}

#[test]
fn damaged_metadata_is_none() {
    let text = group(3, JOINED).replace("seqno", "sequence = 1 seqno");
    let whole = physical(&uuid('b'), b'A', &text, false);
    let mut bytes = vec![0; SIZE];
    whole.read_at(0, &mut bytes).unwrap();
    let at = bytes.windows(8).position(|window| window == b"sequence").unwrap();
    bytes[at] = b'x';
    assert!(volumes(&[image(&bytes)]).unwrap().is_empty());
}
