//! What lvm says of a volume group, in one report (lvmreport(7), `lvm fullreport`). Pure: text in,
//! values out. A newer lvm may say more, and an older one less of what we can do without.

use serde::{Deserialize, Deserializer};

use super::names;

/// The columns that are asked for, by section: what `Report` reads, and nothing else.
const COLUMNS: [(&str, &str); 5] = [
    ("vg", "vg_name,vg_uuid,vg_permissions,vg_partial,vg_exported,vg_shared,vg_mda_free"),
    ("pv", "pv_name"),
    (
        "lv",
        "lv_name,lv_uuid,lv_size,lv_layout,lv_tags,pool_lv,origin,origin_uuid,lv_active,lv_suspended,\
         lv_kernel_major,lv_kernel_minor,lv_device_open,lv_health_status,data_percent,metadata_percent",
    ),
    ("seg", "lv_uuid"),
    ("pvseg", "pv_uuid"),
];

/// The arguments that make lvm print what [`VolumeGroup::parse`] reads.
pub(super) fn arguments(vg: &str) -> Vec<&str> {
    let mut arguments = vec!["fullreport", "--reportformat", "json", "--units", "b", "--nosuffix"];
    for (section, columns) in COLUMNS {
        arguments.extend(["--configreport", section, "-o", columns]);
    }
    arguments.push(vg);
    arguments
}

/// Why a report was not understood.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReportError {
    /// It is no such JSON.
    #[error("read lvm's report")]
    Parse(#[from] serde_json::Error),
    /// It is about none, or several.
    #[error("read lvm's report: it is about {0} volume groups, where one was asked for")]
    Count(usize),
}

#[derive(Deserialize)]
struct Document {
    report: Vec<Sections>,
}

#[derive(Deserialize)]
struct Sections {
    vg: Vec<Vg>,
    pv: Vec<Pv>,
    lv: Vec<Lv>,
}

#[derive(Deserialize)]
struct Vg {
    vg_uuid: String,
    #[serde(default)]
    vg_permissions: String,
    #[serde(default)]
    vg_partial: String,
    #[serde(default)]
    vg_exported: String,
    #[serde(default)]
    vg_shared: String,
    #[serde(default, deserialize_with = "number")]
    vg_mda_free: Option<u64>,
}

#[derive(Deserialize)]
struct Pv {
    pv_name: String,
}

/// One logical volume.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Lv {
    #[serde(rename = "lv_name")]
    pub(super) name: String,
    #[serde(rename = "lv_uuid")]
    pub(super) uuid: String,
    #[serde(rename = "lv_size", deserialize_with = "number")]
    size: Option<u64>,
    #[serde(rename = "lv_layout")]
    layout: String,
    #[serde(rename = "lv_tags")]
    tags: String,
    #[serde(rename = "pool_lv")]
    pub(super) pool: String,
    pub(super) origin: String,
    #[serde(default)]
    pub(super) origin_uuid: String,
    #[serde(rename = "lv_active")]
    active: String,
    #[serde(default, rename = "lv_suspended")]
    suspended: String,
    #[serde(default, rename = "lv_kernel_major", deserialize_with = "number")]
    major: Option<u64>,
    #[serde(default, rename = "lv_kernel_minor", deserialize_with = "number")]
    minor: Option<u64>,
    #[serde(default, rename = "lv_device_open")]
    open: String,
    #[serde(default, rename = "lv_health_status")]
    pub(super) health: String,
    #[serde(default, deserialize_with = "percent")]
    pub(super) data_percent: Option<f64>,
    #[serde(default, deserialize_with = "percent")]
    pub(super) metadata_percent: Option<f64>,
}

/// A volume group as it was at one moment.
#[derive(Debug, Clone)]
pub(super) struct VolumeGroup {
    pub(super) uuid: String,
    pub(super) state: VgState,
    /// Room for more metadata, in bytes. lvm keeps the old text until the new one is written, and counts that in.
    pub(super) metadata_free: Option<u64>,
    /// The devices that it is on.
    pub(super) devices: Vec<String>,
    pub(super) lvs: Vec<Lv>,
}

