//! A client's datagram, its translation, and the backend's answer.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    backend::{TAGS_KEPT, Tag},
    nat::{Owner, Translation, TranslationKey},
    reason::Reason,
    service::{FLAG_STRIP, FORWARD_NAT},
};
use lb_tests::model::{
    case::Case,
    fixture::{self, Fixture, NAT_PORTS, SERVICE_INDEX, SESSION, address_be},
    forwarding,
    packet::{self, Family, Packet, UdpChecksum},
    program::Program,
};

pub fn nat_fixture(flags: u8, family: Family) -> Fixture {
    fixture::sending(FORWARD_NAT, flags, fixture::backend_at(1, family))
}

/// A client's datagram that has left for the backend, and the backend's answer to it.
pub struct Exchange {
    pub fixture: Fixture,
    pub client: Packet,
    /// The port of this node in the client's translation.
    pub port: u16,
    /// The backend's answer to that port.
    pub answer: Packet,
    /// The answer as the client receives it.
    pub to_client: Packet,
}

impl Exchange {
    /// Runs the program on the client's datagram.
    pub fn start(program: &mut Program, fixture: Fixture, client: Packet) -> Result<Self> {
        let port = translated(program, "a client's datagram", &fixture, &client)?;
        Ok(Self::of_port(fixture, client, port))
    }

    /// [`Self::start`] for the default client of this family, whose token is stripped.
    pub fn of_default_client(program: &mut Program, family: Family) -> Result<Self> {
        Self::start(program, nat_fixture(FLAG_STRIP, family), Packet::default().over(family))
    }

    /// The exchange through this port.
    pub fn of_port(fixture: Fixture, client: Packet, port: u16) -> Self {
        let backend = fixture.backends[0];
        let to_backend = forwarding::leaving(&client, &fixture.services[0].1, &backend, SESSION, Some(port));
        let answer = Packet {
            tags: to_backend.tags,
            destination_mac: backend.source_mac,
            source_mac: backend.destination_mac,
            from: to_backend.to,
            to: to_backend.from,
            ttl: 64,
            ..Packet::with_payload(b"an answer of odd length".to_vec())
        };
        let to_client = Packet {
            destination_mac: client.source_mac,
            source_mac: client.destination_mac,
            tags: client.tags.clone(),
            from: client.to,
            to: client.from,
            ..answer.clone().hop()
        };
        Self { fixture, client, port, answer, to_client }
    }

    /// The same exchange with this checksum in the answer.
    pub fn with_checksum(mut self, udp_checksum: UdpChecksum) -> Self {
        self.answer.udp_checksum = udp_checksum;
        self.to_client = Packet { udp_checksum, ..self.to_client }.completed();
        self
    }

    /// The key of its translation.
    pub fn key(&self) -> TranslationKey {
        key(&self.fixture, self.port)
    }

    /// The answer reaches the client.
    pub fn answered(&self, name: impl Into<String>) -> Case {
        self.told(name, &self.answer, &self.to_client, Reason::Reply)
    }

    /// This packet reaches the client as `to_client`.
    pub fn told(&self, name: impl Into<String>, packet: &Packet, to_client: &Packet, reason: Reason) -> Case {
        Case::answered(name, self.fixture.clone(), packet, to_client, reason)
    }

    /// This packet is passed to this host.
    pub fn not_ours(&self, name: impl Into<String>, packet: &Packet) -> Case {
        Case::not_ours(name, self.fixture.clone(), packet)
    }

    /// This packet is dropped.
    pub fn refused(&self, name: impl Into<String>, packet: &Packet, reason: Reason) -> Case {
        Case::refused(name, self.fixture.clone(), packet, reason)
    }
}

/// Runs the program on a client's datagram, and checks the result with the port of its translation.
pub fn translated(program: &mut Program, name: &str, fixture: &Fixture, packet: &Packet) -> Result<u16> {
    program.enter(fixture)?;
    let outcome = program.run(&packet.bytes())?;
    let (port, translation) =
        found(program, fixture, packet.from)?.with_context(|| format!("{name}: no translation"))?;
    ensure!(NAT_PORTS.contain(port), "{name}: port {port}");
    let case = sent(name, fixture, packet, port, translation.cookie);
    ensure!(outcome == case.expected.outcome, "{name}: {outcome:?} instead of {case:?}");
    // Runs again, now with a translation, and checks all counters.
    case.check(program)?;
    let again = found(program, fixture, packet.from)?.map(|(port, _)| port);
    ensure!(again == Some(port), "{name}: {again:?}, but the port was {port}");
    Ok(port)
}

