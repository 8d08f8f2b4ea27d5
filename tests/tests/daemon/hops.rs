//! Next hops that change: another router, another MAC address of a router, a link that goes down.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{reason::Reason, token::Header};
use lb_tests::testbed::{
    daemon::{service, wait_for},
    decap::Decap,
    topology::{BACK_INTERFACE, Family, INTERFACE, Layout, Network, Plan},
};
use serde_json::{Value, json};

use crate::testbed::{L2, Testbed, over_both};

over_both!(
    a_router_with_another_card,
    another_router,
    a_router_that_goes_away,
    an_interface_without_its_link,
    routes_of_every_form,
    several_next_hops_on_two_interfaces,
);

/// By then, a changed next hop is in the kernel.
const SOON: Duration = Duration::from_secs(1);
const IPIP: &str = "forward = \"ipip\"\nkey_rotation = \"off\"";

fn routed(family: Family) -> Result<(Testbed, Vec<Decap>)> {
    let testbed = Testbed::of(family, IPIP, Plan { backends: 1, layout: Layout::Routed, ..Plan::default() })?;
    let decap = testbed.decap()?;
    Ok((testbed, decap))
}

fn a_router_with_another_card(family: Family) -> Result<()> {
    let (testbed, _decap) = routed(family)?;
    let _daemon = testbed.start()?;
    let token = testbed.token(1)?;
    testbed.delivered(&token)?;
    let router = &testbed.topology.routers[0];
    let first = testbed.topology.plan.router(family, Network::Front, 1);
    let backend = testbed.json(&["backends", "list"])?["items"][0].clone();
    ensure!(backend["gateway"] == first.to_string(), "{backend}");

    // As routers do, it announces the change to all hosts.
    router.sysctl("net.ipv4.conf.eth0.arp_notify", "1")?;
    router.sysctl("net.ipv6.conf.eth0.ndisc_notify", "1")?;
    let card = "02:00:00:00:00:77";
    router.ip(&["link", "set", INTERFACE, "address", card])?;
    passes_soon(&testbed, &token)?;
    let backend = testbed.json(&["backends", "list"])?["items"][0].clone();
    ensure!(backend["mac"] == card && backend["up"] == true, "{backend}");
    Ok(())
}

fn another_router(family: Family) -> Result<()> {
    let (testbed, _decap) = routed(family)?;
    let _daemon = testbed.start()?;
    let token = testbed.token(1)?;
    testbed.delivered(&token)?;
    testbed.topology.plug("router1", false)?;
    let second = testbed.topology.plan.router(family, Network::Front, 2);
    set_route(&testbed, second)?;
    passes_soon(&testbed, &token)?;
    let backend = testbed.json(&["backends", "list"])?["items"][0].clone();
    ensure!(backend["gateway"] == second.to_string() && backend["up"] == true, "{backend}");
    Ok(())
}

fn a_router_that_goes_away(family: Family) -> Result<()> {
    let (testbed, _decap) = routed(family)?;
    let _daemon = testbed.start()?;
    let token = testbed.token(1)?;
    testbed.delivered(&token)?;
    testbed.topology.plug("router1", false)?;
    // Makes the kernel probe the neighbour again, which it does for stale entries.
    let router = testbed.topology.plan.router(family, Network::Front, 1).to_string();
    testbed.topology.balancer.ip(&["neighbour", "flush", "to", &router, "dev", INTERFACE])?;
    waits_for(&testbed, "no-neighbour")?;
    let backend = testbed.json(&["backends", "list"])?["items"][0].clone();
    ensure!(backend["detail"].as_str().is_some_and(|detail| detail.contains(&router)), "{backend}");
    testbed.refused_token(&token, Reason::NoBackend)?;

    testbed.topology.plug("router1", true)?;
    waits_for(&testbed, "up")?;
    testbed.delivered(&token)?;

    let destination = Network::Back.prefix(family, 0);
    testbed.topology.balancer.ip(&[family.option(), "route", "delete", &destination])?;
    waits_for(&testbed, "no-route")?;
    testbed.refused_token(&token, Reason::NoBackend)?;
    set_route(&testbed, testbed.topology.plan.router(family, Network::Front, 1))?;
    passes_soon(&testbed, &token)
}

fn an_interface_without_its_link(family: Family) -> Result<()> {
    let testbed =
        Testbed::of(family, L2, Plan { backends: 2, layout: Layout::TwoInterfaces, ..Plan::default() })?;
    let _daemon = testbed.start()?;
    let token = testbed.token(1)?;
    testbed.delivered(&token)?;
    // The link is disconnected.
    testbed.topology.plug("lb-back", false)?;
    waits_for(&testbed, "link-down")?;
    testbed.refused_token(&token, Reason::NoBackend)?;
    testbed.topology.plug("lb-back", true)?;
    waits_for(&testbed, "up")?;
    testbed.delivered(&token)?;
    // The interface is set down.
    let balancer = &testbed.topology.balancer;
    balancer.ip(&["link", "set", BACK_INTERFACE, "down"])?;
    waits_for(&testbed, "link-down")?;
    testbed.refused_token(&token, Reason::NoBackend)?;
    balancer.ip(&["link", "set", BACK_INTERFACE, "up"])?;
    waits_for(&testbed, "up")?;
    testbed.delivered(&token)?;
    Ok(())
}

