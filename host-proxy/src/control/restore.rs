//! The administrator's way back to a snapshot: of a machine that is stopped, its root disk included.

use std::sync::Arc;

use protocol::fingerprint::Fingerprint;
use protocol::message::DiskRequest;
use protocol::restore::{Layout, Restore, Safety};
use protocol::text::SnapshotRef;
use protocol::{DiskSerial, RequestId, WireError};
use tokio::net::UnixStream;

use super::ControlReply;
use crate::config::Vm;
use crate::policy::{self, Asker};
use crate::service::{RestoreStep, Service};
use crate::transport;

/// What is asked for.
pub(super) struct Wish {
    pub(super) snapshot: SnapshotRef,
    pub(super) disks: Vec<DiskSerial>,
    pub(super) safety: Safety,
    pub(super) layout: Layout,
    pub(super) dry_run: bool,
}

/// Answers with progress until it is done. It goes on when whoever asked hangs up.
pub(super) async fn answer(
    service: &Arc<Service>,
    stream: &mut UnixStream,
    vm: Vm,
    wish: Wish,
) -> Result<ControlReply, WireError> {
    service.freshen().await;
    let Wish { snapshot, disks, safety, layout, dry_run } = wish;
    let record = service.get(&policy::read_as_admin(Some(vm.uuid)), snapshot).await?;
    let all = || record.disks.iter().map(|disk| disk.serial.clone()).collect();
    let disks = if disks.is_empty() { all() } else { disks };
    // Nobody in the guest reads the disk: there is nothing to compare the host's reading with.
    let unread = |serial| DiskRequest { serial, size_bytes: 0, fingerprint: Fingerprint::empty() };
    let disks: Vec<_> = disks.into_iter().map(unread).collect();
    let wanted = Restore {
        request: RequestId::random(),
        id: record.id,
        disks: disks.try_into().expect("no more than a message holds"),
        safety,
        layout,
        dry_run,
    };
    if dry_run {
        let plan = service.plan_restore(Asker::Admin, &vm, &wanted).await?;
        return Ok(ControlReply::RestorePlanned(plan));
    }
    let mut restoring = service.restore(Asker::Admin, vm, wanted, "control".to_owned());
    loop {
        match restoring.next().await {
            RestoreStep::Running(progress) => {
                // Whoever asked may have hung up; the restore goes on.
                let _ = transport::send(stream, &ControlReply::Progress(progress)).await;
            }
            RestoreStep::Ended(outcome) => return outcome.map(ControlReply::Restored),
        }
    }
}
