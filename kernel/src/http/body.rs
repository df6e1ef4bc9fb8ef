//! Bodies with what belongs to their request.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use gantry_sdk::Error;
use gantry_sdk::route::ResponseBody;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::DropGuard;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// A response body that ends its request when it is complete or dropped: the request's token is
/// cancelled, and a shutdown no longer waits for it.
#[derive(Debug)]
pub(super) struct GuardedBody {
    body: ResponseBody,
    _gone: DropGuard,
    _unsettled: Option<TaskTrackerToken>,
}

impl GuardedBody {
    pub(super) const fn new(
        body: ResponseBody,
        gone: DropGuard,
        unsettled: Option<TaskTrackerToken>,
    ) -> Self {
        Self { body, _gone: gone, _unsettled: unsettled }
    }
}

impl Body for GuardedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request body that is given up when its client sends nothing for a while.
#[derive(Debug)]
pub(super) struct PatientBody {
    body: Incoming,
    idle: Duration,
    /// Made when there is something to wait for: most bodies are there at once.
    timer: Option<Pin<Box<Sleep>>>,
}

impl PatientBody {
    pub(super) const fn new(body: Incoming, idle: Duration) -> Self {
        Self { body, idle, timer: None }
    }
}

impl Body for PatientBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.timer = None;
            let broken = |error| Error::invalid("the request body broke off").caused_by(error);
            return Poll::Ready(frame.map(|frame| frame.map_err(broken)));
        }
        let idle = self.idle;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(idle)));
        ready!(timer.as_mut().poll(cx));
        let message = format!("the request body stopped: nothing came for {idle:?}");
        Poll::Ready(Some(Err(Error::invalid(message))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
