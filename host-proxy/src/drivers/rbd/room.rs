//! What is free in a pool: what the cluster has for it, and what its quota leaves.

use serde_json::{Value, json};

use super::ffi::cluster::Pool;
use crate::drivers::{DriverError, Kind};

/// Bytes that may still be written, replicas and full ratios taken into account.
pub(super) fn free_bytes(pool: &Pool, name: &str) -> Result<u64, DriverError> {
    let all = pool.ask(&json!({ "prefix": "df", "format": "json" }))?;
    let quota = pool.ask(&json!({ "prefix": "osd pool get-quota", "pool": name, "format": "json" }))?;
    left(&all, &quota, name)
        .ok_or_else(|| DriverError::new(Kind::Failed, format!("find the pool {name} in what ceph df says")))
}

/// A write to a full pool would fail in the middle.
pub(super) fn refuse_if_full(pool: &Pool, name: &str) -> Result<(), DriverError> {
    match free_bytes(pool, name)? {
        0 => Err(DriverError::new(
            Kind::NoSpace,
            format!("write to the pool {name}: it is full; ceph df, ceph osd pool get-quota {name}"),
        )),
        _ => Ok(()),
    }
}

fn left(all: &Value, quota: &Value, name: &str) -> Option<u64> {
    let pools = all["pools"].as_array()?;
    let stats = &pools.iter().find(|pool| pool["name"] == name)?["stats"];
    let available = stats["max_avail"].as_u64()?;
    match quota["quota_max_bytes"].as_u64()? {
        0 => Some(available),
        most => {
            // Each is a few seconds old, on its own clock.
            let used = stats["stored"].as_u64().max(quota["current_num_bytes"].as_u64())?;
            Some(available.min(most.saturating_sub(used)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_of_what_the_cluster_has_and_what_the_quota_leaves_is_free() {
        let all = json!({ "pools": [
            { "name": "other", "stats": { "stored": 9, "max_avail": 9 } },
            { "name": "vms", "stats": { "stored": 100, "max_avail": 1000 } },
        ]});
        let quota = |most: u64, used: u64| json!({ "quota_max_bytes": most, "current_num_bytes": used });
        assert_eq!(left(&all, &quota(0, 0), "vms"), Some(1000));
        assert_eq!(left(&all, &quota(300, 0), "vms"), Some(200));
        assert_eq!(left(&all, &quota(300, 250), "vms"), Some(50));
        assert_eq!(left(&all, &quota(50, 0), "vms"), Some(0));
        assert_eq!(left(&all, &quota(9000, 0), "vms"), Some(1000));
        assert_eq!(left(&all, &quota(0, 0), "absent"), None);
        assert_eq!(left(&json!({}), &json!({}), "vms"), None);
    }
}
