//! Storage calls block, some of them in the kernel where nothing can interrupt them. Each runs on a
//! thread of its own, and nobody waits for it without a limit.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::drivers::{DriverError, Kind};

/// Runs `call` and waits for it at most `limit`. What comes later is given to `too_late`, so that
/// nothing that was made is forgotten.
pub(super) async fn bounded<T: Send + 'static>(
    doing: &str,
    limit: Duration,
    call: impl FnOnce() -> Result<T, DriverError> + Send + 'static,
    too_late: impl FnOnce(T) + Send + 'static,
) -> Result<T, DriverError> {
    let (answer, waiting) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        if let Err(Ok(made)) = answer.send(call()) {
            too_late(made);
        }
    });
    match timeout(limit, waiting).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(DriverError::new(Kind::Failed, format!("{doing}: the storage driver panicked"))),
        Err(_) => Err(DriverError::new(
            Kind::DeadlinePassed,
            format!("{doing}: no answer within {} s", limit.as_secs()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn what_comes_too_late_is_handed_over_and_not_forgotten() {
        let (release, held) = mpsc::channel::<()>();
        let (late, arrived) = mpsc::channel();
        let result = bounded(
            "wait",
            Duration::from_millis(1),
            move || held.recv().map(|()| 7).map_err(|_| DriverError::new(Kind::Failed, "released")),
            move |made| late.send(made).unwrap(),
        )
        .await;
        assert_eq!(result.unwrap_err().kind, Kind::DeadlinePassed);
        release.send(()).unwrap();
        assert_eq!(arrived.recv_timeout(Duration::from_secs(10)).unwrap(), 7);
    }
}
