//! How requests reach the reconcile loop.

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tracing::{Instrument as _, Span};

use super::{Controller, MetricsReport, Remaining, RequestError, answers::Answers};
use crate::protocol::Request;

/// Requests that wait for the loop.
const WAITING_MAX: usize = 16;

type Job = Box<dyn for<'c> FnOnce(&'c mut Controller) -> BoxFuture<'c, ()> + Send>;

/// A request that waits for the loop.
pub struct Asked {
    job: Job,
    /// The span of the request, which identifies the caller in the log.
    span: Span,
}

/// Sends requests to the loop.
#[derive(Clone, Debug)]
pub struct Handle(mpsc::Sender<Asked>);

impl Handle {
    /// A handle, and the receiver that [`Controller::run`] reads from.
    pub fn new() -> (Self, mpsc::Receiver<Asked>) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        (Self(sender), receiver)
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// The error of the request, or [`RequestError::Ending`].
    pub async fn ask<R: Request>(&self, request: R) -> Result<R::Answer, RequestError>
    where
        Controller: Answers<R>,
    {
        self.run(|controller| Box::pin(controller.answer(request))).await
    }

    /// What `/metrics` shows.
    ///
    /// # Errors
    /// If the kernel's counters cannot be read, or [`RequestError::Ending`].
    pub async fn metrics(&self) -> Result<MetricsReport, RequestError> {
        self.run(|controller| Box::pin(async move { controller.metrics() })).await
    }

    /// The interfaces that stay filtered once the daemon has ended.
    ///
    /// # Errors
    /// [`RequestError::Ending`].
    pub async fn remaining(&self) -> Result<Remaining, RequestError> {
        self.run(|controller| Box::pin(async move { Ok(controller.remaining()) })).await
    }

    async fn run<T: Send + 'static>(
        &self,
        answer: impl for<'c> FnOnce(&'c mut Controller) -> BoxFuture<'c, Result<T, RequestError>> + Send + 'static,
    ) -> Result<T, RequestError> {
        let (reply, answered) = oneshot::channel();
        let job: Job = Box::new(|controller| {
            let answer = answer(controller);
            // A caller that has disconnected needs no answer.
            Box::pin(async { drop(reply.send(answer.await)) })
        });
        let asked = Asked { job, span: Span::current() };
        self.0.send(asked).await.map_err(|_| RequestError::Ending)?;
        answered.await.map_err(|_| RequestError::Ending)?
    }
}

impl Controller {
    /// Carries out a request that has waited.
    pub(super) async fn serve(&mut self, Asked { job, span }: Asked) {
        job(self).instrument(span).await;
    }
}
