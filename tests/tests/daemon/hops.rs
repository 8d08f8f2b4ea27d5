//! Next hops that change: another router, a router's other card, a link that goes away.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{reason::Reason, token::Header};
use lb_tests::testbed::{
    daemon::{service, wait_for},
    forward::Decap,
    topology::{BACK_INTERFACE, Family, INTERFACE, Network, Plan, Way},
};
use serde_json::{Value, json};

use crate::testbed::{L2, Lab, over_both};

over_both!(
    a_router_with_another_card,
    another_router,
    a_router_that_goes_away,
    an_interface_without_its_link,
    routes_of_every_form,
    several_next_hops_on_two_interfaces,
);

/// A changed next hop is in the kernel by then.
const SOON: Duration = Duration::from_secs(1);
const IPIP: &str = "forward = \"ipip\"\nkey_rotation = \"off\"";

fn routed(family: Family) -> Result<(Lab, Vec<Decap>)> {
    let lab = Lab::of(family, IPIP, Plan { backends: 1, way: Way::Routed, ..Plan::default() })?;
    let decap = lab.decap()?;
    Ok((lab, decap))
}

fn a_router_with_another_card(family: Family) -> Result<()> {
    let (lab, _decap) = routed(family)?;
    let _daemon = lab.start()?;
    let token = lab.token(1)?;
    lab.delivered(&token)?;
    let router = &lab.topology.routers[0];
    let first = lab.topology.plan.router(family, Network::Front, 1);
    let backend = lab.json(&["backends", "list"])?[0].clone();
    ensure!(backend["gateway"] == first.to_string(), "{backend}");

    // As routers do: it tells everybody.
    router.sysctl("net.ipv4.conf.eth0.arp_notify", "1")?;
    router.sysctl("net.ipv6.conf.eth0.ndisc_notify", "1")?;
    let card = "02:00:00:00:00:77";
    router.ip(&["link", "set", INTERFACE, "address", card])?;
    passes_soon(&lab, &token)?;
    let backend = lab.json(&["backends", "list"])?[0].clone();
    ensure!(backend["mac"] == card && backend["up"] == true, "{backend}");
    Ok(())
}

fn another_router(family: Family) -> Result<()> {
    let (lab, _decap) = routed(family)?;
    let _daemon = lab.start()?;
    let token = lab.token(1)?;
    lab.delivered(&token)?;
    lab.topology.plug("router1", false)?;
    let second = lab.topology.plan.router(family, Network::Front, 2);
    set_route(&lab, second)?;
    passes_soon(&lab, &token)?;
    let backend = lab.json(&["backends", "list"])?[0].clone();
    ensure!(backend["gateway"] == second.to_string() && backend["up"] == true, "{backend}");
    Ok(())
}

fn a_router_that_goes_away(family: Family) -> Result<()> {
    let (lab, _decap) = routed(family)?;
    let _daemon = lab.start()?;
    let token = lab.token(1)?;
    lab.delivered(&token)?;
    lab.topology.plug("router1", false)?;
    // The kernel asks again for what it is not sure of: make it unsure.
    let router = lab.topology.plan.router(family, Network::Front, 1).to_string();
    lab.topology.balancer.ip(&["neighbour", "flush", "to", &router, "dev", INTERFACE])?;
    waits_for(&lab, "no-neighbour")?;
    let backend = lab.json(&["backends", "list"])?[0].clone();
    ensure!(backend["detail"].as_str().is_some_and(|detail| detail.contains(&router)), "{backend}");
    lab.refused_token(&token, Reason::NoBackend)?;

    lab.topology.plug("router1", true)?;
    waits_for(&lab, "up")?;
    lab.delivered(&token)?;

    let destination = Network::Back.prefix(family, 0);
    lab.topology.balancer.ip(&[family.option(), "route", "delete", &destination])?;
    waits_for(&lab, "no-route")?;
    lab.refused_token(&token, Reason::NoBackend)?;
    set_route(&lab, lab.topology.plan.router(family, Network::Front, 1))?;
    passes_soon(&lab, &token)
}

fn an_interface_without_its_link(family: Family) -> Result<()> {
    let lab = Lab::of(family, L2, Plan { backends: 2, way: Way::Cards, ..Plan::default() })?;
    let _daemon = lab.start()?;
    let token = lab.token(1)?;
    lab.delivered(&token)?;
    // Unplugged.
    lab.topology.plug("lb-back", false)?;
    waits_for(&lab, "link-down")?;
    lab.refused_token(&token, Reason::NoBackend)?;
    lab.topology.plug("lb-back", true)?;
    waits_for(&lab, "up")?;
    lab.delivered(&token)?;
    // Switched off.
    let balancer = &lab.topology.balancer;
    balancer.ip(&["link", "set", BACK_INTERFACE, "down"])?;
    waits_for(&lab, "link-down")?;
    lab.refused_token(&token, Reason::NoBackend)?;
    balancer.ip(&["link", "set", BACK_INTERFACE, "up"])?;
    waits_for(&lab, "up")?;
    lab.delivered(&token)?;
    Ok(())
}

