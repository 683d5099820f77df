//! What is removed and forgotten for its age.

use super::stage::{DAY, Stage};

/// Failed rows were never removed: a host whose storage loses snapshots had a catalog that only grew.
#[tokio::test]
async fn a_snapshot_that_the_storage_lost_is_shown_for_thirty_days_and_then_forgotten() {
    let stage = Stage::set();
    let [lost, kept] = [stage.take(None).await.unwrap(), stage.take(None).await.unwrap()];
    stage.jump(400 * DAY as i64);
    std::fs::remove_dir_all(stage.on_storage(&lost)).unwrap();
    assert_eq!(stage.reconcile().await.lost, [lost.id]);
    // It is old, and was lost just now: its user has not seen it yet.
    stage.service.tend().await;
    stage.jump(29 * DAY as i64);
    stage.service.tend().await;
    assert_eq!(stage.list(9, None).await, [kept.id, lost.id]);
    stage.jump(DAY as i64);
    stage.service.tend().await;
    assert_eq!(stage.list(9, None).await, [kept.id]);
    assert!(stage.reconcile().await.is_clean());
}

#[tokio::test]
async fn a_failed_snapshot_of_which_some_part_is_left_is_never_forgotten() {
    let stage = Stage::set();
    let lost = stage.take(None).await.unwrap();
    let place = stage.on_storage(&lost);
    let elsewhere = place.with_extension("elsewhere");
    std::fs::rename(&place, &elsewhere).unwrap();
    assert_eq!(stage.reconcile().await.lost, [lost.id]);
    std::fs::rename(&elsewhere, &place).unwrap();
    for _ in 0..3 {
        stage.service.tend().await;
        stage.jump(31 * DAY as i64);
        stage.service.tend().await;
        assert_eq!(stage.list(9, None).await, [lost.id]);
    }
    // When that is gone too, it is forgotten the next day.
    std::fs::remove_dir_all(&place).unwrap();
    stage.jump(2 * DAY as i64);
    stage.service.tend().await;
    assert!(stage.list(9, None).await.is_empty());
}
