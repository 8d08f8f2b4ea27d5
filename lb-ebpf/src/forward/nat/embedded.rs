//! ICMP errors of `forward = "nat"`: the embedded packet is rewritten to the packet that the receiver of the error has
//! sent (RFC 5508 §4).
//!
//! A router on a client's side embeds an answer in the form in which it left this node, not in the form in which the
//! backend sent it. A router on a backend's side embeds a datagram in the form in which it left this node, not in the
//! form in which the client sent it.
//!
//! Each direction has two subprograms, which are called in sequence: one for the embedded packet, and one for the
//! headers before it. One subprogram for both would exceed the stack.

use lb_common::{
    control::Tables,
    nat::{COOKIE_MASK_V4, COOKIE_MASK_V6, Ports},
    reason::{Reason, ReasonCode},
    scratch::{EmbeddedPacket, Scratch, TranslationOfPacket, TransmitDescriptor, WRONG_COOKIE_COST_NS},
};

use super::{
    check, port,
    translation::{self, Progress},
};
use crate::{
    forward::{
        descriptor::{backend_at, ip_at},
        head::{self, L2Header},
    },
    headers::{Address, Ip, Ipv4, Ipv6, Udp, replace_addresses},
    maps::NAT_PORTS,
    outcome::Outcome,
    packet::{Cursor, Frame},
    run::Run,
    scratch::Mailboxes,
    subprogram::subprogram,
    wire::ICMP_LEN,
};

/// Sends an ICMP error about an answer to the backend that sent the answer; the scratch has its embedded packet. Fails
/// with `NotOurs` if the client has no translation towards that backend; then the frame is unchanged.
#[inline(always)]
pub fn icmp_error_to_backend(
    frame: &Frame,
    mailboxes: &mut Mailboxes,
    backend: u32,
) -> Result<(), ReasonCode> {
    rewrite_embedded_for_backend(frame, mailboxes, backend)?;
    send_icmp_error_to_backend(frame, mailboxes, backend)
}

/// Sends an ICMP error about a packet that left a port of this node to the client of that packet.
#[inline(always)]
pub fn icmp_error_to_client(run: &mut Run, (ip, v6): (Cursor, bool)) -> Outcome {
    let ip_at = ip.offset_in(&run.frame) as u32;
    let rewritten = check::checked(run, |frame, mailboxes, tables| {
        rewrite_embedded_for_client(frame, mailboxes, ip_at, v6, tables)
    });
    let sent = match rewritten {
        Ok(Progress::Sent) => {
            send_icmp_error_to_client(&run.frame, &mut run.mailboxes).map(|()| Progress::Sent)
        }
        other => other,
    };
    translation::outcome(run, sent, Reason::IcmpError)
}

subprogram! {
    /// Rewrites the embedded packet to the answer that the backend sent.
    fn rewrite_embedded_for_backend(backend: u32) -> () = rewritten_for_backend;
    /// Rewrites the headers before it, and sends the frame.
    fn send_icmp_error_to_backend(backend: u32) -> () = sent_to_backend;
    /// Rewrites the embedded packet to the datagram that the client sent, and leaves the translation in the scratch.
    /// Fails if there is no translation, or if the embedded packet does not have the cookie of the translation; then
    /// the frame is unchanged.
    fn rewrite_embedded_for_client(ip_at: u32, v6: bool, tables: Tables) -> Progress = rewritten_for_client;
    /// Rewrites the headers before it, and sends the frame.
    fn send_icmp_error_to_client() -> () = sent_to_client;
}

#[inline(always)]
fn rewritten_for_backend(frame: &Frame, mailboxes: &mut Mailboxes, backend: u32) -> Result<(), ReasonCode> {
    let backend = backend_at(backend)?;
    let Scratch { transmit, translation: TranslationOfPacket { key, value: wanted, .. }, embedded, .. } =
        mailboxes.open()?;
    wanted.client_be = embedded.to.client_be;
    wanted.client_port_be = embedded.to.client_port_be;
    wanted.service_be = embedded.from.address_be;
    wanted.service_port_be = embedded.from.port_be as u16;
    wanted.owner = transmit.owner;
    (key.backend_be, key.backend_port_be) = (backend.address_be, backend.port_be);
    // An answer after the timeout is not part of a session, so neither is an error about it.
    wanted.used_at_ns = translation::now_ns()?;
    port::find_port_of_client(frame, mailboxes)?;
    let Scratch { transmit, translation, embedded, .. } = mailboxes.open()?;
    let addresses = [&backend.address_be, &backend.source_be];
    let ports = [backend.port_be, translation.key.node_port_be];
    match transmit.v6 {
        0 => rewrite::<Ipv4>(frame, transmit, embedded, addresses, ports, |_| {}),
        _ => rewrite::<Ipv6>(frame, transmit, embedded, addresses, ports, |_| {}),
    }
}

#[inline(always)]
fn sent_to_backend(frame: &Frame, mailboxes: &mut Mailboxes, backend: u32) -> Result<(), ReasonCode> {
    let backend = backend_at(backend)?;
    let Scratch { transmit, embedded, .. } = mailboxes.open()?;
    let l2 = L2Header::of(frame, ip_at(transmit))?.toward(frame, backend);
    match transmit.v6 {
        0 => send::<Ipv4>(frame, transmit, embedded, &l2, None, &backend.address_be),
        _ => send::<Ipv6>(frame, transmit, embedded, &l2, None, &backend.address_be),
    }
}

