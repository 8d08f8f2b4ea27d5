//! Step 10: the forwarding action of a packet. The submodules implement the forwarding modes.

pub mod descriptor;
mod encapsulate;
pub mod head;
pub mod nat;
mod relay;

use lb_common::{
    nat::Owner,
    reason::{Reason, ReasonCode},
    service::{FORWARD_GUE, FORWARD_IPIP, FORWARD_L2, FORWARD_NAT, Service},
};

use crate::{balance::Chosen, outcome::Delivery, packet::Cursor, parse::Datagram, run::Run};

/// The forwarding action for a packet.
#[derive(Clone, Copy)]
pub enum Action {
    /// To a backend, with other MAC addresses and otherwise unchanged.
    RewriteMacs(Chosen),
    /// To a backend, by the service's forwarding mode. The transmit descriptor is complete.
    Send(Chosen),
    /// As `Send`, for an ICMP error that embeds a translated answer.
    TranslateIcmpError(Chosen),
    /// To the network stack of this host, unchanged.
    PassToHost,
    /// As `PassToHost`, without the token. The transmit descriptor is complete.
    StripToHost,
}

/// The action for a datagram with a valid token that goes to this host without its token.
#[inline(always)]
pub fn to_host(run: &mut Run, datagram: &Datagram, service: &Service) -> Result<Action, ReasonCode> {
    descriptor::describe_datagram(run, datagram, service, 0)?;
    Ok(Action::StripToHost)
}

/// The action for a datagram with a valid token that goes to a backend.
#[inline(always)]
pub fn to_backend(
    run: &mut Run,
    datagram: &Datagram,
    service: &Service,
    session_id: u64,
    backend: Chosen,
) -> Result<Action, ReasonCode> {
    if !service.strips() && relay::is_enough(&run.frame, service, &backend) {
        return Ok(Action::RewriteMacs(backend));
    }
    descriptor::describe_datagram(run, datagram, service, session_id)?;
    Ok(Action::Send(backend))
}

/// The action for any packet that goes to a backend with its payload unchanged. `owner` owns its translation.
#[inline(always)]
pub fn unchanged(
    run: &mut Run,
    ip: (Cursor, bool),
    service: &Service,
    owner: Owner,
    backend: Chosen,
) -> Result<Action, ReasonCode> {
    if relay::is_enough(&run.frame, service, &backend) {
        return Ok(Action::RewriteMacs(backend));
    }
    descriptor::describe_packet(run, ip, owner)?;
    Ok(Action::Send(backend))
}

/// Carries out an action.
#[inline(always)]
pub fn send(run: &mut Run, action: Action, service: &Service) -> Result<Delivery, ReasonCode> {
    let (frame, mailboxes) = (&run.frame, &mut run.mailboxes);
    let backend = match action {
        Action::PassToHost => return Ok(Delivery::Host),
        Action::StripToHost => {
            relay::strip(frame, mailboxes)?;
            return Ok(Delivery::Host);
        }
        Action::RewriteMacs(backend) => {
            relay::rewrite_macs(frame, &backend)?;
            backend
        }
        Action::TranslateIcmpError(backend) => {
            nat::icmp_error_to_backend(frame, mailboxes, backend.index)?;
            backend
        }
        Action::Send(backend) => {
            match service.forward {
                FORWARD_L2 => relay::relay(frame, mailboxes, backend.index),
                FORWARD_IPIP => encapsulate::ipip(frame, mailboxes, backend.index),
                FORWARD_GUE => encapsulate::gue(frame, mailboxes, backend.index),
                FORWARD_NAT => nat::to_backend(frame, mailboxes, backend.index),
                // A mode of a newer daemon.
                _ => Err(Reason::NoBackend.into()),
            }?;
            backend
        }
    };
    Ok(Delivery::Send { ifindex: backend.ifindex, counter: backend.counter })
}
