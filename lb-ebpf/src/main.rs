//! Tollgate's XDP program: the packet path, one file per step.
//!
//! parse → service → token → session or stateful (admit, revoke; proof, limit) → balance → forward → verdict. A step
//! takes the result of the step before it and returns `Result<Next, ReasonCode>`, so the types enforce the order of the
//! steps.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "keys and values are in maps: by value, they would be copied to the stack"
)]
#![expect(missing_docs, reason = "`#[xdp]` writes a function without documentation around each program")]

mod admit;
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
mod outcome;
mod parse;
mod path_mtu;
mod proof;
mod revoke;
mod run;
mod scratch;
mod service;
mod session;
mod shared;
mod stateful;
mod subprogram;
mod token;
mod verdict;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{
    nat::Owner,
    reason::{Reason, ReasonCode},
    service::{FORWARD_LOCAL, FORWARD_NAT, Service},
};
// Imported here, so that the steps can use `crate::headers` and so on.
use lb_ebpf::{headers, packet, verifier, wire};

use crate::{
    forward::{Action, nat},
    outcome::Outcome,
    packet::Frame,
    parse::{NoDatagram, Packet},
    run::Run,
};

/// Drops packets to services without a valid token, sends valid ones to their backends, passes packets for no service.
///
/// `frags`: the program accepts frames in several buffers. It can read the first buffer directly.
#[xdp(frags)]
pub fn tollgate(ctx: XdpContext) -> u32 {
    let Some(mut run) = Run::of(&ctx) else { return xdp_action::XDP_ABORTED }; // An array of one always has its value.
    let outcome = decide(&mut run);
    verdict::conclude(&run, outcome)
}

/// Passes every frame. Tests attach it to the peer of a veth pair, and a benchmark subtracts its cost.
#[xdp(frags)]
pub fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Reports the time of the kernel's clocks to the daemon, which runs it on its own packet.
#[xdp]
pub fn clock(ctx: XdpContext) -> u32 {
    match clock::report(&Frame::of(&ctx)) {
        Some(()) => xdp_action::XDP_PASS,
        None => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn decide(run: &mut Run) -> Outcome {
    let (service, reason, action) = match parse::packet(run) {
        Ok(packet) => match service::find(run.tables, &packet.to) {
            Some(service) if !mac::is_own(run) => return mac::refused(run, service),
            Some(service) => match datagram(run, &packet, service) {
                Ok((reason, action)) => (service, reason, action),
                Err(reason) => return Outcome::refused(&run.frame, service.index, service.id, reason),
            },
            None => return nat::answer(run, &packet),
        },
        Err(NoDatagram::Icmp { .. }) if !mac::is_own(run) => return Outcome::NotOurs,
        Err(NoDatagram::Icmp { ip, v6 }) => match icmp::error(run, (ip, v6)) {
            Ok((service, action)) => (service, Reason::IcmpError.into(), action),
            Err(outcome) => return outcome,
        },
        Err(NoDatagram::NotOurs) => return Outcome::NotOurs,
        Err(NoDatagram::TooManyVlanTags) => return Outcome::TooManyVlanTags,
    };
    match forward::send(run, action, service) {
        Ok(delivery) => Outcome::Delivered { service: service.index, reason, delivery },
        // An ICMP error is not answered by an ICMP error (RFC 1122 §3.2.2, RFC 4443 §2.4).
        Err(error) if error.is(Reason::TooBig) && !reason.is(Reason::IcmpError) => {
            path_mtu::answer(run, service)
        }
        Err(error) => Outcome::refused(&run.frame, service.index, service.id, error),
    }
}

/// The forwarding action for the datagram of a service, and the reason that it is counted under.
#[inline(always)]
fn datagram(run: &mut Run, packet: &Packet, service: &Service) -> Result<(ReasonCode, Action), ReasonCode> {
    match admitted(run, packet, service) {
        Ok(action) => Ok((Reason::Forwarded.into(), action)),
        Err(reason) if service.observes() && reason.delivered_in_observe() => {
            let hidden = verifier::forget_number(reason.number(), &mut run.mailboxes.open()?.hidden);
            let reason = ReasonCode::new(hidden).ok_or(Reason::Internal)?;
            Ok((reason, observed(run, packet, service)?))
        }
        Err(reason) => Err(reason),
    }
}

/// The forwarding action for a packet whose token is valid.
#[inline(always)]
fn admitted(run: &mut Run, packet: &Packet, service: &Service) -> Result<Action, ReasonCode> {
    let datagram = packet.datagram(&run.frame)?;
    let token = token::check(run, &datagram, &packet.from, service)?;
    let session = if service.is_stateful(token.kind) {
        stateful::session(run, packet, &datagram, &token, service)?
    } else {
        session::session(run, packet, &datagram, &token, service)?
    };
    // Opaque: LLVM would leave the backend of an action undefined on this path and store it, which Linux 6.1 rejects.
    let forward = verifier::opaque(service.forward.into());
    if forward == FORWARD_LOCAL.into() && !service.strips() {
        return Ok(Action::PassToHost);
    }
    if forward == FORWARD_LOCAL.into() {
        checksum::complete(run, &datagram, false)?;
        return forward::to_host(run, &datagram, service);
    }
    checksum::complete(run, &datagram, true)?;
    let backend = balance::for_session(run.tables, service, session)?;
    forward::to_backend(run, &datagram, service, session.session_id, backend)
}

/// The forwarding action for a packet that `mode = "enforce"` would drop.
#[inline(always)]
fn observed(run: &mut Run, packet: &Packet, service: &Service) -> Result<Action, ReasonCode> {
    if service.forward == FORWARD_LOCAL {
        return Ok(Action::PassToHost);
    }
    match packet.datagram(&run.frame) {
        Ok(datagram) => checksum::complete(run, &datagram, true)?,
        // A packet that is not a whole datagram has no ports to translate.
        Err(reason) if service.forward == FORWARD_NAT => return Err(reason),
        Err(_) => {}
    }
    let backend = balance::for_client(run.tables, service, &packet.from)?;
    let ip = (packet.ip, packet.from.v6);
    let owner = Owner::source(service.id, packet.from.address);
    forward::unchanged(run, ip, service, owner, backend)
}

/// The licence that lets a program call the kernel's GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects a program that can reach this.
    loop {}
}
