//! `tollgate check`: checks the interfaces and the network of this host against a configuration, without changing
//! anything.

use std::collections::BTreeSet;

use crate::{
    config::Config,
    control::{StartError, attachment::Attachments},
    datapath::{DatapathError, Pins, preflight::Check},
    network::{
        Interfaces, Links, Network,
        driver::{self, driver},
        exposure,
        macs::{self, Accepted},
        redirects::{self, Redirects},
    },
    protocol::Verdict,
};

/// The result of [`check_host`].
pub struct Checked {
    /// For each interface, the MAC addresses that are filtered, or why the program cannot be attached.
    pub interfaces: Vec<(String, Result<Accepted, DatapathError>)>,
    /// Interfaces that accept ICMP redirects.
    pub redirects: Vec<Redirects>,
    /// The XDP mode of each interface, and warnings about interfaces to backends.
    pub drivers: Vec<Check>,
    /// Warnings about the services.
    pub services: Vec<Check>,
}

/// Checks whether the program can be attached to the configured interfaces, which frames it would filter there, and
/// which packets would bypass it.
///
/// # Errors
/// If the kernel cannot be queried.
pub async fn check_host(config: &Config) -> Result<Checked, StartError> {
    let attachments = Attachments::new(config, Pins::new(&config.bpffs)?);
    let network = Network::connect()?;
    let (interfaces, links) = network.interfaces().await?;
    let mut accepted = macs::accepted(&config.interfaces, &interfaces, &config.virtual_macs);
    let results = attachments.check_each(&interfaces, &links);
    let mut drivers: Vec<_> = results
        .iter()
        .filter(|(_, result)| result.is_ok())
        .filter_map(|(name, _)| {
            let interface = interfaces.get(name)?;
            let attached = interface.xdp.map(|(_, mode)| mode);
            Some(driver::check(name, config.xdp_mode, attached, &driver(interface.index)))
        })
        .collect();
    drivers.extend(towards_backends(config, &network, &interfaces, &links).await);
    let services = exposure::warnings(&config.services, &config.interfaces, &network, &links).await?;
    let with_macs = results.into_iter().map(|(name, result)| {
        let accepted = accepted.remove(&name).unwrap_or_default();
        (name, result.map(|()| accepted))
    });
    Ok(Checked {
        interfaces: with_macs.collect(),
        redirects: redirects::accepted(&config.interfaces, &links),
        drivers,
        services,
    })
}

/// A warning for each interface to backends that is not in `interfaces` and whose driver cannot send frames that an XDP
/// program of another interface redirects.
async fn towards_backends(
    config: &Config,
    network: &Network,
    interfaces: &Interfaces,
    links: &Links,
) -> Vec<Check> {
    let mut leaving = BTreeSet::new();
    for backend in config.services.iter().flat_map(|service| &service.backends) {
        // A backend without a route has its own state (`no-route`).
        if let Ok(Some(route)) = network.route(backend.address).await
            && !route.local
        {
            leaving.insert(card_of(route.index, interfaces));
        }
    }
    let filtered = |name: &String| config.interfaces.contains(name);
    let names = leaving.into_iter().filter_map(|index| Some((index, links.get(index)?.name.clone())));
    names
        .filter(|(index, name)| {
            !filtered(name) && driver(*index).is_ok_and(|driver| driver.is_some_and(|found| !found.takes_redirects))
        })
        .map(|(_, name)| Check {
            name: format!("interface {name}").into(),
            verdict: Verdict::Warning,
            found: "packets to backends leave through it, and at present its driver sends no frames that XDP \
                    redirects from another interface"
                .to_owned(),
            hint: format!(
                "add {name} to `interfaces` (many drivers need an XDP program of their own for that), turn GRO on \
                 at the peer of a veth, or use another interface"
            )
            .into(),
        })
        .collect()
}

/// The interface whose driver sends the frames of a VLAN interface.
fn card_of(index: u32, interfaces: &Interfaces) -> u32 {
    let below = |index: u32| interfaces.values().find(|one| one.index == index)?.vlan.map(|vlan| vlan.below);
    // VLANs do not form a cycle, and at most two tags are sent.
    std::iter::successors(Some(index), |index| below(*index)).take(3).last().unwrap_or(index)
}
