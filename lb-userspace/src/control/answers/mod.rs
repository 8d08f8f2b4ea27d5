//! The answers to requests: what `status` and the other commands show, and the changes that they ask for. The
//! reconcile loop answers one request at a time, between two rounds.

mod backends;
mod check;
mod clock;
mod counters;
mod keys;
mod revocations;
mod sessions;
mod status;
mod tokens;

pub use check::{Checked, check_host};
pub use counters::MetricsReport;

use super::{Controller, RequestError};
use crate::{config::Service, protocol::Request};

/// Answers a request. The controller implements it for each type of request.
pub trait Answers<R: Request> {
    /// The answer.
    fn answer(&mut self, request: R) -> impl Future<Output = Result<R::Answer, RequestError>> + Send;
}

impl Controller {
    /// The services of a request: one by name or id, or all.
    pub(super) fn selected(&self, name: Option<&str>) -> Result<Vec<&Service>, RequestError> {
        match name {
            None => Ok(self.config.services.iter().collect()),
            Some(name) => Ok(vec![self.service(name)?]),
        }
    }

    pub(super) fn service(&self, name: &str) -> Result<&Service, RequestError> {
        Service::find(&self.config.services, name).ok_or_else(|| RequestError::NoSuchService {
            name: name.to_owned(),
            services: self.config.services.iter().map(|service| service.name.clone()).collect(),
        })
    }

    /// Name of a service, or its id if the configuration has no such service.
    pub(super) fn service_name(&self, id: u32) -> String {
        let service = self.config.services.iter().find(|service| service.id == id);
        service.map_or_else(|| id.to_string(), |service| service.name.clone())
    }
}
