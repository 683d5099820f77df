//! Members of md arrays (Linux `include/uapi/linux/raid/md_p.h`), read without `mdadm`, which would write to
//! them and knows the original's array by the same name. Mirrors and stripes are put together from what their
//! super blocks say; the kinds with parity are not.

use std::io;
use std::sync::Arc;

use uuid::Uuid;

use super::bytes::{u16_le, u32_le, u64_le};
use super::place::{Place, SECTOR, Target};

/// What a member says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The array.
    pub array: Uuid,
    /// 0, 1, 5 …
    pub level: i32,
    /// How many members the array has.
    pub members: u32,
    /// Which of them it is; `None` for a spare or a faulty one.
    pub role: Option<u16>,
    /// Its data: the first sector, and how many there are.
    pub data: (u64, u64),
    /// Sectors of each member that the array uses, where the level has that.
    pub used: u64,
    /// Sectors of a stripe.
    pub chunk: u64,
    /// Grows with each change: the one with most is newest.
    pub events: u64,
    /// Being built or reshaped: what it holds is not all of it.
    pub unfinished: bool,
}

const MAGIC: u32 = 0xa92b_4efc;
const RECOVERY_OFFSET: u32 = 0x2;
const RESHAPE: u32 = 0x4;
/// Roles above are no places: a spare, a faulty one, a journal.
const LAST_ROLE: u16 = 0xff00;

/// Looks where the versions 1.1, 1.2 and 1.0 have it; the old 0.90 is not told.
pub(super) fn member(place: &Place) -> io::Result<Option<Member>> {
    let sectors = place.size_bytes() / SECTOR;
    // At the end: 8 KiB at least, on a boundary of 4 KiB (mdadm `super1.c`).
    let last = sectors.checked_sub(16).map(|sector| (sector & !7) * SECTOR);
    for at in [Some(0), Some(4096), last].into_iter().flatten() {
        if let Some(block) = place.bytes::<4096>(at)?
            && u32_le(&block, 0) == MAGIC
            && u32_le(&block, 4) == 1
            && u64_le(&block, 144) == at / SECTOR
        {
            return Ok(Some(read(&block)));
        }
    }
    Ok(None)
}

fn read(block: &[u8; 4096]) -> Member {
    let features = u32_le(block, 8);
    let number = usize::try_from(u32_le(block, 160)).unwrap_or(usize::MAX);
    let role = number.checked_mul(2).and_then(|at| at.checked_add(256)).filter(|at| *at < 4095);
    Member {
        array: Uuid::from_slice(&block[16..32]).expect("sixteen bytes"),
        level: u32_le(block, 72).cast_signed(),
        members: u32_le(block, 92),
        role: role.map(|at| u16_le(block, at)).filter(|role| *role < LAST_ROLE),
        data: (u64_le(block, 128), u64_le(block, 136)),
        used: u64_le(block, 80),
        chunk: u32_le(block, 88).into(),
        events: u64_le(block, 200),
        unfinished: features & (RECOVERY_OFFSET | RESHAPE) != 0,
    }
}

/// Puts the members of one array together; why not, in words for people.
pub(super) fn assemble(members: &[(Member, Arc<Place>)]) -> Result<Place, String> {
    let newest = members.iter().map(|(member, _)| member.events).max().unwrap_or(0);
    // One that lags behind was out of the array when the others were written to.
    let usable = |member: &Member| member.events == newest && member.role.is_some() && !member.unfinished;
    let mut usable: Vec<_> = members.iter().filter(|(member, _)| usable(member)).collect();
    usable.sort_by_key(|(member, _)| member.role);
    usable.dedup_by_key(|(member, _)| member.role);
    let Some((first, place)) = usable.first() else {
        return Err("no member of it is up to date".to_owned());
    };
    let name = format!("md-{}", &first.array.simple().to_string()[..8]);
    let target = match first.level {
        1 => {
            // Its size is checked by whoever reads it; more than the device has can't be mapped.
            Target {
                start: 0,
                sectors: first.used,
                chunk: 0,
                stripes: vec![(Arc::clone(place), first.data.0)],
            }
        }
        0 => stripes(first, &usable)?,
        level => {
            return Err(format!(
                "it is of level {level}, which hostsnap does not put together; attach the snapshot with --writable, \
                 and use mdadm --assemble --update=uuid with another name"
            ));
        }
    };
    if target.sectors == 0 {
        return Err("its super block names no size".to_owned());
    }
    Ok(Place::Mapped { name, targets: vec![target] })
}

