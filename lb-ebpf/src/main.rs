//! Tollgate's XDP program: the packet's way, one file per step.
//!
//! parse → service → token → session or tracked (admit, revoke; proof, limit) → balance → forward → verdict. A step takes what the step before it made and
//! returns `Result<Next, Reason>`, so none can run before its turn.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "keys and values lie in maps: by value, they would be copied to the stack"
)]
#![expect(missing_docs, reason = "`#[xdp]` writes a function without documentation around each program")]

mod admit;
mod atomic;
mod balance;
mod checksum;
mod clock;
mod events;
mod flow;
mod forward;
mod icmp;
mod limit;
mod mac;
mod maps;
mod outline;
mod parse;
mod proof;
mod revoke;
mod service;
mod session;
mod token;
mod too_big;
mod tracked;
mod verdict;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{
    live::{Live, Tables},
    nat::Owner,
    reason::Reason,
    service::{FORWARD_LOCAL, FORWARD_NAT, Service},
};
// Here, so that they are `crate::headers` and `crate::packet` to the steps.
use lb_ebpf::{headers, packet};

use crate::{
    forward::{Way, translate},
    maps::LIVE,
    packet::Frame,
    parse::{Packet, Unread},
    verdict::{Counted, Outcome},
};

/// Drops what carries no valid token, sends the rest to its backend, passes on what is for no service.
///
/// Also where a frame lies in several buffers, of which it sees the first.
#[xdp(frags)]
pub fn tollgate(ctx: XdpContext) -> u32 {
    let frame = Frame::of(&ctx);
    let Some(live) = LIVE.get(0) else { return xdp_action::XDP_ABORTED }; // An array of one has it.
    let tables = Tables::from_word(live.tables);
    let outcome = decide(&frame, live, tables);
    verdict::conclude(&ctx, frame.len(), outcome, (live, tables))
}

/// Passes everything: the far end of a test's veth pair, and the floor that a benchmark subtracts.
#[xdp(frags)]
pub fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Tells the daemon, which runs it on a packet of its own, what the kernel's clocks say.
#[xdp]
pub fn clock(ctx: XdpContext) -> u32 {
    match clock::report(&Frame::of(&ctx)) {
        Some(()) => xdp_action::XDP_PASS,
        None => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn decide(frame: &Frame, live: &Live, tables: Tables) -> Outcome {
    let (service, reason, way) = match parse::packet(frame) {
        Ok(packet) => match service::find(tables, &packet.to) {
            Some(service) if !mac::is_own(frame, tables) => return mac::refused(frame, tables, service),
            Some(service) => match datagram(frame, &packet, live, tables, service) {
                Ok((reason, way)) => (service, reason, way),
                Err(reason) => return Outcome::refused(frame, (service.index, service.id), reason),
            },
            None => return translate::answer(frame, &packet, tables),
        },
        Err(Unread::Icmp { .. }) if !mac::is_own(frame, tables) => return Outcome::NotOurs,
        Err(Unread::Icmp { ip, v6 }) => match icmp::error(frame, (ip, v6), tables) {
            Ok((service, way)) => (service, Reason::IcmpError.into(), way),
            Err(outcome) => return outcome,
        },
        Err(Unread::NotOurs) => return Outcome::NotOurs,
        Err(Unread::Buried) => return Outcome::Buried,
    };
    match forward::send(frame, way, service) {
        Ok(delivery) => Outcome::Delivered { service: service.index, reason, delivery },
        Err(Reason::NotOurs) => Outcome::NotOurs,
        // No error is answered by an error (RFC 1122 §3.2.2, RFC 4443 §2.4).
        Err(Reason::TooBig) if reason != Reason::IcmpError.into() => too_big::answer(frame, service),
        Err(reason) => Outcome::refused(frame, (service.index, service.id), reason),
    }
}

/// The way of a service's datagram, and what it is counted under.
#[inline(always)]
fn datagram(
    frame: &Frame,
    packet: &Packet,
    live: &Live,
    tables: Tables,
    service: &Service,
) -> Result<(Counted, Way), Reason> {
    match admitted(frame, packet, live, tables, service) {
        Ok(way) => Ok((Reason::Forwarded.into(), way)),
        Err(reason) if service.observes() && reason.delivered_in_observe() => {
            let reason = Counted::whichever(reason)?;
            observed(frame, packet, tables, service).map(|way| (reason, way))
        }
        Err(reason) => Err(reason),
    }
}

/// The way of a packet that is to carry a token.
#[inline(always)]
fn admitted(
    frame: &Frame,
    packet: &Packet,
    live: &Live,
    tables: Tables,
    service: &Service,
) -> Result<Way, Reason> {
    let datagram = packet.datagram(frame)?;
    let token = token::check(frame, &datagram, &packet.from, service, live)?;
    let session = if service.tracks(token.kind) {
        tracked::of(frame, packet, &datagram, &token, (live, tables), service)?
    } else {
        session::of(frame, packet, &datagram, &token, (live, tables), service)?
    };
    if service.forward == FORWARD_LOCAL && !service.strips() {
        return Ok(Way::Host);
    }
    if service.forward == FORWARD_LOCAL {
        checksum::complete(frame, &datagram, None)?;
        return forward::to_host(frame, &datagram, service);
    }
    checksum::complete(frame, &datagram, Some(tables))?;
    let backend = balance::for_session(tables, service, session)?;
    forward::to_backend(frame, &datagram, service, session.session_id, backend)
}

/// The way of a packet that `mode = "enforce"` would drop.
#[inline(always)]
fn observed(frame: &Frame, packet: &Packet, tables: Tables, service: &Service) -> Result<Way, Reason> {
    if service.forward == FORWARD_LOCAL {
        return Ok(Way::Host);
    }
    match packet.datagram(frame) {
        Ok(datagram) => checksum::complete(frame, &datagram, Some(tables))?,
        // Whatever else it is, it has no ports to translate.
        Err(reason) if service.forward == FORWARD_NAT => return Err(reason),
        Err(_) => {}
    }
    let backend = balance::for_client(tables, service, &packet.from)?;
    let ip = (packet.ip, packet.from.v6);
    let owner = Owner::source(service.id, packet.from.address);
    forward::untouched(frame, ip, service, owner, false, backend)
}

/// The licence that lets a program call the kernel's GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier accepts no program in which this can be reached.
    loop {}
}
