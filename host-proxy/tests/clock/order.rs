//! What is newest stays newest, a list goes on where it was, and what was made in an hour is counted, under a clock that
//! is set back.

use protocol::ErrorCode;

use super::stage::{DAY, HOUR, SECOND, Stage};

/// `latest` was the one with the latest date: after the clock had been set back, an older one.
#[tokio::test]
async fn what_was_taken_last_is_the_latest_whatever_its_date() {
    let stage = Stage::set();
    let mut taken = Vec::new();
    for jump in [0, -(HOUR as i64), SECOND as i64, -(40 * DAY as i64), HOUR as i64] {
        stage.jump(jump);
        let record = stage.take(None).await.unwrap();
        assert_eq!(record.created_at.0, stage.now(), "the date is what the clock showed");
        taken.insert(0, record.id);
        assert_eq!(stage.show("latest").await.unwrap().id, record.id);
    }
    assert_eq!(stage.list(9, None).await, taken);
}

#[tokio::test]
async fn a_list_goes_on_where_it_was_when_the_clock_is_set_back_between_two_pages() {
    let stage = Stage::set();
    let mut taken = Vec::new();
    for _ in 0..5 {
        stage.jump(SECOND as i64);
        taken.insert(0, stage.take(None).await.unwrap());
    }
    let ids: Vec<_> = taken.iter().map(|record| record.id).collect();
    let first = stage.list(2, None).await;
    assert_eq!(first, ids[..2]);
    stage.jump(-(HOUR as i64));
    // The newest is new, and the one that the list stands on is removed.
    stage.take(None).await.unwrap();
    stage.delete(&taken[1]).await;
    stage.take(None).await.unwrap();
    assert_eq!(stage.list(9, Some(first[1])).await, ids[2..]);
}

/// The hour's count forgot all that a clock an hour ahead had dated: a guest could take as many again.
#[tokio::test]
async fn a_clock_that_is_set_back_an_hour_gives_nobody_a_second_quota() {
    let stage = Stage::with_quota("{ snapshots = 100, per_hour = 3 }");
    for _ in 0..2 {
        let record = stage.take(None).await.unwrap();
        stage.delete(&record).await;
    }
    stage.jump(-(HOUR as i64));
    // A removal tidies up what is remembered of the others.
    let third = stage.take(None).await.unwrap();
    stage.delete(&third).await;
    assert_eq!(stage.take(None).await.unwrap_err().code, ErrorCode::QuotaExceeded);
    stage.jump(2 * HOUR as i64 + SECOND as i64);
    stage.take(None).await.unwrap();
}

#[tokio::test]
async fn a_clock_that_was_years_ahead_holds_nobody_up() {
    let stage = Stage::with_quota("{ snapshots = 100, per_hour = 1 }");
    stage.jump(3 * 365 * DAY as i64);
    stage.take(None).await.unwrap();
    stage.jump(-3 * 365 * DAY as i64);
    stage.take(None).await.unwrap();
}

/// The order is the catalog's own; the dates that the storage has are all that is left of it without one.
#[tokio::test]
async fn a_catalog_made_anew_from_the_storage_orders_by_date() {
    let stage = Stage::set();
    let first = stage.take(None).await.unwrap();
    stage.jump(SECOND as i64);
    let second = stage.take(None).await.unwrap();
    let stage = stage.restart_without_catalog();
    assert_eq!(stage.reconcile().await.adopted.len(), 2);
    assert_eq!(stage.list(9, None).await, [second.id, first.id]);
    assert_eq!(stage.show("latest").await.unwrap(), second);
}
