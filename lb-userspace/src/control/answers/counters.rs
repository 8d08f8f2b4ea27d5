//! Requests for counters, and what `/metrics` shows.

use lb_common::reason::Reason;

use super::Answers;
use crate::{
    config::Service,
    control::{Controller, RequestError, clock::unix_now},
    datapath::ProgramRuns,
    protocol::{Count, CounterReport, GetCounters, ReasonCount, ServiceCounters, Status},
};

/// What `/metrics` shows.
#[derive(Clone, Debug)]
pub struct MetricsReport {
    /// The state, as in `tollgate status`.
    pub status: Status,
    /// The counters, as in `tollgate counters`.
    pub counters: CounterReport,
    /// Runs of the program, if the kernel counts them.
    pub program_runs: Option<ProgramRuns>,
    /// Unix time in seconds.
    pub now: u64,
}

impl Answers<GetCounters> for Controller {
    async fn answer(&mut self, request: GetCounters) -> Result<CounterReport, RequestError> {
        self.counters(request.service.as_deref())
    }
}

impl Controller {
    pub(in crate::control) fn metrics(&self) -> Result<MetricsReport, RequestError> {
        Ok(MetricsReport {
            status: self.status()?,
            counters: self.counters(None)?,
            program_runs: self.datapath.program_runs()?,
            now: unix_now(),
        })
    }

    fn counters(&self, service: Option<&str>) -> Result<CounterReport, RequestError> {
        let selected = self.selected(service)?;
        let totals = self.datapath.counters.services()?;
        let count = |index, reason| {
            let counter = totals.of(index, reason);
            Count { packets: counter.packets, bytes: counter.bytes }
        };
        let of_service = |service: &Service| {
            let index = self.indices.of_service(service.id);
            let of_none = [Reason::NotOurs, Reason::TablesChanged];
            let reasons = Reason::ALL.iter().filter(|reason| !of_none.contains(reason));
            let reasons = reasons.map(|reason| ReasonCount {
                reason: reason.name().to_owned(),
                count: index.map_or_else(Count::default, |index| count(index, *reason)),
            });
            ServiceCounters {
                service: service.name.clone(),
                service_id: service.id,
                reasons: reasons.collect(),
            }
        };
        Ok(CounterReport {
            not_ours: count(0, Reason::NotOurs),
            too_many_vlan_tags: count(0, Reason::Unsupported),
            tables_changed: count(0, Reason::TablesChanged),
            services: selected.into_iter().map(of_service).collect(),
        })
    }
}