/// What `ip route` can say of a next hop is followed.
fn routes_of_every_form(family: Family) -> Result<()> {
    let (lab, _decap) = routed(family)?;
    let balancer = &lab.topology.balancer;
    let destination = Network::Back.prefix(family, 0);
    let [first, second] = [1, 2].map(|number| lab.topology.plan.router(family, Network::Front, number));
    let [one, two] = [first, second].map(|router| router.to_string());
    let own = Network::Front.address(family, 1).to_string();
    balancer.ip(&["nexthop", "add", "id", "7", "via", &two, "dev", INTERFACE])?;
    let _daemon = lab.start()?;
    let token = lab.token(1)?;
    let inet6 = lab.topology.plan.router(Family::V6, Network::Front, 2).to_string();
    let both = [one.as_str(), &two];
    let mut forms = vec![
        (vec!["via", &one, "mtu", "lock", "1400"], vec![one.as_str()], 1400),
        (vec!["via", &two, "src", &own], vec![&two], 1500),
        (vec!["mtu", "1450", "nexthop", "via", &one, "nexthop", "via", &two], both.to_vec(), 1450),
        (vec!["nhid", "7"], vec![&two], 1500),
    ];
    if family == Family::V4 {
        forms.push((vec!["via", "inet6", &inet6, "dev", INTERFACE, "mtu", "1444"], vec![&inet6], 1444));
    }
    for (form, gateways, mtu) in &forms {
        balancer.ip(&[&[family.option(), "route", "replace", &destination], &form[..]].concat())?;
        let mut seen = Value::Null;
        wait_for("the route", || {
            seen = lab.json(&["backends", "list"])?[0].clone();
            let known = gateways.iter().any(|gateway| seen["gateway"] == *gateway);
            Ok(known && seen["mtu"] == *mtu && seen["source"] == own && seen["up"] == true)
        })
        .with_context(|| format!("{form:?}: {seen}"))?;
        lab.delivered(&token).with_context(|| format!("{form:?}"))?;
    }
    // Next hops that the kernel does not show are no next hops of before: said, and not followed.
    balancer.sysctl("net.ipv4.nexthop_compat_mode", "0")?;
    balancer.ip(&[family.option(), "route", "replace", &destination, "nhid", "7"])?;
    wait_for("the error", || {
        Ok(lab.json(&["status"])?["errors"].to_string().contains("nexthop_compat_mode=1"))
    })?;
    balancer.sysctl("net.ipv4.nexthop_compat_mode", "1")?;
    wait_for("no error", || Ok(lab.json(&["status"])?["errors"] == json!([])))?;
    lab.delivered(&token)?;
    Ok(())
}

/// Each backend has one of the next hops, and the source address of that one's interface.
fn several_next_hops_on_two_interfaces(family: Family) -> Result<()> {
    let lab = Lab::of(family, IPIP, Plan { backends: 1, way: Way::Cards, ..Plan::default() })?;
    let (network, host): (&str, fn(u8) -> String) = match family {
        Family::V4 => ("10.99.0.0/24", |number| format!("10.99.0.{number}")),
        Family::V6 => ("fd99::/64", |number| format!("fd99::{number}")),
    };
    let addresses = (1..=16).map(|number| Ok(host(number).parse()?)).collect::<Result<Vec<IpAddr>>>()?;
    lab.place.configure(&service(family, IPIP, &addresses))?;
    let [front, back] = [Network::Front, Network::Back];
    let router = |at| lab.topology.plan.router(family, at, 1).to_string();
    let (one, two) = (router(front), router(back));
    let hops = ["nexthop", "via", &one, "dev", INTERFACE, "nexthop", "via", &two, "dev", BACK_INTERFACE];
    lab.topology.balancer.ip(&[&[family.option(), "route", "add", network], &hops[..]].concat())?;
    let _daemon = lab.start()?;
    waits_for(&lab, "up")?;
    let listed = lab.json(&["backends", "list"])?;
    let mut counts = [0; 2];
    for backend in listed.as_array().context("backends")? {
        let which = usize::from(backend["interface"] == BACK_INTERFACE);
        let at = [front, back][which];
        counts[which] += 1;
        let expected = json!([router(at), at.address(family, 1).to_string()]);
        ensure!(json!([backend["gateway"], backend["source"]]) == expected, "{backend}");
    }
    ensure!(counts.iter().all(|count| *count > 2), "{counts:?}");
    Ok(())
}

fn set_route(lab: &Lab, gateway: IpAddr) -> Result<()> {
    let destination = Network::Back.prefix(lab.family, 0);
    let gateway = gateway.to_string();
    lab.topology.balancer.ip(&[lab.family.option(), "route", "replace", &destination, "via", &gateway])
}

/// Waits until all backends are in this state.
fn waits_for(lab: &Lab, state: &str) -> Result<()> {
    let mut seen = Default::default();
    let waited = wait_for(state, || {
        seen = lab.json(&["backends", "list"])?;
        Ok(seen.as_array().is_some_and(|list| list.iter().all(|backend| backend["state"] == state)))
    });
    waited.map_err(|error| error.context(format!("{seen}")))
}

/// Sends until something arrives, which is to be soon.
fn passes_soon(lab: &Lab, token: &Header) -> Result<()> {
    let begun = Instant::now();
    let mut buffer = [0; 64];
    lab.backends[0].set_read_timeout(Some(Duration::from_millis(10)))?;
    loop {
        lab.send(&[&token.to_bytes()[..], b"soon"].concat())?;
        if lab.backends[0].recv(&mut buffer).is_ok_and(|len| buffer[..len] == *b"soon") {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < SOON,
            "nothing has passed for {SOON:?}: {} {:?}",
            lab.json(&["backends", "list"])?,
            lab.counters()?
        );
    }
}
