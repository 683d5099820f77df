//! Locks until a moment, by a clock that the test sets.

use protocol::ErrorCode;
use protocol::record::UnixMillis;

use super::stage::{DAY, HOUR, Stage};

#[tokio::test(start_paused = true)]
async fn what_is_locked_outlives_its_time_to_keep_and_goes_when_the_lock_ends() {
    let stage = Stage::set();
    let record = stage.take(Some(HOUR)).await.unwrap();
    stage.lock(&record, Some(3 * HOUR)).await.unwrap();
    stage.tend_for_minutes(150).await;
    assert_eq!(stage.list(9, None).await, [record.id]);
    stage.tend_for_minutes(40).await;
    assert!(stage.list(9, None).await.is_empty());
}

/// The service writes into the storage first: one that died in between had told nobody.
#[tokio::test]
async fn a_lock_that_only_the_storage_has_is_believed_and_one_that_it_has_no_more_is_over() {
    let stage = Stage::set();
    let record = stage.take(None).await.unwrap();
    let manifest = stage.on_storage(&record).join("manifest.json");
    let unlocked = std::fs::read(&manifest).unwrap();
    stage.lock(&record, Some(DAY)).await.unwrap();
    let locked = std::fs::read(&manifest).unwrap();
    let refused = async || {
        let shown = stage.show(&record.id.to_string()).await.unwrap();
        stage.lock_is_in_the_way(&shown)
    };
    assert!(refused().await);
    std::fs::write(&manifest, &unlocked).unwrap();
    assert!(refused().await, "nobody has looked yet");
    assert!(stage.reconcile().await.is_clean());
    assert!(!refused().await);
    std::fs::write(&manifest, &locked).unwrap();
    assert!(stage.reconcile().await.is_clean());
    assert!(refused().await);
}

#[tokio::test]
async fn a_lock_that_cannot_be_written_to_the_storage_is_none() {
    let stage = Stage::set();
    let record = stage.take(None).await.unwrap();
    // A folder where the new manifest would be.
    let in_the_way = stage.on_storage(&record).join("manifest.json.new");
    std::fs::create_dir(&in_the_way).unwrap();
    let error = stage.lock(&record, Some(DAY)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::StorageFailed, "{error}");
    let shown = stage.show(&record.id.to_string()).await.unwrap();
    assert_eq!(shown.locked_until, None);
    std::fs::remove_dir(&in_the_way).unwrap();
    stage.lock(&record, Some(DAY)).await.unwrap();
    let until = UnixMillis(stage.now() + DAY);
    assert_eq!(stage.show(&record.id.to_string()).await.unwrap().locked_until, Some(until));
    let stage = stage.restart_without_catalog();
    stage.reconcile().await;
    assert_eq!(stage.show("latest").await.unwrap().locked_until, Some(until));
}