/// The client's port towards the backend of this fixture, and its translation, if there is one.
pub fn found(program: &Program, fixture: &Fixture, client: SocketAddr) -> Result<Option<(u16, Translation)>> {
    let backend = fixture.backends[0];
    for entry in &program.translations()? {
        let (key, translation): (TranslationKey, Translation) = entry?;
        let is_clients = translation.client_be == address_be(client.ip())
            && translation.client_port_be == client.port().to_be();
        if is_clients && key.backend_be == backend.address_be && key.backend_port_be == backend.port_be {
            return Ok(Some((u16::from_be(key.node_port_be), translation)));
        }
    }
    Ok(None)
}

/// The packet leaves from this port, and its translation has this cookie.
pub fn sent(name: impl Into<String>, fixture: &Fixture, packet: &Packet, port: u16, cookie: u32) -> Case {
    let (service, backend) = (fixture.services[0].1, fixture.backends[0]);
    let inner = if service.strips() { packet.clone().stripped() } else { packet.clone() };
    let sent = forwarding::leaving(&inner, &service, &backend, SESSION, Some(port));
    let sent = with_cookie(sent, cookie);
    Case::sent(name, fixture.clone(), packet, &sent, &backend, Reason::Forwarded)
}

/// A packet with a cookie, if it has space for one.
pub fn with_cookie(packet: Packet, cookie: u32) -> Packet {
    match packet.family() {
        Family::V4 if packet.fragment == packet::DONT_FRAGMENT => Packet { id: cookie as u16, ..packet },
        Family::V4 => packet,
        Family::V6 => Packet { flow_label: cookie & 0xf_ffff, ..packet },
    }
}

/// The translation of a client with datagrams like this one.
pub fn translation(fixture: &Fixture, client: &Packet) -> Translation {
    let backend = fixture.backends[0];
    let mut addresses_be = [0; 3];
    let macs = [client.source_mac, client.destination_mac].concat();
    for (word, bytes) in addresses_be.iter_mut().zip(macs.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    let mut tags = [Tag::default(); 2];
    for (tag, (identifier, control)) in tags.iter_mut().zip(&client.tags) {
        *tag = self::tag(*identifier, *control);
    }
    let kept = backend.tag_count == TAGS_KEPT;
    let (backend_tag_count, backend_tags) = match kept {
        true => (client.tags.len() as u16, tags),
        false => (backend.tag_count.into(), backend.tags),
    };
    let grant = fixture::grant();
    Translation {
        used_at_ns: 0,
        client_be: address_be(client.from.ip()),
        service_be: address_be(client.to.ip()),
        node_be: backend.source_be,
        client_port_be: client.from.port().to_be(),
        service_port_be: client.to.port().to_be(),
        service_index: SERVICE_INDEX as u16,
        tag_count: client.tags.len() as u16,
        ifindex: fixture::LOOPBACK,
        addresses_be,
        tags,
        owner: Owner::session(fixture::SERVICE_ID, SESSION),
        checked: 0,
        nonce: u64::from_le_bytes(grant.nonce),
        issued_at: grant.issued_at,
        cookie: 0x000a_5eed,
        backend_ifindex: backend.ifindex,
        backend_id: backend.backend_id,
        backend_tag_count,
        backend_tags,
    }
}

pub fn key(fixture: &Fixture, port: u16) -> TranslationKey {
    let backend = fixture.backends[0];
    TranslationKey {
        backend_be: backend.address_be,
        backend_port_be: backend.port_be,
        node_port_be: port.to_be(),
    }
}

/// Checks cases one after the other, each with its own counters.
pub fn in_turn(program: &mut Program, cases: impl IntoIterator<Item = Case>) -> Result<()> {
    cases.into_iter().try_for_each(|case| case.check(program))
}

/// An address without a port, as in ICMP.
pub fn no_port(at: SocketAddr) -> SocketAddr {
    SocketAddr::new(at.ip(), 0)
}

/// A VLAN tag as in backends and translations.
pub fn tag(identifier: u16, control: u16) -> Tag {
    Tag { identifier_be: identifier.to_be(), control_be: control.to_be() }
}