/// Whether a volume group can be changed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VgState {
    Usable,
    ReadOnly,
    Partial,
    Exported,
    Shared,
}

impl VolumeGroup {
    /// Reads a report that was made with [`arguments`].
    pub(super) fn parse(text: &str) -> Result<Self, ReportError> {
        let mut reports = serde_json::from_str::<Document>(text)?.report;
        let count = reports.len();
        let (Some(Sections { mut vg, pv, lv }), 1) = (reports.pop(), count) else {
            return Err(ReportError::Count(count));
        };
        let count = vg.len();
        let (Some(vg), 1) = (vg.pop(), count) else { return Err(ReportError::Count(count)) };
        let state = match () {
            () if !vg.vg_exported.is_empty() => VgState::Exported,
            () if !vg.vg_partial.is_empty() => VgState::Partial,
            () if !vg.vg_shared.is_empty() => VgState::Shared,
            () if vg.vg_permissions == "read-only" => VgState::ReadOnly,
            () => VgState::Usable,
        };
        let devices = pv.into_iter().map(|pv| pv.pv_name).collect();
        Ok(Self { uuid: vg.vg_uuid, state, metadata_free: vg.vg_mda_free, devices, lvs: lv })
    }

    /// A volume by its name.
    pub(super) fn lv(&self, name: &str) -> Option<&Lv> {
        self.lvs.iter().find(|lv| lv.name == name)
    }

    /// The device mapper's own name for a volume (lvm2 `lib/activate/dev_manager.c`, `build_dm_uuid`).
    pub(super) fn dm_uuid(&self, lv: &Lv, suffix: &str) -> String {
        format!("LVM-{}{}{suffix}", self.uuid.replace('-', ""), lv.uuid.replace('-', ""))
    }
}

impl Lv {
    pub(super) fn size_bytes(&self) -> u64 {
        self.size.unwrap_or(0)
    }

    pub(super) fn is_thin_pool(&self) -> bool {
        self.layout.split(',').eq(["thin", "pool"])
    }

    pub(super) fn is_active(&self) -> bool {
        self.active.starts_with("active") || self.active == "locally" || self.active == "local exclusive"
    }

    pub(super) fn is_suspended(&self) -> bool {
        !self.suspended.is_empty() && self.suspended != "unknown"
    }

    /// Whether somebody has it open.
    pub(super) fn is_open(&self) -> bool {
        self.open == "open"
    }

    /// Its device number, where it is active.
    pub(super) fn device(&self) -> Option<(u32, u32)> {
        Some((u32::try_from(self.major?).ok()?, u32::try_from(self.minor?).ok()?))
    }

    pub(super) fn tags(&self) -> impl Iterator<Item = &str> {
        self.tags.split(',').filter(|tag| !tag.is_empty())
    }

    /// Which snapshot of which volume it is, if it is one of ours.
    pub(super) fn ours(&self) -> Option<names::Ours> {
        names::Ours::of(&self.name, self.tags())
    }
}

/// lvm prints -1, or nothing, where there is none.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(String::deserialize(deserializer)?.trim().parse().ok())
}

fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let percent: Option<f64> = String::deserialize(deserializer)?.trim().parse().ok();
    Ok(percent.filter(|percent| percent.is_finite()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Recorded of lvm 2.03.16, Debian 12.
    pub(crate) const RECORDED: &str = include_str!("fixtures/lvm-2.03.16.json");
    /// The same of lvm 2.03.31, Debian 13.
    const NEWER: &str = include_str!("fixtures/lvm-2.03.31.json");

    #[test]
    fn a_recorded_report_says_what_there_is() {
        let of_newer = "LVM-wXRnYLCsAVy1ekHBqPXycr7fL1dx1pAcaaq7yFlHpduwKcnG8obaxJ2MkEwODpj1";
        let of_older = "LVM-XNaPwrXHLE6X8g674NCIn0bZtH0yI70TgbS0ip5Jk02RQrCilDbyZCnhl7RLpr1k";
        for (text, dm_uuid) in [(RECORDED, of_older), (NEWER, of_newer)] {
            says_what_there_is(&VolumeGroup::parse(text).unwrap(), dm_uuid);
        }
    }

    fn says_what_there_is(vg: &VolumeGroup, dm_uuid: &str) {
        assert_eq!((vg.state, vg.metadata_free), (VgState::Usable, Some(518_144)));
        assert_eq!(vg.devices, ["/dev/vda"]);
        let pool = vg.lv("thin").unwrap();
        assert!(pool.is_thin_pool() && pool.is_active());
        assert_eq!((pool.data_percent, pool.metadata_percent), (Some(0.0), Some(11.04)));
        let origin = vg.lv("vm1-data").unwrap();
        assert_eq!((origin.size_bytes(), origin.device()), (64 << 20, Some((253, 4))));
        assert!(origin.is_active() && !origin.is_suspended() && !origin.is_open() && !origin.is_thin_pool());
        let snapshot = vg.lv("hostsnap.s1").unwrap();
        assert_eq!((snapshot.origin_uuid.as_str(), snapshot.device()), (origin.uuid.as_str(), None));
        assert!(!snapshot.is_active() && snapshot.ours().is_none());
        assert_eq!(vg.dm_uuid(origin, ""), dm_uuid);
    }

    #[test]
    fn what_another_lvm_says_more_or_less_is_no_mistake() {
        let newer = RECORDED.replace("\"pv_name\"", "\"pv_new\":\"x\", \"pv_name\"").replace(
            "\n          }\n      ]",
            ",\n \"log\": []\n          }\n      ], \"log\": [{\"log_seq_num\":\"1\"}]",
        );
        VolumeGroup::parse(&newer).unwrap();
        let older =
            RECORDED.replace("\"lv_health_status\":\"\", ", "").replace("\"lv_suspended\":\"\", ", "");
        assert!(!VolumeGroup::parse(&older).unwrap().lv("thin").unwrap().is_suspended());
    }

    #[test]
    fn a_group_that_can_not_be_changed_is_known_as_that() {
        for (from, to, state) in [
            ("\"writeable\", \"vg_partial", "\"read-only\", \"vg_partial", VgState::ReadOnly),
            ("\"vg_partial\":\"\"", "\"vg_partial\":\"partial\"", VgState::Partial),
            ("\"vg_exported\":\"\"", "\"vg_exported\":\"exported\"", VgState::Exported),
            ("\"vg_shared\":\"\"", "\"vg_shared\":\"shared\"", VgState::Shared),
        ] {
            let text = RECORDED.replacen(from, to, 1);
            assert_ne!(text, RECORDED);
            assert_eq!(VolumeGroup::parse(&text).unwrap().state, state);
        }
    }

    #[test]
    fn a_report_on_nothing_is_an_error() {
        for text in ["", "{}", "{\"report\": []}", "{\"report\": [{\"vg\": [], \"pv\": [], \"lv\": []}]}"] {
            assert!(VolumeGroup::parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_however_broken_makes_it_panic(
            said in prop::sample::select([RECORDED, NEWER].as_slice()),
            at in 0..RECORDED.len().min(NEWER.len()),
            len in 0..200_usize,
            with in ".{0,20}",
        ) {
            let end = (at + len).min(said.len());
            if said.is_char_boundary(at) && said.is_char_boundary(end) {
                let text = format!("{}{with}{}", &said[..at], &said[end..]);
                if let Ok(vg) = VolumeGroup::parse(&text) {
                    vg.lvs.iter().for_each(|lv| { lv.ours(); lv.device(); lv.is_active(); });
                }
            }
        }
    }
}
