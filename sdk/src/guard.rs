//! The guard around every backend that the registry hands out.
//!
//! A guarded call has a deadline, counts against a concurrency limit, turns a panic into an error,
//! feeds a circuit breaker and is measured. Business faults (not found, busy, …) never open the
//! breaker; see [`ErrorKind::is_infrastructure`].

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::Semaphore;

use crate::context::Ctx;
use crate::{Error, ErrorKind, Result};

/// This many infrastructure faults in a row open the breaker.
const OPEN_AFTER: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Calls that may be in flight at once to one backend.
pub const DEFAULT_LIMIT: usize = 512;

/// Watches over the calls to one backend. Shared by all handles to it.
#[derive(Debug)]
pub struct Guard {
    label: String,
    budget: Option<Duration>,
    inflight: Semaphore,
    limit: usize,
    breaker: Option<Mutex<Breaker>>,
    calls: AtomicU64,
    faults: AtomicU64,
    panics: AtomicU32,
    busy_micros: AtomicU64,
    last_fault: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Breaker {
    in_a_row: u32,
    open_until: Option<Instant>,
    pause: Duration,
}

/// What a guard has seen, for introspection and metrics.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuardStats {
    /// Kind and instance.
    pub backend: String,
    /// Calls begun.
    pub calls: u64,
    /// Calls that ended in an infrastructure fault.
    pub faults: u64,
    /// Panics caught.
    pub panics: u32,
    /// Calls in flight now.
    pub inflight: usize,
    /// Microseconds spent in calls, summed over all of them.
    pub busy_micros: u64,
    /// Whether calls are refused at the moment.
    pub breaker_open: bool,
    /// The latest infrastructure fault.
    pub last_fault: Option<String>,
}

impl Guard {
    /// A guard for the backend called `label`. `budget` bounds each call whose context has no
    /// nearer deadline; none leaves it unbounded (waits and streams). `breaker` is for backends
    /// whose fault lies outside this process.
    pub fn new(label: impl Into<String>, budget: Option<Duration>, breaker: bool) -> Arc<Self> {
        Arc::new(Self {
            label: label.into(),
            budget,
            inflight: Semaphore::new(DEFAULT_LIMIT),
            limit: DEFAULT_LIMIT,
            breaker: breaker.then(Mutex::default),
            calls: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            panics: AtomicU32::new(0),
            busy_micros: AtomicU64::new(0),
            last_fault: Mutex::default(),
        })
    }

    /// Runs one call of `method` under the guard.
    ///
    /// # Errors
    ///
    /// What the call returns; `Unavailable` while the breaker is open; `Deadline` when time is up;
    /// `Internal` for a panic.
    pub async fn call<T>(
        &self,
        method: &'static str,
        cx: &Ctx,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        self.admit()?;
        let deadline = self.deadline(cx);
        let started = Instant::now();
        self.calls.fetch_add(1, Relaxed);
        let guarded = async {
            let _permit = self.inflight.acquire().await;
            AssertUnwindSafe(call).catch_unwind().await
        };
        let outcome = match deadline {
            Some(at) => tokio::time::timeout_at(at.into(), guarded).await,
            None => Ok(guarded.await),
        };
        let elapsed = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.busy_micros.fetch_add(elapsed, Relaxed);
        let result = match outcome {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => {
                self.panics.fetch_add(1, Relaxed);
                let what = panic_text(panic.as_ref());
                Err(Error::new(
                    ErrorKind::Internal,
                    format!("{}: {method} panicked: {what}", self.label),
                ))
            }
            Err(_) => Err(Error::new(
                ErrorKind::Deadline,
                format!("{}: {method} did not answer within {:?}", self.label, started.elapsed()),
            )),
        };
        self.settle(result.as_ref().err());
        result
    }

    fn deadline(&self, cx: &Ctx) -> Option<Instant> {
        let budget = self.budget.map(|b| Instant::now() + b);
        match (budget, cx.deadline) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn admit(&self) -> Result<()> {
        let Some(breaker) = &self.breaker else {
            return Ok(());
        };
        let mut breaker = breaker.lock().unwrap_or_else(PoisonError::into_inner);
        match breaker.open_until {
            Some(until) if Instant::now() < until => {
                let wait = until.saturating_duration_since(Instant::now()).as_secs() + 1;
                let last = self.last_fault.lock().unwrap_or_else(PoisonError::into_inner);
                let why = last.as_deref().unwrap_or("unknown fault");
                Err(Error::unavailable(format!(
                    "{} is not answering, next try in {wait} s: {why}",
                    self.label
                )))
            }
            Some(_) => {
                // One probe goes through; others are refused until it has settled.
                breaker.open_until = Some(Instant::now() + breaker.pause);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn settle(&self, error: Option<&Error>) {
        let fault = error.filter(|e| e.kind().is_infrastructure());
        if let Some(error) = fault {
            self.faults.fetch_add(1, Relaxed);
            *self.last_fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.chain());
        }
        let Some(breaker) = &self.breaker else { return };
        let mut breaker = breaker.lock().unwrap_or_else(PoisonError::into_inner);
        if fault.is_none() {
            *breaker = Breaker::default();
            return;
        }
        breaker.in_a_row += 1;
        if breaker.in_a_row >= OPEN_AFTER {
            breaker.pause = (breaker.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            breaker.open_until = Some(Instant::now() + breaker.pause);
        }
    }

    /// What this guard has seen so far.
    pub fn stats(&self) -> GuardStats {
        let open = self.breaker.as_ref().is_some_and(|b| {
            let b = b.lock().unwrap_or_else(PoisonError::into_inner);
            b.open_until.is_some_and(|until| Instant::now() < until)
        });
        GuardStats {
            backend: self.label.clone(),
            calls: self.calls.load(Relaxed),
            faults: self.faults.load(Relaxed),
            panics: self.panics.load(Relaxed),
            inflight: self.limit - self.inflight.available_permits(),
            busy_micros: self.busy_micros.load(Relaxed),
            breaker_open: open,
            last_fault: self.last_fault.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// The text of a panic's payload.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn faults_open_the_breaker_and_business_errors_do_not() {
        let guard = Guard::new("volume/x", None, true);
        let cx = Ctx::background();
        for _ in 0..10 {
            let _ = guard.call("get", &cx, async { Err::<(), _>(Error::not_found("no x")) }).await;
        }
        assert!(!guard.stats().breaker_open);
        for _ in 0..OPEN_AFTER {
            let _ =
                guard.call("get", &cx, async { Err::<(), _>(Error::unavailable("down")) }).await;
        }
        let error = guard.call("get", &cx, async { Ok(()) }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_a_hang_meets_its_deadline() {
        let guard = Guard::new("x", Some(Duration::from_millis(20)), false);
        let cx = Ctx::background();
        let error =
            guard.call("a", &cx, async { panic!("ouch") }).await.map(|(): ()| ()).unwrap_err();
        assert!(error.to_string().contains("ouch"));
        let hang = std::future::pending::<Result<()>>();
        assert_eq!(guard.call("b", &cx, hang).await.unwrap_err().kind(), ErrorKind::Deadline);
    }
}