/// Every form of a next hop in `ip route` is followed.
fn routes_of_every_form(family: Family) -> Result<()> {
    let (testbed, _decap) = routed(family)?;
    let balancer = &testbed.topology.balancer;
    let destination = Network::Back.prefix(family, 0);
    let [first, second] = [1, 2].map(|number| testbed.topology.plan.router(family, Network::Front, number));
    let [one, two] = [first, second].map(|router| router.to_string());
    let own = Network::Front.address(family, 1).to_string();
    balancer.ip(&["nexthop", "add", "id", "7", "via", &two, "dev", INTERFACE])?;
    let _daemon = testbed.start()?;
    let token = testbed.token(1)?;
    let inet6 = testbed.topology.plan.router(Family::V6, Network::Front, 2).to_string();
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
            seen = testbed.json(&["backends", "list"])?["items"][0].clone();
            let known = gateways.iter().any(|gateway| seen["gateway"] == *gateway);
            Ok(known && seen["mtu"] == *mtu && seen["source"] == own && seen["up"] == true)
        })
        .with_context(|| format!("{form:?}: {seen}"))?;
        testbed.delivered(&token).with_context(|| format!("{form:?}"))?;
    }
    // If the kernel hides the next hops of a route, the daemon reports that, and keeps the previous next hops.
    balancer.sysctl("net.ipv4.nexthop_compat_mode", "0")?;
    balancer.ip(&[family.option(), "route", "replace", &destination, "nhid", "7"])?;
    wait_for("the error", || {
        Ok(testbed.json(&["status"])?["errors"].to_string().contains("nexthop_compat_mode=1"))
    })?;
    balancer.sysctl("net.ipv4.nexthop_compat_mode", "1")?;
    wait_for("no error", || Ok(testbed.json(&["status"])?["errors"] == json!([])))?;
    testbed.delivered(&token)?;
    Ok(())
}

/// Each backend has one of the next hops, and the source address of the interface of this next hop.
fn several_next_hops_on_two_interfaces(family: Family) -> Result<()> {
    let testbed =
        Testbed::of(family, IPIP, Plan { backends: 1, layout: Layout::TwoInterfaces, ..Plan::default() })?;
    let (network, host): (&str, fn(u8) -> String) = match family {
        Family::V4 => ("10.99.0.0/24", |number| format!("10.99.0.{number}")),
        Family::V6 => ("fd99::/64", |number| format!("fd99::{number}")),
    };
    let addresses = (1..=16).map(|number| Ok(host(number).parse()?)).collect::<Result<Vec<IpAddr>>>()?;
    testbed.instance.configure(&service(family, IPIP, &addresses))?;
    let [front, back] = [Network::Front, Network::Back];
    let router = |at| testbed.topology.plan.router(family, at, 1).to_string();
    let (one, two) = (router(front), router(back));
    let hops = ["nexthop", "via", &one, "dev", INTERFACE, "nexthop", "via", &two, "dev", BACK_INTERFACE];
    testbed.topology.balancer.ip(&[&[family.option(), "route", "add", network], &hops[..]].concat())?;
    let _daemon = testbed.start()?;
    waits_for(&testbed, "up")?;
    let listed = testbed.json(&["backends", "list"])?;
    let mut counts = [0; 2];
    for backend in listed["items"].as_array().context("backends")? {
        let which = usize::from(backend["interface"] == BACK_INTERFACE);
        let at = [front, back][which];
        counts[which] += 1;
        let expected = json!([router(at), at.address(family, 1).to_string()]);
        ensure!(json!([backend["gateway"], backend["source"]]) == expected, "{backend}");
    }
    ensure!(counts.iter().all(|count| *count > 2), "{counts:?}");
    Ok(())
}

fn set_route(testbed: &Testbed, gateway: IpAddr) -> Result<()> {
    let destination = Network::Back.prefix(testbed.family, 0);
    let gateway = gateway.to_string();
    testbed.topology.balancer.ip(&[
        testbed.family.option(),
        "route",
        "replace",
        &destination,
        "via",
        &gateway,
    ])
}

/// Waits until all backends are in this state.
fn waits_for(testbed: &Testbed, state: &str) -> Result<()> {
    let mut seen = Default::default();
    let waited = wait_for(state, || {
        seen = testbed.json(&["backends", "list"])?;
        Ok(seen["items"].as_array().is_some_and(|list| list.iter().all(|backend| backend["state"] == state)))
    });
    waited.map_err(|error| error.context(format!("{seen}")))
}

/// Sends until a datagram arrives, which must happen soon.
fn passes_soon(testbed: &Testbed, token: &Header) -> Result<()> {
    let begun = Instant::now();
    let mut buffer = [0; 64];
    testbed.backends[0].set_read_timeout(Some(Duration::from_millis(10)))?;
    loop {
        testbed.send(&[&token.to_bytes()[..], b"soon"].concat())?;
        if testbed.backends[0].recv(&mut buffer).is_ok_and(|len| buffer[..len] == *b"soon") {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < SOON,
            "nothing has passed for {SOON:?}: {} {:?}",
            testbed.json(&["backends", "list"])?,
            testbed.counters()?
        );
    }
}
