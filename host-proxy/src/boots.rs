//! Which boot of each guest speaks. A guest that is reset says nothing to its open conversations, and
//! over vsock the host may not learn that they are dead. What they had begun (a prepared snapshot, a
//! monitor of QEMU) would be held until its lease is over, in the way of the guest that is up again.

use std::collections::HashMap;
use std::sync::Mutex;

use protocol::{BootId, VmUuid};
use tokio::sync::watch;

/// The boot that each guest was last heard of in. A guest that lies ends its own conversations.
#[derive(Default)]
pub struct Boots(Mutex<HashMap<VmUuid, watch::Sender<BootId>>>);

/// The boot that a conversation belongs to.
pub struct Boot {
    own: BootId,
    current: watch::Receiver<BootId>,
}

impl Boots {
    /// A conversation of this boot begins: those of another are over.
    pub fn enter(&self, vm: VmUuid, own: BootId) -> Boot {
        let mut boots = self.0.lock().expect("no holder of this lock panics");
        let sender = boots.entry(vm).or_insert_with(|| watch::Sender::new(own));
        sender.send_if_modified(|current| std::mem::replace(current, own) != own);
        Boot { own, current: sender.subscribe() }
    }
}

impl Boot {
    /// Returns when the guest was heard of in another boot.
    pub async fn over(&mut self) {
        let own = self.own;
        if self.current.wait_for(|current| *current != own).await.is_err() {
            // Nobody is left to say so.
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn another_boot_of_the_same_guest_ends_a_boot_and_nothing_else_does() {
        let boots = Boots::default();
        let [vm, neighbour] = [1, 2].map(|n| VmUuid::from_uuid(uuid::Uuid::from_u128(n)));
        let [first, second] = [1, 2].map(|n| BootId::from_uuid(uuid::Uuid::from_u128(n)));
        let mut boot = boots.enter(vm, first);
        let is_over =
            async |boot: &mut Boot| tokio::time::timeout(Duration::from_secs(1), boot.over()).await.is_ok();
        boots.enter(vm, first);
        boots.enter(neighbour, second);
        assert!(!is_over(&mut boot).await);
        let mut again = boots.enter(vm, second);
        assert!(is_over(&mut boot).await);
        assert!(!is_over(&mut again).await);
    }
}
