//! Whether this node filters and delivers, as of the last round of the reconcile loop.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// How old the last round may be: far more than a second, and than any request takes.
const SILENCE: Duration = Duration::from_secs(10);

/// The findings of a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Reasons why the node does not filter as configured.
    pub filtering: Vec<String>,
    /// Interfaces that are down.
    pub interfaces: Vec<String>,
    /// Findings of each service, by name.
    pub services: BTreeMap<String, FoundService>,
}

/// The findings of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FoundService {
    /// Why its tokens cannot be verified.
    pub key: Option<String>,
    /// Why its packets cannot be delivered.
    pub backends: Option<String>,
}

/// The findings of a round, and its time.
#[derive(Clone, Debug)]
pub struct Readiness {
    found: Found,
    found_at: Instant,
}

impl Readiness {
    /// Findings of now.
    pub(super) fn found(found: Found) -> Self {
        Self { found, found_at: Instant::now() }
    }

    /// Whether the findings have changed.
    pub(super) fn differs(&self, found: &Found) -> bool {
        self.found != *found
    }

    /// Reasons why the node does not filter, or why that is unknown; empty if it filters.
    pub fn not_filtering(&self) -> Vec<String> {
        let mut reasons = self.found.filtering.clone();
        reasons.extend(self.found.services.values().filter_map(|service| service.key.clone()));
        reasons.extend(self.silence());
        reasons
    }

    /// Reasons why packets should not be sent to this node: it does not filter, one of its interfaces is down, or no
    /// service can deliver. Empty if packets should be sent.
    pub fn reasons(&self) -> Vec<String> {
        let mut reasons = self.not_filtering();
        reasons.extend(self.found.interfaces.iter().cloned());
        let undelivered: Option<Vec<_>> =
            self.found.services.values().map(|service| service.backends.clone()).collect();
        reasons.extend(undelivered.into_iter().flatten());
        reasons
    }

    /// Reasons why packets of a service should not be sent to this node; `None` if there is no such service.
    pub fn of_service(&self, name: &str) -> Option<Vec<String>> {
        let FoundService { key, backends } = self.found.services.get(name)?;
        let mut reasons = self.found.filtering.clone();
        reasons.extend(key.clone());
        reasons.extend(self.silence());
        reasons.extend(self.found.interfaces.iter().cloned());
        reasons.extend(backends.clone());
        Some(reasons)
    }

    /// Names of all services.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.found.services.keys().map(String::as_str)
    }

    fn silence(&self) -> Option<String> {
        (self.found_at.elapsed() > SILENCE).then(|| {
            format!(
                "the reconcile loop has not run for more than {} s; does the disk of the store respond (`dmesg`)? \
                 The XDP program keeps filtering with the last published state",
                SILENCE.as_secs()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readiness(services: &[(&str, Option<&str>, Option<&str>)]) -> Readiness {
        let service = |key: Option<&str>, backends: Option<&str>| FoundService {
            key: key.map(str::to_owned),
            backends: backends.map(str::to_owned),
        };
        let services = services.iter().map(|(name, key, up)| ((*name).to_owned(), service(*key, *up)));
        Readiness::found(Found { services: services.collect(), ..Found::default() })
    }

    #[test]
    fn a_node_delivers_while_one_service_does() {
        let one = readiness(&[("a", None, Some("a: no backend")), ("b", None, None)]);
        assert_eq!(one.reasons(), Vec::<String>::new());
        assert_eq!(one.of_service("a").unwrap(), ["a: no backend"]);
        assert_eq!(one.of_service("b").unwrap(), Vec::<String>::new());
        assert_eq!(one.of_service("c"), None);
        let none = readiness(&[("a", None, Some("a: no backend")), ("b", None, Some("b: no backend"))]);
        assert_eq!(none.reasons(), ["a: no backend", "b: no backend"]);
        assert_eq!(none.not_filtering(), Vec::<String>::new(), "it filters all the same");
    }

    #[test]
    fn what_concerns_all_services_concerns_each() {
        let mut all = readiness(&[("a", Some("a: no key"), None), ("b", None, None)]);
        all.found.interfaces = vec!["eth0 is down".to_owned()];
        assert_eq!(all.reasons(), ["a: no key", "eth0 is down"]);
        assert_eq!(all.of_service("b").unwrap(), ["eth0 is down"]);
        assert_eq!(all.not_filtering(), ["a: no key"]);
        all.found.filtering = vec!["starting".to_owned()];
        assert_eq!(all.of_service("b").unwrap(), ["starting", "eth0 is down"]);
    }
}
