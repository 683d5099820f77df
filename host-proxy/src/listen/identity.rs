//! From what the host's kernel says of a connection to the virtual machine at its other end. What
//! the machine says of itself plays no part.

use protocol::{ErrorCode, WireError};

use crate::config::{Config, PeerId, Vm};

/// The first source port that anybody may use: below it, the guest's kernel vouches that a process
/// with CAP_NET_BIND_SERVICE asked (Linux `net/vmw_vsock/af_vsock.c`, `LAST_RESERVED_PORT` = 1023).
const FIRST_UNPRIVILEGED: u32 = 1024;

/// CIDs of the hypervisor, the local loopback and the host: never a guest (VIRTIO 1.2 §5.10.4).
const LAST_RESERVED_CID: u32 = 2;

/// `VMADDR_CID_LOCAL`: the same machine.
const LOCAL_CID: u32 = 1;

/// The virtual machine that connected from this CID and port.
pub(super) fn of_vsock(config: &Config, cid: u32, port: u32) -> Result<&Vm, WireError> {
    let refused = |why: String| WireError::new(ErrorCode::Refused, why);
    let local_allowed = cid == LOCAL_CID && config.service.allow_local_cid;
    if cid <= LAST_RESERVED_CID && !local_allowed {
        return Err(refused(format!("CID {cid} is not a virtual machine's")));
    }
    if port >= FIRST_UNPRIVILEGED && config.service.require_privileged_port {
        return Err(refused(format!("the source port {port} is not below {FIRST_UNPRIVILEGED}"))
            .hint("only root of the guest may ask: run hostsnap as root"));
    }
    config.vms.iter().find(|vm| vm.peer == PeerId::Cid(cid)).ok_or_else(|| {
        refused(format!("the host has no virtual machine of CID {cid} in its configuration"))
            .hint("the host's administrator adds it: [[vm]] with this cid")
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(allow_local: bool) -> Config {
        let text = format!(
            r#"
            [service]
            allow_local_cid = {allow_local}
            state_dir = "/var/lib/hostsnap"
            control_socket = "/run/hostsnap/control.sock"
            [[store]]
            name = "s"
            driver = "reflink"
            path = "/srv"
            [[vm]]
            name = "a"
            uuid = "00000000-0000-0000-0000-00000000000a"
            cid = 42
            [[vm.disk]]
            serial = "data"
            store = "s"
            path = "/srv/a.img"
            format = "raw"
            {}"#,
            if allow_local {
                r#"
            [[vm]]
            name = "local"
            uuid = "00000000-0000-0000-0000-00000000000b"
            cid = 1
            [[vm.disk]]
            serial = "data"
            store = "s"
            path = "/srv/b.img"
            format = "raw"
            "#
            } else {
                ""
            }
        );
        Config::parse(&text, Path::new("test.toml")).unwrap()
    }

    #[test]
    fn only_a_configured_machines_root_comes_in() {
        let strict = config(false);
        let lax = config(true);
        let table = [
            (&strict, 42, 1023, Some("a")),
            (&strict, 42, 1024, None),
            (&strict, 43, 1023, None),
            (&strict, 0, 1, None),
            (&strict, 1, 1, None),
            (&strict, 2, 1, None),
            (&lax, 1, 1, Some("local")),
            (&lax, 2, 1, None),
            (&lax, 0, 1, None),
        ];
        for (config, cid, port, expected) in table {
            let found = of_vsock(config, cid, port).ok().map(|vm| vm.name.as_str());
            assert_eq!(found, expected, "CID {cid}, port {port}");
        }
    }
}
