//! The required outcome of any frame: a second, simple implementation of token.md and of the parser's rules, for
//! packets that no test case lists.

use lb_common::{
    backend::{Backend, TAGS_KEPT},
    balance,
    reason::Reason,
    service::{FORWARD_GUE, FORWARD_IPIP, FORWARD_L2, FORWARD_LOCAL, Service},
};

use self::{mac::Destination, parse::Parsed, session::Sessions, token::Sealed};
use crate::model::{
    case::Expected,
    fixture::{Fixture, LOOPBACK},
    forwarding,
    packet::{Family, Packet},
    program::{Outcome, Verdict},
};

mod flow;
mod icmp;
mod mac;
mod parse;
mod session;
pub(crate) mod token;

/// The required outcome of the first frame that arrives, for services in enforce mode.
pub fn judge(fixture: &Fixture, frame: &[u8]) -> Expected {
    Model::default().judge(fixture, frame)
}

/// A model of the program: for the same packets in the same order, it reaches the same verdicts.
#[derive(Default)]
pub struct Model {
    sessions: Sessions,
    /// The kernel's ticks, for fixtures whose clock moves.
    jiffies: u64,
}

impl Model {
    /// A model at this number of kernel ticks.
    pub fn at(jiffies: u64) -> Self {
        Self { jiffies, ..Self::default() }
    }

    /// A model in which each HMAC costs this much of a CPU's budget, nanoseconds; for packets that all arrive on one
    /// CPU.
    pub fn with_budget(hmac_cost_ns: u64) -> Self {
        let mut model = Self::default();
        model.sessions.hmac_cost_ns = hmac_cost_ns;
        model
    }

    /// Sets the number of kernel ticks from now on.
    pub const fn set_jiffies(&mut self, jiffies: u64) {
        self.jiffies = jiffies;
    }

    /// Number of HMACs that it has computed.
    pub const fn hmacs(&self) -> u64 {
        self.sessions.hmacs
    }

    /// Number of tokens in its cache.
    pub fn remembered(&self) -> usize {
        self.sessions.len()
    }

    /// The required outcome of a frame, for services in enforce mode.
    pub fn judge(&mut self, fixture: &Fixture, frame: &[u8]) -> Expected {
        if fixture.generations_begun > 1 {
            return expected(Verdict::Drop, frame.to_vec(), 0, Reason::TablesChanged, None);
        }
        if parse::is_buried(frame) {
            return expected(Verdict::Drop, frame.to_vec(), 0, Reason::Unsupported, None);
        }
        if mac::destination(fixture, frame) == Destination::Own
            && let Some((service, session, backend)) = self.tied(fixture, frame)
            && let Some(expected) = icmp_error(fixture, frame, &service, session, backend)
        {
            return expected;
        }
        let Some(parsed) = Parsed::of(frame).and_then(|parsed| Some((parsed.service(fixture)?, parsed)))
        else {
            return expected(Verdict::Pass, frame.to_vec(), 0, Reason::NotOurs, None);
        };
        let (service, parsed) = parsed;
        if let Some((verdict, index, reason)) = mac::destination(fixture, frame).refuses(&service) {
            return expected(verdict, frame.to_vec(), index, reason, None);
        }
        let backend = self.admitted(fixture, &service, &parsed).and_then(|claims| {
            if service.forward == FORWARD_LOCAL {
                return Ok((None, claims.session_id));
            }
            if is_spoilt_in_generic_mode(fixture, &parsed.whole()) {
                return Err(Reason::PartialChecksum);
            }
            let backend = backend(fixture, &service, claims.session_id, claims.backend_id)?;
            let inner = if service.strips() { parsed.stripped() } else { parsed.whole() };
            takes(fixture, &service, &inner, &backend)?;
            Ok((Some(backend), claims.session_id))
        });
        match backend {
            Err(reason) => expected(Verdict::Drop, frame.to_vec(), service.index, reason, None),
            Ok((None, _)) => {
                let delivered =
                    if service.strips() { parsed.stripped().completed().bytes() } else { frame.to_vec() };
                expected(Verdict::Pass, delivered, service.index, Reason::Forwarded, None)
            }
            Ok((Some(backend), session)) => {
                let sent = if service.strips() { parsed.stripped() } else { parsed.whole() };
                let sent = forwarding::leaving(&sent, &service, &backend, session, None).bytes();
                let verdict = out_of(&backend);
                expected(verdict, sent, service.index, Reason::Forwarded, Some(backend.counter))
            }
        }
    }