fn stripes(first: &Member, usable: &[&(Member, Arc<Place>)]) -> Result<Target, String> {
    let count = usable.len();
    if u32::try_from(count) != Ok(first.members) {
        return Err(format!("{count} of its {} stripes are in the snapshot", first.members));
    }
    if first.chunk == 0 || usable.iter().any(|(member, _)| member.data.1 != first.data.1) {
        return Err("its stripes are not of one size, which hostsnap does not put together".to_owned());
    }
    let each = first.data.1 / first.chunk * first.chunk;
    let stripes = usable.iter().map(|(member, place)| (Arc::clone(place), member.data.0)).collect();
    Ok(Target { start: 0, sectors: each.saturating_mul(count as u64), chunk: first.chunk, stripes })
}

#[cfg(test)]
mod tests {
    use super::super::place::tests::image;
    use super::*;

    fn member(level: i32, role: u16, events: u64) -> (Member, Arc<Place>) {
        let member = Member {
            array: Uuid::from_u128(1),
            level,
            members: 2,
            role: Some(role),
            data: (4, 35),
            used: 32,
            chunk: 16,
            events,
            unfinished: false,
        };
        (member, image(&[0; 64 * 512]))
    }

    fn sectors(place: Result<Place, String>) -> u64 {
        place.unwrap().size_bytes() / SECTOR
    }

    #[test]
    fn a_mirror_is_its_newest_member_and_stripes_are_all_of_them() {
        let assembled = assemble(&[member(1, 0, 7), member(1, 1, 9)]).unwrap();
        let Place::Mapped { targets, .. } = &assembled else { panic!("{assembled:?}") };
        assert_eq!((targets[0].sectors, targets[0].stripes[0].1), (32, 4));
        assert_eq!(sectors(assemble(&[member(1, 1, 9)])), 32, "one is enough");
        assert_eq!(sectors(assemble(&[member(0, 1, 9), member(0, 0, 9)])), 64, "whole chunks only");
    }

    #[test]
    fn what_can_not_be_put_together_is_said() {
        let mut building = member(1, 0, 9);
        building.0.unfinished = true;
        for (members, word) in [
            (vec![], "no member"),
            (vec![building], "no member"),
            (vec![member(0, 0, 9)], "1 of its 2 stripes"),
            (vec![member(0, 0, 9), member(0, 1, 8)], "1 of its 2 stripes"),
            (vec![member(5, 0, 9), member(5, 1, 9)], "level 5"),
        ] {
            let told = assemble(&members).unwrap_err();
            assert!(told.contains(word), "{told}");
        }
    }

    #[test]
    fn a_super_block_is_read_where_its_version_has_it() {
        let mut block = [0; 4096];
        block[..4].copy_from_slice(&MAGIC.to_le_bytes());
        block[4] = 1;
        block[72] = 1;
        block[92] = 2;
        block[128] = 16;
        block[160] = 1;
        block[258..260].copy_from_slice(&1u16.to_le_bytes());
        // A device of 64 KiB has the version 1.0 at its sector 112.
        for sector in [0u8, 8, 112] {
            let mut bytes = vec![0; 64 << 10];
            let at = usize::from(sector) * 512;
            bytes[at..at + 4096].copy_from_slice(&block);
            bytes[at + 144] = 99;
            assert_eq!(super::member(&image(&bytes)).unwrap(), None, "it names another place");
            bytes[at + 144] = sector;
            let member = super::member(&image(&bytes)).unwrap().unwrap();
            assert_eq!((member.level, member.members, member.role, member.data.0), (1, 2, Some(1), 16));
        }
    }
}