#[inline(always)]
fn rewritten_for_client(
    frame: &Frame,
    mailboxes: &mut Mailboxes,
    ip_at: u32,
    v6: bool,
    tables: Tables,
) -> Result<Progress, ReasonCode> {
    let Scratch { transmit, translation, embedded, wrong_cookie_budget, .. } = mailboxes.open()?;
    (transmit.ip_at, transmit.stripped, transmit.v6) = (ip_at, 0, v6.into());
    let TranslationOfPacket { key, value: found, .. } = translation;
    let from = L2Header::of(frame, self::ip_at(transmit)).map_err(|_| Reason::NotOurs)?;
    let ports = Ports::from_word(NAT_PORTS.load()).ok_or(Reason::NotOurs)?;
    if !ports.contain(u16::from_be(embedded.from.port_be as u16)) {
        return Err(Reason::NotOurs.into());
    }
    key.backend_be = embedded.to.client_be;
    key.backend_port_be = embedded.to.client_port_be;
    key.node_port_be = embedded.from.port_be as u16;
    translation::read(frame, &from, key, &embedded.from.address_be, found)?;
    let right = match v6 {
        false => has_cookie::<Ipv4>(frame, transmit, found.cookie & COOKIE_MASK_V4),
        true => has_cookie::<Ipv6>(frame, transmit, found.cookie & COOKIE_MASK_V6),
    };
    // Every cookie takes budget, and a correct cookie returns it. After too many wrong guesses, a correct cookie is
    // refused too.
    let before = *wrong_cookie_budget;
    if !wrong_cookie_budget.take(translation::now_ns()?, WRONG_COOKIE_COST_NS) || !right {
        return Err(Reason::NotOurs.into());
    }
    *wrong_cookie_budget = before;
    if !translation::is_checked(found, tables)? {
        return Ok(Progress::NeedsCheck);
    }
    let addresses = [&found.client_be, &found.service_be];
    let ports = [found.client_port_be, found.service_port_be];
    // The client's original value of the field with the cookie is unknown, so it is set to 0.
    match v6 {
        false => rewrite::<Ipv4>(frame, transmit, embedded, addresses, ports, |ip| ip.set_cookie(0)),
        true => rewrite::<Ipv6>(frame, transmit, embedded, addresses, ports, |ip| ip.set_cookie(0)),
    }?;
    Ok(Progress::Sent)
}

#[inline(always)]
fn sent_to_client(frame: &Frame, mailboxes: &mut Mailboxes) -> Result<(), ReasonCode> {
    let Scratch { transmit, translation, embedded, .. } = mailboxes.open()?;
    let found = &translation.value;
    let l2 = translation::l2_to_client(found);
    match transmit.v6 {
        0 => send::<Ipv4>(frame, transmit, embedded, &l2, Some(&found.service_be), &found.client_be),
        _ => send::<Ipv6>(frame, transmit, embedded, &l2, Some(&found.service_be), &found.client_be),
    }
}

/// Whether the embedded packet has this cookie.
#[inline(always)]
fn has_cookie<I: Ip>(frame: &Frame, transmit: &TransmitDescriptor, cookie: u32) -> bool {
    let at = frame.start().skip(ip_at(transmit)).skip(I::LEN + ICMP_LEN);
    I::read(at).and_then(|embedded_ip| embedded_ip.cookie()) == Some(cookie)
}

/// Rewrites the embedded packet in place, and applies `change` to its IP header.
#[inline(always)]
fn rewrite<I: Ip>(
    frame: &Frame,
    transmit: &TransmitDescriptor,
    embedded: &mut EmbeddedPacket,
    addresses: [&Address; 2],
    ports: [u16; 2],
    change: impl FnOnce(&mut I),
) -> Result<(), ReasonCode> {
    let at = frame.start().skip(ip_at(transmit)).skip(I::LEN + ICMP_LEN);
    let mut ip = I::read(at).ok_or(Reason::Malformed)?;
    let mut udp = Udp::read(at, I::LEN).ok_or(Reason::Malformed)?;
    let before = ip.sum_of_header().join(udp.sum_of_header());
    let new = [*addresses[0], *addresses[1]];
    udp.rewrite_addresses(&ip.addresses(), &new);
    udp.set_ports(ports[0], ports[1]);
    ip.rewrite_addresses(new);
    change(&mut ip);
    ip.write(at, 0).ok_or(Reason::Malformed)?;
    udp.write(at, I::LEN).ok_or(Reason::Malformed)?;
    let changed = ip.sum_of_header().join(udp.sum_of_header()).part(before);
    embedded.checksum_change = changed.field().into();
    Ok(())
}

/// Sends an error whose embedded packet has been rewritten. `source`: its new source address, if it changes.
#[inline(always)]
fn send<I: Ip>(
    frame: &Frame,
    transmit: &TransmitDescriptor,
    embedded: &EmbeddedPacket,
    l2: &L2Header,
    source: Option<&Address>,
    destination: &Address,
) -> Result<(), ReasonCode> {
    let (mut ip, mut icmp) = head::own::<I>(frame, transmit)?;
    ip.decrement_ttl()?;
    let old = ip.addresses();
    let new = [*source.unwrap_or(&old[0]), *destination];
    icmp.change_icmp(|field| {
        let field = field.subtract(embedded.checksum_change as u16);
        // ICMPv6 covers the addresses (RFC 4443 §2.3).
        if I::V6 { replace_addresses(field, &old, &new) } else { field }
    });
    ip.rewrite_addresses(new);
    head::write(frame, transmit, l2, I::ETHER_TYPE, head::NOTHING, ip, icmp)
}
