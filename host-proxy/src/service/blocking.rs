//! Storage calls block, some of them in the kernel where nothing can interrupt them. Each runs on a
//! thread of its own, and nobody waits for it without a limit.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::in_flight::Claim;
use crate::drivers::{DriverError, Kind};

/// A call that blocks. It gives what is left to do: to tell whoever waits.
pub type Job = Box<dyn FnOnce() -> Tell + Send>;
/// Tells the outcome of a [`Job`].
pub type Tell = Box<dyn FnOnce() + Send>;

/// Who runs what blocks.
#[derive(Clone)]
pub struct Workers(Arc<dyn Fn(Job) + Send + Sync>);

impl Workers {
    /// Tokio's threads for what blocks.
    pub(super) fn threads() -> Self {
        Self::run_by(|job| {
            tokio::task::spawn_blocking(move || job()());
        })
    }

    /// Somebody else: for a simulation, which decides what runs when.
    #[doc(hidden)]
    pub fn run_by(run: impl Fn(Job) + Send + Sync + 'static) -> Self {
        Self(Arc::new(run))
    }

    /// As [`Workers::bounded`], for what changes a snapshot. It stays claimed until the call is over,
    /// however late: a snapshot that somebody else takes for undone must not come to be after all.
    pub(super) async fn claimed<T: Send + 'static>(
        &self,
        claim: &Arc<Claim>,
        doing: &str,
        limit: Duration,
        call: impl FnOnce() -> Result<T, DriverError> + Send + 'static,
        too_late: impl FnOnce(T) + Send + 'static,
    ) -> Result<T, DriverError> {
        let claim = Arc::clone(claim);
        // The claim comes back with the outcome, so that it is free when whoever waits lets it go.
        let waiting = self.begin(
            move || (call(), claim),
            |(result, _claim)| {
                if let Ok(made) = result {
                    too_late(made);
                }
            },
        );
        Self::wait(doing, limit, waiting).await.and_then(|(result, _claim)| result)
    }

    /// Runs `call` and waits for it at most `limit`. What comes later is given to `too_late`, so that
    /// nothing that was made is forgotten.
    pub(super) async fn bounded<T: Send + 'static>(
        &self,
        doing: &str,
        limit: Duration,
        call: impl FnOnce() -> Result<T, DriverError> + Send + 'static,
        too_late: impl FnOnce(T) + Send + 'static,
    ) -> Result<T, DriverError> {
        let waiting = self.begin(call, |result| {
            if let Ok(made) = result {
                too_late(made);
            }
        });
        Self::wait(doing, limit, waiting).await.and_then(|result| result)
    }

    async fn wait<T>(doing: &str, limit: Duration, waiting: oneshot::Receiver<T>) -> Result<T, DriverError> {
        match timeout(limit, waiting).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) => {
                Err(DriverError::new(Kind::Failed, format!("{doing}: the storage driver panicked")))
            }
            Err(_) => Err(DriverError::new(
                Kind::DeadlinePassed,
                format!("{doing}: no answer within {} s", limit.as_secs()),
            )),
        }
    }

    /// Runs a storage driver's `call` and waits for it, however long it takes.
    pub(super) async fn to_its_end<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let panicked = || Err(DriverError::new(Kind::Failed, "the storage driver panicked"));
        self.unbounded(call).await.unwrap_or_else(panicked)
    }

    /// Runs `call` and waits for it, however long it takes. `None` if it panicked.
    pub(super) async fn unbounded<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        self.begin(call, drop).await.ok()
    }

    fn begin<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
        too_late: impl FnOnce(T) + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (answer, waiting) = oneshot::channel();
        (self.0)(Box::new(move || {
            let outcome = call();
            Box::new(move || {
                if let Err(late) = answer.send(outcome) {
                    too_late(late);
                }
            })
        }));
        waiting
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
        let result = Workers::threads()
            .bounded(
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
