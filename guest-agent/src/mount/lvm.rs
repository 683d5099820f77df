//! Logical volumes, put together from the metadata that LVM keeps as text on each physical volume, without
//! LVM: it would take the copies for the originals, which have the same names and UUIDs, and refuse both. Nothing
//! is written, and no name of the original's is used.
//!
//! | module | idea |
//! |---|---|
//! | `text` | the language of the metadata |
//! | `label` | where it is on a device |

mod label;
mod text;

use std::io;
use std::sync::Arc;

use super::place::{Place, Target};
pub(super) use label::is_labelled;
use text::Section;

/// A volume of a group; or why it can't be had, in words for people.
#[derive(Debug)]
pub(super) struct Volume {
    /// Its group.
    pub(super) group: String,
    /// Its name.
    pub(super) name: String,
    /// Its contents.
    pub(super) place: Result<Arc<Place>, String>,
}

/// All visible volumes on these physical volumes.
pub(super) fn volumes(devices: &[Arc<Place>]) -> io::Result<Vec<Volume>> {
    let mut present = Vec::new();
    let mut groups: Vec<(String, u64, Section)> = Vec::new();
    for device in devices {
        let Some(label) = label::read(device)? else { continue };
        present.push((label.uuid, Arc::clone(device)));
        for written in &label.metadata {
            let Some((name, group)) = text::parse(written) else { continue };
            let sequence = group.number("seqno").unwrap_or(0);
            // Each physical volume has a copy; one that was away has an old one.
            match groups.iter_mut().find(|(known, ..)| *known == name) {
                Some(known) if known.1 < sequence => *known = (name, sequence, group),
                Some(_) => {}
                None => groups.push((name, sequence, group)),
            }
        }
    }
    let of_group = |(name, _, group): &(String, u64, Section)| {
        let volumes = group.section("logical_volumes").map(Section::sections).unwrap_or_default();
        volumes
            .into_iter()
            .filter(|(_, volume)| volume.texts("status").any(|status| status == "VISIBLE"))
            .map(|(volume, section)| Volume {
                group: name.clone(),
                name: volume.to_owned(),
                place: assemble(name, volume, group, section, &present).map(Arc::new),
            })
            .collect::<Vec<_>>()
    };
    Ok(groups.iter().flat_map(of_group).collect())
}

fn assemble(
    group_name: &str,
    name: &str,
    group: &Section,
    volume: &Section,
    present: &[(String, Arc<Place>)],
) -> Result<Place, String> {
    let extent =
        group.number("extent_size").filter(|sectors| *sectors > 0).ok_or("its group has no extent size")?;
    let count = volume.number("segment_count").unwrap_or(0);
    let mut targets = Vec::new();
    for index in 1..=count {
        let segment = volume.section(&format!("segment{index}")).ok_or("a segment is missing")?;
        targets.push(target(group, segment, extent, present)?);
    }
    targets.sort_by_key(|target| target.start);
    let mut end = 0;
    for target in &targets {
        if target.start != end || target.sectors == 0 {
            return Err("its segments leave a gap".to_owned());
        }
        end = target.start.checked_add(target.sectors).ok_or("it is too long")?;
    }
    if targets.is_empty() {
        return Err("it has no segments".to_owned());
    }
    Ok(Place::Mapped { name: format!("{group_name}-{name}"), targets })
}

fn target(
    group: &Section,
    segment: &Section,
    extent: u64,
    present: &[(String, Arc<Place>)],
) -> Result<Target, String> {
    let kind = segment.texts("type").next().unwrap_or("?");
    // One stripe is what lvm calls linear.
    if kind != "striped" {
        return Err(format!("it is of the type {kind}, which hostsnap does not put together"));
    }
    let sectors = |key: &str| {
        segment.number(key).and_then(|extents| extents.checked_mul(extent)).ok_or(format!("it has no {key}"))
    };
    let stripes = segment
        .pairs("stripes")
        .map(|(volume, begin)| {
            let known = group.section("physical_volumes").and_then(|all| all.section(volume));
            let known = known.ok_or("it lies on a physical volume that its group does not list")?;
            let uuid = known.texts("id").next().unwrap_or_default().replace('-', "");
            let (_, place) = present
                .iter()
                .find(|(other, _)| *other == uuid)
                .ok_or("it lies on a physical volume that is not in the snapshot")?;
            let begin = begin.checked_mul(extent).and_then(|at| at.checked_add(known.number("pe_start")?));
            Ok((Arc::clone(place), begin.ok_or("its physical volume names no beginning")?))
        })
        .collect::<Result<Vec<_>, &str>>()?;
    let chunk = segment.number("stripe_size").unwrap_or(0);
    let (start, sectors) = (sectors("start_extent")?, sectors("extent_count")?);
    let row = chunk.checked_mul(stripes.len() as u64).filter(|row| *row > 0);
    let even = stripes.len() == 1 || row.is_some_and(|row| sectors % row == 0);
    if stripes.is_empty() || !even {
        return Err("its stripes make no sense".to_owned());
    }
    Ok(Target { start, sectors, chunk, stripes })
}

#[cfg(test)]
mod tests;
