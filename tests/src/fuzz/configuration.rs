//! `tollgate.toml`: an accepted file satisfies the invariants of [`Config`], and a rejected one gets an error with
//! position and cause.

use std::{collections::BTreeSet, path::Path};

use tollgate::config::{Backend, Config, ConfigError, HealthCheck, Problem, Service};

/// Any file.
pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let parse = || Config::parse(Path::new("tollgate.toml"), text);
    match parse() {
        Ok(config) => {
            node(&config);
            config.services.iter().for_each(service);
            config.warnings.iter().for_each(|warning| problem(&warning.0, text));
            assert_eq!(parse().ok(), Some(config), "one text, one meaning");
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(!error.report(false).is_empty());
            if let ConfigError::Invalid(invalid) = error {
                assert!(!invalid.problems.is_empty());
                invalid.problems.iter().for_each(|found| problem(found, text));
            }
        }
    }
}

fn problem(problem: &Problem, text: &str) {
    let lines = text.split('\n').count();
    assert!((1..=lines).contains(&problem.line) && problem.column > 0, "{problem} in {lines} lines");
    assert!(!problem.message.is_empty() && !problem.hint.is_empty(), "{problem}");
}

fn node(config: &Config) {
    assert!(!config.interfaces.is_empty());
    assert!(all_different(&config.interfaces), "{:?}", config.interfaces);
    assert!(config.nat_ports.first <= config.nat_ports.last, "{:?}", config.nat_ports);
    assert!((1..=16).contains(&config.nat_ports_per_session), "{}", config.nat_ports_per_session);
    let families = config.tunnel_sources.iter().map(|prefix| prefix.address().is_ipv4());
    assert!(all_different(families), "{:?}", config.tunnel_sources);
    let services = &config.services;
    assert!(all_different(services.iter().map(|service| service.id)), "{services:?}");
    assert!(all_different(services.iter().map(|service| &service.name)), "{services:?}");
    assert!(all_different(services.iter().map(|service| (service.address, service.port))), "{services:?}");
}

fn service(service: &Service) {
    assert!(service.id != 0 && service.port != 0, "{service:?}");
    assert!(is_name(&service.name), "{service:?}");
    assert!(service.accept.bearer || service.accept.proof, "{service:?}");
    assert!((1..=366 * 86_400).contains(&service.max_ttl.as_secs()), "{service:?}");
    assert!(service.max_ttl.subsec_nanos() == 0, "{service:?}");
    assert!(service.key_rotation.is_none_or(|every| every.as_secs() > 0 && every.subsec_nanos() == 0));
    let backends = &service.backends;
    assert!(all_different(backends.iter().map(|backend| backend.id)), "{service:?}");
    assert!(all_different(backends.iter().map(|backend| &backend.name)), "{service:?}");
    assert!(all_different(backends.iter().map(|backend| (backend.address, backend.port))), "{service:?}");
    for Backend { id, name, address, port, weight, check: HealthCheck::None } in backends {
        assert!(*id != 0 && *port != 0 && *weight != 0, "{service:?}");
        assert!(is_name(name), "{service:?}");
        assert!(service.forward.reaches(service.address, *address), "{service:?}");
    }
}

/// Whether a command line cannot confuse it with an id.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.bytes().all(|byte| byte.is_ascii_digit())
}

fn all_different<T: Ord>(values: impl IntoIterator<Item = T>) -> bool {
    let mut seen = BTreeSet::new();
    values.into_iter().all(|value| seen.insert(value))
}
