//! Limits of a session: rates by class, source addresses of a token; and PROOF tokens as the command line mints them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, UdpSocket},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    reason::Reason,
    siphash::SipKey,
    token::{Claims, Header, tags},
};
use lb_tests::testbed::{daemon::wait_for, issuer::session, topology::Family};
use serde_json::Value;

use crate::testbed::{L2, TTL, Testbed, over_both};

over_both!(a_session_has_the_rate_of_its_class, a_token_has_so_many_sources, proof_tokens_are_delivered_once,);

fn a_session_has_the_rate_of_its_class(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, &format!("{L2}\nrate = {{ \"3\" = \"1/s burst 4\" }}"), 1)?;
    let daemon = testbed.start()?;
    let issuer = testbed.issuer()?;
    let of_class = |id, class| issuer.token(Claims { class, ..session(id, 0) }, TTL);
    let (limited, same_class, unlimited) = (of_class(1, 3), of_class(2, 3), of_class(3, 0));
    // A second may pass meanwhile.
    let passed = passed_of_20(&testbed, &limited)?;
    ensure!((4..=6).contains(&passed), "{passed} of a burst of 4");
    let passed = passed_of_20(&testbed, &same_class)?;
    ensure!((4..=6).contains(&passed), "{passed} of another session's burst of 4");
    ensure!(passed_of_20(&testbed, &unlimited)? == 20);

    // Another configuration applies from the next start on.
    daemon.terminate()?;
    testbed.instance.configure(&testbed.service(L2, 1))?;
    let _daemon = testbed.start()?;
    ensure!(passed_of_20(&testbed, &limited)? == 20);
    Ok(())
}

/// Sends a token 20 times in a burst; returns how many datagrams arrived. All others must be counted as `rate_limited`.
fn passed_of_20(testbed: &Testbed, token: &Header) -> Result<u64> {
    let packets =
        |counters: &BTreeMap<String, u64>, reason: Reason| counters.get(reason.name()).copied().unwrap_or(0);
    let count = || -> Result<_> {
        let counters = testbed.counters()?;
        Ok((packets(&counters, Reason::Forwarded), packets(&counters, Reason::RateLimited)))
    };
    let before = count()?;
    (0..20).try_for_each(|_| testbed.send(&token.to_bytes()))?;
    let mut after = before;
    wait_for("all to be counted", || {
        after = count()?;
        Ok(after.0 + after.1 == before.0 + before.1 + 20)
    })?;
    let passed = after.0 - before.0;
    (0..passed).try_for_each(|_| testbed.arrives(&[]).map(drop))?;
    testbed.nothing_arrived()?;
    Ok(passed)
}

/// A socket at another address of the client.
fn socket_at(testbed: &Testbed, last: u8) -> Result<UdpSocket> {
    // IPv6 sources are distinguished by their first 64 bits.
    let (address, length): (IpAddr, _) = match testbed.family {
        Family::V4 => ([10, 77, 0, last].into(), "24"),
        Family::V6 => ([0xfd78, 0, 0, last.into(), 0, 0, 0, 1].into(), "64"),
    };
    let mut add = vec!["address", "add"];
    let with_length = format!("{address}/{length}");
    add.extend([with_length.as_str(), "dev", "eth0"]);
    add.extend((testbed.family == Family::V6).then_some("nodad"));
    testbed.topology.client.ip(&add)?;
    let socket = testbed.topology.client.enter(|| UdpSocket::bind((address, 0)))??;
    socket.connect(testbed.family.service())?;
    Ok(socket)
}

fn a_token_has_so_many_sources(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, &format!("{L2}\nmax_sources = 2"), 1)?;
    let _daemon = testbed.start()?;
    let token = testbed.token(1)?;
    let sockets = [61, 62, 63].map(|last| socket_at(&testbed, last));
    let [first, second, third] = sockets;
    let (first, second, third) = (first?, second?, third?);
    let delivered = |socket: &UdpSocket| -> Result<()> {
        let data = fastrand::u128(..).to_be_bytes();
        socket.send(&[&token.to_bytes()[..], &data].concat())?;
        testbed.arrives(&data)?;
        Ok(())
    };
    delivered(&first)?;
    delivered(&second)?;
    third.send(&token.to_bytes())?;
    let refused = || Ok(testbed.counters()?.get(Reason::TooManySources.name()) == Some(&1));
    wait_for("too_many_sources", refused)?;
    testbed.nothing_arrived()?;
    // Neither the first two sources nor another token are affected.
    delivered(&first)?;
    delivered(&second)?;
    testbed.delivered(&testbed.token(1)?)?;
    let listed = testbed.json(&["sessions", "list"])?;
    let sources: Vec<_> =
        listed["items"].as_array().context("a list")?.iter().map(|one| &one["sources"]).collect();
    ensure!(listed["total"] == 2 && sources.contains(&&Value::from(2)), "{listed}");
    Ok(())
}

/// A datagram of the client of a minted PROOF token, with sequence number, time and proof.
fn proven(minted: &Value, seq: u32, ts_ms: u32, payload: &[u8]) -> Result<Vec<u8>> {
    let bytes = |field: &str| -> Result<Vec<u8>> {
        Ok(hex::decode(minted[field].as_str().with_context(|| format!("no {field}: {minted}"))?)?)
    };
    let key: [u8; 16] = bytes("session_key")?.try_into().map_err(|_| anyhow::anyhow!("16 bytes"))?;
    let tag = tags::proof_over(SipKey::from_bytes(&key), seq, ts_ms, payload);
    let numbers = [seq.to_be_bytes(), ts_ms.to_be_bytes()].concat();
    Ok([bytes("claims")?, bytes("fast_tag")?, numbers, tag.to_le_bytes().to_vec(), payload.to_vec()].concat())
}

fn proof_tokens_are_delivered_once(family: Family) -> Result<()> {
    let testbed = Testbed::of(family, &format!("{L2}\naccept = [\"proof\"]"), 1)?;
    let _daemon = testbed.start()?;
    let mint = ["token", "mint", "--service", "game", "--session", "7", "--type", "proof"];
    let minted = testbed.json(&mint)?;
    for seq in 0..3 {
        let payload = format!("payload number {seq}");
        testbed.send(&proven(&minted, seq, 0, payload.as_bytes())?)?;
        testbed.arrives(payload.as_bytes())?;
    }
    testbed.refused(&proven(&minted, 1, 0, b"payload number 1")?, Reason::Replay)?;
    testbed.refused(&proven(&minted, 9, 60_000, b"too late")?, Reason::StaleProof)?;
    let mut changed = proven(&minted, 9, 0, b"as the client wrote it")?;
    *changed.last_mut().context("a byte")? ^= 1;
    changed[70] ^= 1;
    testbed.refused(&changed, Reason::BadProof)?;
    let listed = testbed.json(&["sessions", "list"])?;
    ensure!(listed["items"][0]["type"] == "proof", "{listed}");
    ensure!(!listed.to_string().contains(minted["session_key"].as_str().context("a key")?), "a key is shown");
    // The printed header is that of the first packet, with an empty payload.
    let first = testbed.json(&mint)?;
    let header = hex::decode(first["header"].as_str().context("a header")?)?;
    testbed.send(&header)?;
    testbed.arrives(&[])?;
    testbed.json(&["sessions", "revoke", "7", "--service", "game"])?;
    testbed.refused(&proven(&minted, 4, 0, b"revoked")?, Reason::Revoked)?;
    testbed.refused_token(&testbed.issuer()?.token(session(8, 0), TTL), Reason::Policy)
}
