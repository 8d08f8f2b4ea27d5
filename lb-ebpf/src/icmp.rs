//! ICMP errors about answers of a service's backends: each error is sent to the backend of its session.
//!
//! A backend that answers clients directly would never receive these errors, because they are sent to the service's
//! address, which leads to this node. The client in the embedded packet determines the session of an error, by the
//! flows (docs/adr/0010).

use lb_common::{
    flow::FlowKey,
    nat::{Owner, Ports},
    reason::{Reason, ReasonCode},
    scratch::EmbeddedPacket,
    service::{FORWARD_LOCAL, FORWARD_NAT, Service, ServiceKey},
};

use crate::{
    admit::Admitted,
    balance,
    forward::{self, Action, nat},
    headers::{Ip, Ipv4, Ipv6, same_address, v4_mapped},
    maps::{FLOWS, NAT_PORTS},
    outcome::Outcome,
    packet::{Cursor, Frame},
    run::Run,
    scratch::Mailboxes,
    service,
    shared::{Shared, field},
    subprogram::subprogram,
    verifier::IP_AT_MASK,
    wire::{FRAGMENT_OFFSET, ICMP_LEN, IPV4_VERSION_IHL, protocol},
};

/// The service whose datagram an ICMP message embeds, and the action that sends the message to the datagram's backend.
/// If there is no such service, the outcome of the message.
#[inline(always)]
pub fn error(run: &mut Run, (ip, v6): (Cursor, bool)) -> Result<(&'static Service, Action), Outcome> {
    let ip_at = ip.offset_in(&run.frame) as u32;
    let embedded = read_embedded(&run.frame, &mut run.mailboxes, ip_at, v6)
        .and_then(|()| Ok(&mut run.mailboxes.open()?.embedded))
        .map_err(|_| Outcome::NotOurs)?;
    if embedded.from.port_be == 0 {
        return Err(Outcome::NotOurs); // Port 0 means that the ports cannot be read.
    }
    match service::find(run.tables, &embedded.from) {
        Some(service) => to_backend(run, (ip, v6), service).ok_or(Outcome::NotOurs),
        None => Err(to_client(run, (ip, v6))),
    }
}

#[inline(always)]
fn to_backend(
    run: &mut Run,
    ip: (Cursor, bool),
    service: &'static Service,
) -> Option<(&'static Service, Action)> {
    if service.forward == FORWARD_LOCAL {
        return None;
    }
    let client = &mut run.mailboxes.open().ok()?.embedded.to;
    client.service_index = service.index as u16;
    let flow = Shared::entry(&FLOWS, client)?;
    let (session_id, backend_id) = (field!(flow, session_id).read(), field!(flow, backend_id).read());
    let session = Admitted { session_id, backend_id };
    let backend = balance::for_session(run.tables, service, session).ok()?;
    let owner = Owner::session(service.id, session.session_id);
    let action = forward::unchanged(run, ip, service, owner, backend).ok()?;
    Some((service, if service.forward == FORWARD_NAT { Action::TranslateIcmpError(backend) } else { action }))
}

/// An error about a packet that left a port of this node, on a backend's side.
#[inline(always)]
fn to_client(run: &mut Run, ip: (Cursor, bool)) -> Outcome {
    if Ports::from_word(NAT_PORTS.load()).is_none() {
        return Outcome::NotOurs;
    }
    nat::icmp_error_to_client(run, ip)
}

subprogram! {
    /// Reads the packet that an ICMP error embeds into the scratch. Fails with `NotOurs` if it is not a datagram from
    /// the address to which the error was sent.
    fn read_embedded(ip_at: u32, v6: bool) -> () = read;
}

#[inline(always)]
fn read(frame: &Frame, mailboxes: &mut Mailboxes, ip_at: u32, v6: bool) -> Result<(), ReasonCode> {
    let ip = frame.start().skip(ip_at as usize & IP_AT_MASK);
    let embedded = match v6 {
        false => embedded::<Ipv4>(ip),
        true => embedded::<Ipv6>(ip),
    };
    mailboxes.open()?.embedded = embedded.ok_or(Reason::NotOurs)?;
    Ok(())
}

#[inline(always)]
fn embedded<I: Ip>(ip: Cursor) -> Option<EmbeddedPacket> {
    let [.., to] = I::read(ip)?.addresses();
    let icmp = ip.skip(I::LEN);
    let embedded = icmp.skip(ICMP_LEN);
    let header = I::read(embedded)?;
    let datagram = header.protocol() == protocol::UDP && has_ports::<I>(embedded);
    let [from, client_be] = header.addresses();
    // In the table, a v4-mapped address belongs to an IPv4 service. Such an address is not valid on the wire.
    let mapped = I::V6 && from[0] == 0 && from[1] == 0 && from[2] == v4_mapped(0)[2];
    if !is_error::<I>(icmp.read(0)?) || !datagram || !same_address(&from, &to) || mapped {
        return None;
    }
    let [port, client_port_be] = embedded.read(I::LEN)?;
    Some(EmbeddedPacket {
        from: ServiceKey::v6(from, port),
        to: FlowKey { client_be, client_port_be, service_index: 0 },
        checksum_change: 0,
    })
}

/// Unreachable, too big, time exceeded, parameter problem (RFC 792, RFC 4443).
#[inline(always)]
const fn is_error<I: Ip>(kind: u8) -> bool {
    if I::V6 { matches!(kind, 1..=4) } else { matches!(kind, 3 | 11 | 12) }
}

/// Whether ports follow an IP header.
#[inline(always)]
fn has_ports<I: Ip>(at: Cursor) -> bool {
    if I::V6 {
        return true;
    }
    let Some(header) = Ipv4::read(at) else { return false };
    header.version_ihl() == IPV4_VERSION_IHL && header.fragment() & FRAGMENT_OFFSET == 0
}
