//! What should become of any frame: the rules of token.md and of the parser, read a second time as plainly as can be,
//! for packets nobody thought of. Tokens are judged by lb-common on the host, which the vectors vouch for.

use lb_common::{
    backend::Backend,
    balance,
    keyslot::{KeyId, KeySlot},
    reason::Reason,
    service::{FORWARD_GUE, FORWARD_IPIP, FORWARD_L2, FORWARD_LOCAL, Service},
    token::{Claims, Header, Kind, Source, verify::verify},
};

use self::parse::Parsed;
use crate::{
    case::Expected,
    program::{Outcome, Verdict},
    way,
    world::{LOOPBACK, World},
};

mod parse;

/// What is to become of a frame that comes to services in enforce mode.
pub fn judge(world: &World, frame: &[u8]) -> Expected {
    let expected = |verdict, frame: Vec<u8>, service, reason, backend| Expected {
        outcome: Outcome { verdict, frame },
        service,
        reason,
        backend,
    };
    if parse::is_buried(frame) {
        return expected(Verdict::Drop, frame.to_vec(), 0, Reason::Unsupported, None);
    }
    let Some(parsed) = Parsed::of(frame).and_then(|parsed| Some((parsed.service(world)?, parsed))) else {
        return expected(Verdict::Pass, frame.to_vec(), 0, Reason::NotOurs, None);
    };
    let (service, parsed) = parsed;
    let way = admitted(world, &service, &parsed).and_then(|claims| {
        let backend = backend(world, &service, &claims)?;
        takes(world, &service, &parsed, backend.as_ref())?;
        Ok((backend, claims.session_id))
    });
    match way {
        Err(reason) => expected(Verdict::Drop, frame.to_vec(), service.index, reason, None),
        Ok((None, _)) => {
            let delivered = if service.strips() { parsed.stripped().bytes() } else { frame.to_vec() };
            expected(Verdict::Pass, delivered, service.index, Reason::Forwarded, None)
        }
        Ok((Some(backend), session)) => {
            let verdict = if backend.ifindex == LOOPBACK { Verdict::Transmit } else { Verdict::Redirect };
            let sent = if service.strips() { parsed.stripped() } else { parsed.whole() };
            let sent = way::leaving(&sent, &service, &backend, session, None).bytes();
            expected(verdict, sent, service.index, Reason::Forwarded, Some(backend.counter))
        }
    }
}

fn admitted(world: &World, service: &Service, parsed: &Parsed) -> Result<Claims, Reason> {
    let (payload, from) = parsed.payload()?;
    let proof = |header: Header| header.kind() == Kind::Proof;
    if Header::from_payload(payload).is_ok_and(proof) {
        return Err(Reason::Policy);
    }
    let slot = |slot| {
        let in_it = |key: &&KeySlot| KeyId(key.key_id).slot() == slot;
        world.keys.iter().find(in_it).copied().unwrap_or_default()
    };
    verify(payload, &Source::new(from.ip(), from.port()), service, slot, world.now_ns)
}

/// The backend, or none where it is for this host.
fn backend(world: &World, service: &Service, claims: &Claims) -> Result<Option<Backend>, Reason> {
    if service.forward == FORWARD_LOCAL {
        return Ok(None);
    }
    let of_service = |backend: &&Backend| u32::from(backend.service_index) == service.index;
    let backend = if claims.backend_id == 0 {
        let position = balance::position(claims.session_id) as usize;
        let place = world.maglev_at(service.index, position).checked_sub(1);
        place.and_then(|place| world.backends.get(usize::from(place)))
    } else {
        world.backends.iter().filter(of_service).find(|backend| backend.backend_id == claims.backend_id)
    };
    backend.copied().map(Some).ok_or(Reason::NoBackend)
}

/// Whether the way to a backend takes it.
fn takes(world: &World, service: &Service, parsed: &Parsed, backend: Option<&Backend>) -> Result<(), Reason> {
    let Some(backend) = backend else { return Ok(()) };
    let encapsulated = matches!(service.forward, FORWARD_IPIP | FORWARD_GUE);
    if !encapsulated && service.forward != FORWARD_L2 {
        return Err(Reason::NoBackend); // A way that is not built.
    }
    if encapsulated && parsed.is_v6() && backend.v6 == 0 {
        return Err(Reason::NoBackend);
    }
    let inner = if service.strips() { parsed.stripped() } else { parsed.whole() };
    let len = inner.ip_packet().len() + way::outer_len(service, backend);
    let measured = service.forward != FORWARD_L2 || backend.ifindex != LOOPBACK;
    if measured && len > usize::from(backend.mtu) {
        return Err(Reason::TooBig);
    }
    if service.forward != FORWARD_L2 && inner.ttl <= 1 {
        return Err(Reason::HopLimit);
    }
    let reached = backend.ifindex == LOOPBACK || world.egress.contains(&backend.ifindex);
    if reached { Ok(()) } else { Err(Reason::NoBackend) }
}