    /// The service of the client that an ICMP error quotes, the client's session, and its backend.
    fn tied(&self, fixture: &Fixture, frame: &[u8]) -> Option<(Service, u64, u16)> {
        let (service, client) = icmp::quoted(fixture, frame)?;
        if let Some(sealed) = self.sessions.of_client(client, service.index) {
            return Some((service, sealed.session_id, sealed.backend_id));
        }
        let is_clients = |(at, index, _): &&(_, _, _)| *at == client && *index == service.index;
        let (_, _, admission) = fixture.flows.iter().find(is_clients)?;
        Some((service, admission.session_id, admission.backend_id))
    }

    fn admitted(&mut self, fixture: &Fixture, service: &Service, parsed: &Parsed) -> Result<Sealed, Reason> {
        let (payload, from) = parsed.payload()?;
        self.sessions.admit(fixture, service, payload, from, self.jiffies.wrapping_mul(fixture.tick_ns))
    }
}

fn expected(
    verdict: Verdict,
    frame: Vec<u8>,
    service: u32,
    reason: Reason,
    backend: Option<u32>,
) -> Expected {
    Expected { outcome: Outcome { verdict, frame }, service, reason, backend }
}

const fn out_of(backend: &Backend) -> Verdict {
    if backend.ifindex == LOOPBACK { Verdict::Transmit } else { Verdict::Redirect }
}

/// The outcome of an error about a session; `None` if it is passed to this host.
fn icmp_error(
    fixture: &Fixture,
    frame: &[u8],
    service: &Service,
    session: u64,
    backend_id: u16,
) -> Option<Expected> {
    let backend = backend(fixture, service, session, backend_id).ok()?;
    let sent = |sent| {
        let counter = Some(backend.counter);
        Some(expected(out_of(&backend), sent, service.index, Reason::IcmpError, counter))
    };
    if service.forward == FORWARD_L2 && backend.ifindex == LOOPBACK && backend.tag_count == TAGS_KEPT {
        // The error is forwarded unchanged, whatever its content.
        let addresses = [backend.destination_mac, backend.source_mac].concat();
        return sent([&addresses, &frame[12..]].concat());
    }
    let message = icmp::message(frame)?;
    let untagged_enough = if message.tags.len() <= 2 { Ok(()) } else { Err(Reason::Unsupported) };
    match takes(fixture, service, &message, &backend).and(untagged_enough) {
        Ok(()) => sent(forwarding::leaving(&message, service, &backend, session, None).bytes()),
        Err(reason) => Some(expected(Verdict::Drop, frame.to_vec(), service.index, reason, None)),
    }
}

/// Whether a datagram that leaves has a partial checksum, on an interface in generic mode.
fn is_spoilt_in_generic_mode(fixture: &Fixture, datagram: &Packet) -> bool {
    let generic = fixture.macs.iter().any(|entry| entry.ifindex == LOOPBACK && entry.generic == 1);
    generic && datagram.udp_checksum_field() != datagram.clone().completed().udp_checksum_field()
}

/// The backend of a session.
fn backend(fixture: &Fixture, service: &Service, session: u64, backend_id: u16) -> Result<Backend, Reason> {
    let of_service = |backend: &&Backend| u32::from(backend.service_index) == service.index;
    let backend = if backend_id == 0 {
        let position = balance::position(session) as usize;
        let index = fixture.maglev_at(service.index, position).checked_sub(1);
        index.and_then(|index| fixture.backends.get(usize::from(index)))
    } else {
        fixture.backends.iter().filter(of_service).find(|backend| backend.backend_id == backend_id)
    };
    backend.copied().ok_or(Reason::NoBackend)
}

/// Whether the forwarding mode and the route to a backend accept a packet.
fn takes(fixture: &Fixture, service: &Service, inner: &Packet, backend: &Backend) -> Result<(), Reason> {
    let encapsulated = matches!(service.forward, FORWARD_IPIP | FORWARD_GUE);
    if !encapsulated && service.forward != FORWARD_L2 {
        return Err(Reason::NoBackend); // A mode that this model does not have.
    }
    if encapsulated && inner.family() == Family::V6 && backend.v6 == 0 {
        return Err(Reason::NoBackend);
    }
    let len = inner.ip_packet().len() + forwarding::outer_len(service, backend);
    let measured = service.forward != FORWARD_L2 || backend.ifindex != LOOPBACK;
    if measured && len > usize::from(backend.mtu) {
        return Err(Reason::TooBig);
    }
    if service.forward != FORWARD_L2 && inner.ttl <= 1 {
        return Err(Reason::HopLimit);
    }
    let reached = backend.ifindex == LOOPBACK || fixture.egress.contains(&backend.ifindex);
    if reached { Ok(()) } else { Err(Reason::NoBackend) }
}
