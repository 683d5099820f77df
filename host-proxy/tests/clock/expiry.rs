//! `--keep-for`, under a clock that jumps: nothing goes early, nothing stays for ever.

use std::time::Duration;

use protocol::ErrorCode;
use protocol::message::Prepare;

use super::stage::{DAY, HOUR, SECOND, Stage, asked, finish};

/// A host whose clock was set a year ahead by mistake removed within a minute all that had a time.
#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_ahead_removes_nothing_before_somebody_could_set_it_right() {
    let stage = Stage::set();
    let record = stage.take(Some(7 * DAY)).await.unwrap();
    stage.tend_for_minutes(2).await;
    stage.jump(365 * DAY as i64);
    stage.tend_for_minutes(50).await;
    assert_eq!(stage.list(9, None).await, [record.id]);
    // Set right again: that is a jump as well, and the time is far from over.
    stage.jump(-365 * DAY as i64);
    stage.tend_for_minutes(120).await;
    assert_eq!(stage.list(9, None).await, [record.id]);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumped_and_stays_there_for_an_hour_is_believed() {
    let stage = Stage::set();
    let record = stage.take(Some(7 * DAY)).await.unwrap();
    stage.tend_for_minutes(1).await;
    stage.jump(8 * DAY as i64);
    stage.tend_for_minutes(59).await;
    assert_eq!(stage.list(9, None).await, [record.id]);
    stage.tend_for_minutes(3).await;
    assert!(stage.list(9, None).await.is_empty());
    assert!(!stage.on_storage(&record).exists());
}

/// What was dated by a clock that was years ahead would have been kept for those years. Or it is the other way round,
/// and the clock that is years behind is the wrong one: nothing but time that goes by tells how old it is.
#[tokio::test(start_paused = true)]
async fn a_snapshot_with_a_date_in_the_future_is_kept_for_its_time_and_no_longer() {
    let stage = Stage::set();
    stage.jump(20 * 365 * DAY as i64);
    stage.take(Some(3 * HOUR)).await.unwrap();
    stage.jump(-20 * 365 * DAY as i64);
    stage.tend_for_minutes(100).await;
    let stage = stage.restart();
    stage.tend_for_minutes(80).await;
    assert_eq!(stage.list(9, None).await.len(), 1);
    stage.tend_for_minutes(2).await;
    assert!(stage.list(9, None).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_back_an_hour_keeps_a_snapshot_an_hour_longer_and_not_for_ever() {
    let stage = Stage::set();
    stage.take(Some(2 * HOUR)).await.unwrap();
    stage.tend_for_minutes(1).await;
    stage.jump(-(HOUR as i64));
    stage.tend_for_minutes(2 * 60).await;
    assert_eq!(stage.list(9, None).await.len(), 1);
    stage.tend_for_minutes(62).await;
    assert!(stage.list(9, None).await.is_empty());
}

/// The time was counted from the request, and hooks or others in the line used some of it up.
#[tokio::test]
async fn the_time_to_keep_counts_from_the_cut() {
    let stage = Stage::set();
    let operation = stage.ready(&asked(Some(60 * SECOND))).await.unwrap();
    stage.jump(50 * SECOND as i64);
    let record = finish(operation).await.unwrap();
    assert_eq!(record.created_at.0, stage.now());
    assert_eq!(record.expires_at.unwrap().0, stage.now() + 60 * SECOND);
    assert_eq!(stage.show(&record.id.to_string()).await.unwrap(), record);
}

/// Deadlines are not the wall clock's.
#[tokio::test]
async fn a_lease_is_as_long_as_it_was_said_whatever_the_clock_does() {
    let stage = Stage::set();
    for jump in [-(HOUR as i64), 400 * DAY as i64] {
        let operation = stage.ready(&asked(None)).await.unwrap();
        stage.jump(jump);
        assert!(operation.lease_left() > Duration::from_secs(5));
        finish(operation).await.unwrap();
    }
}

/// Nothing failed when this check was taken out: the guest's own deadline comes first, where the guest is honest.
#[tokio::test(start_paused = true)]
async fn a_lease_that_is_over_cuts_nothing_and_leaves_nothing() {
    let stage = Stage::set();
    let prepare = Prepare { lease_ms: 1000, ..asked(None) };
    let operation = stage.ready(&prepare).await.unwrap();
    tokio::time::advance(Duration::from_millis(1001)).await;
    let refused = operation.cut(Duration::from_secs(60)).await.err().expect("it is over");
    assert_eq!((refused.code, refused.code.exit_code()), (ErrorCode::LeaseExpired, 9), "{refused}");
    assert!(refused.hint.as_str().contains("--freeze-timeout"), "{refused}");
    assert!(stage.list(9, None).await.is_empty());
    assert!(stage.reconcile().await.is_clean(), "something was left");
    // Just in time is in time, and the same request may be asked for again.
    let operation = stage.ready(&prepare).await.unwrap();
    tokio::time::advance(Duration::from_millis(900)).await;
    finish(operation).await.unwrap();
}
