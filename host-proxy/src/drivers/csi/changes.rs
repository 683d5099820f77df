//! What changed between two snapshots, as the plugin's SnapshotMetadata service streams it (CSI 1.12, alpha since 1.10).

use std::time::Duration;

use protocol::DiskSerial;
use tonic::Code;

use super::Csi;
use super::codes::Refusal;
use super::disk::Disk;
use super::entry::Made;
use super::proto::{BlockMetadata, DeltaRequest, DeltaResponse, method};
use crate::drivers::{Changes, DriverError, Extent, Kind, Owner, extents};

/// How long a plugin may take for all of it: the service waits 600 s.
const LIMIT: Duration = Duration::from_secs(580);
/// No disk has more extents than that: what comes beyond them is garbage. In memory they take 64 MiB.
const MOST: usize = 4 << 20;

impl Csi {
    /// All that the plugin tells of two snapshots, of which the base is the older.
    fn delta(&self, base: &Made, target: &Made, told: &mut Vec<Extent>) -> Result<(), Refusal> {
        let secrets = self.store.secrets().map_err(|error| Refusal::of_ours(&error))?;
        let request = DeltaRequest {
            base_snapshot_id: base.id.clone(),
            target_snapshot_id: target.id.clone(),
            starting_offset: 0,
            max_results: 0,
            secrets: secrets.for_request(),
        };
        told.clear();
        self.store.client.stream(
            method::GET_METADATA_DELTA,
            request,
            &secrets,
            LIMIT,
            |some: DeltaResponse| {
                for block in some.block_metadata {
                    let extent = extent(&block).ok_or("a range that is none")?;
                    // "MUST be strictly increasing and messages MUST NOT overlap": one that does not keep to that may
                    // have left something out as well.
                    if told.last().is_some_and(|last| extent.offset < last.end()) {
                        return Err("ranges that are not in order");
                    }
                    if told.len() == MOST {
                        return Err("ranges without an end");
                    }
                    told.push(extent);
                }
                Ok(())
            },
        )
    }
}

fn extent(block: &BlockMetadata) -> Option<Extent> {
    let offset = u64::try_from(block.byte_offset).ok()?;
    let length = u64::try_from(block.size_bytes).ok().filter(|length| *length > 0)?;
    Some(Extent { offset, length })
}

impl Changes for Csi {
    fn changes(&self, from: Owner, to: Owner, volume: &DiskSerial) -> Result<Vec<Extent>, DriverError> {
        let doing = || format!("compare {} with {}", to.snapshot, from.snapshot);
        let find = |owner| Disk::find(&self.store, owner, volume);
        let (from, to) = (find(from)?, find(to)?);
        let secrets = self.store.secrets()?;
        for found in [&from, &to] {
            self.store.plugin_of(&found.entry, &secrets)?;
        }
        let (was, is) = (from.member(), to.member());
        if was.volume != is.volume {
            let what =
                format!("{}: one is of the volume {}, the other of {}", doing(), was.volume, is.volume);
            return Err(DriverError::new(Kind::Unsupported, what));
        }
        if from.made.id == to.made.id {
            return Ok(Vec::new());
        }
        // The plugin wants the older one as the base; what differs is the same either way.
        let (mut base, mut target) = (&from.made, &to.made);
        if base.created_s > target.created_s {
            std::mem::swap(&mut base, &mut target);
        }
        let mut told = Vec::new();
        let mut outcome = self.delta(base, target, &mut told);
        // Of two that were taken within one second nobody here knows which is the older.
        let is_refused = outcome.as_ref().is_err_and(|refusal| refusal.code == Code::InvalidArgument);
        if is_refused && base.created_s == target.created_s {
            outcome = self.delta(target, base, &mut told);
        }
        outcome.map_err(|refusal| match refusal.code {
            // "Changed block tracking is not enabled".
            Code::FailedPrecondition => DriverError {
                source: Some(Box::new(refusal)),
                ..DriverError::new(
                    Kind::Unsupported,
                    format!("{}: the storage does not track what changes on this volume", doing()),
                )
            },
            _ => refusal.into_error(doing()),
        })?;
        if let Some(grown) = is.size_bytes.checked_sub(was.size_bytes).filter(|more| *more > 0) {
            told.push(Extent { offset: was.size_bytes, length: grown });
        }
        Ok(extents::in_order(told, is.size_bytes))
    }
}
