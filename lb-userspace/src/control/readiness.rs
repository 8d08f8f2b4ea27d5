//! Whether this node filters and delivers, as the loop found when it looked last.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// How long the loop may not have looked: far more than its second, and than any request takes.
const SILENCE: Duration = Duration::from_secs(10);

/// What the loop found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Why nothing is filtered as it should be.
    pub filtering: Vec<String>,
    /// The interfaces that take no packets.
    pub interfaces: Vec<String>,
    /// By name.
    pub services: BTreeMap<String, FoundService>,
}

/// What the loop found of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FoundService {
    /// Why its tokens cannot be checked.
    pub key: Option<String>,
    /// Why its packets cannot be delivered.
    pub backends: Option<String>,
}

/// What the loop found, and when.
#[derive(Clone, Debug)]
pub struct Readiness {
    found: Found,
    found_at: Instant,
}

impl Readiness {
    /// As found now.
    pub(super) fn found(found: Found) -> Self {
        Self { found, found_at: Instant::now() }
    }

    /// Whether something else was found.
    pub(super) fn differs(&self, found: &Found) -> bool {
        self.found != *found
    }

    /// Why it does not filter, or nobody knows; none: it does.
    pub fn not_filtering(&self) -> Vec<String> {
        let mut reasons = self.found.filtering.clone();
        reasons.extend(self.found.services.values().filter_map(|service| service.key.clone()));
        reasons.extend(self.silence());
        reasons
    }

    /// Why packets should not be sent to this node: it does not filter, one of its interfaces is down, or no service
    /// at all can deliver. None: they should.
    pub fn reasons(&self) -> Vec<String> {
        let mut reasons = self.not_filtering();
        reasons.extend(self.found.interfaces.iter().cloned());
        let undelivered: Option<Vec<_>> =
            self.found.services.values().map(|service| service.backends.clone()).collect();
        reasons.extend(undelivered.into_iter().flatten());
        reasons
    }

    /// Why packets of a service should not be sent to this node; `None` for a service that it does not have.
    pub fn of_service(&self, name: &str) -> Option<Vec<String>> {
        let FoundService { key, backends } = self.found.services.get(name)?;
        let mut reasons = self.found.filtering.clone();
        reasons.extend(key.clone());
        reasons.extend(self.silence());
        reasons.extend(self.found.interfaces.iter().cloned());
        reasons.extend(backends.clone());
        Some(reasons)
    }

    /// The services that there are.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.found.services.keys().map(String::as_str)
    }

    fn silence(&self) -> Option<String> {
        (self.found_at.elapsed() > SILENCE).then(|| {
            format!(
                "nothing has been compared with the kernel for more than {} s: does the disk of the store answer (`dmesg`)? \
                 What was published last filters on",
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
