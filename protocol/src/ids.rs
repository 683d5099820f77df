//! Identifiers. Each is 16 bytes on the wire and never mistaken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Takes the identifier as it is.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The identifier as a UUID.
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }
    };
}

id!(
    /// A snapshot: what the host hands back to the guest. Made from the virtual machine and the
    /// request ([`SnapshotId::derive`]).
    SnapshotId
);
id!(
    /// One wish of a user. Repeating it, after a lost connection or a crash of either side, gives
    /// the same snapshot and never a second one.
    RequestId
);
id!(
    /// What the host handed out in `Prepared`; good for one cut.
    Ticket
);
id!(
    /// The virtual machine, for good: CIDs are reused, this is not. The guest reads it from SMBIOS
    /// (`/sys/class/dmi/id/product_uuid`), the host has it in its configuration.
    VmUuid
);
id!(
    /// One boot of a guest (`/proc/sys/kernel/random/boot_id`).
    BootId
);

impl SnapshotId {
    /// The identifier of the snapshot that answers `request` of `vm`: a name-based UUID (RFC 9562
    /// §5.5, version 5) in the virtual machine's name space. The same request therefore has the same
    /// snapshot even where the host lost its catalog, and no virtual machine can choose an
    /// identifier of another's.
    pub fn derive(vm: VmUuid, request: RequestId) -> Self {
        Self(Uuid::new_v5(&vm.0, request.0.as_bytes()))
    }
}

impl RequestId {
    /// A new request.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl Ticket {
    /// A ticket that no guest can guess.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_request_of_two_machines_is_two_snapshots() {
        let request: RequestId = "6f1d0c9e-4c5f-4c1e-9d43-0c3b1f9a7e21".parse().unwrap();
        let a = VmUuid::from_uuid(Uuid::from_u128(1));
        let b = VmUuid::from_uuid(Uuid::from_u128(2));
        assert_eq!(SnapshotId::derive(a, request), SnapshotId::derive(a, request));
        assert_ne!(SnapshotId::derive(a, request), SnapshotId::derive(b, request));
    }
}
