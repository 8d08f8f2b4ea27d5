//! Answers of backends to clients.

use lb_common::{
    control::Tables,
    nat::{Ports, TranslationKey},
    reason::{Reason, ReasonCode},
    scratch::{Scratch, TranslationOfPacket, TransmitDescriptor},
};

use super::{
    check, fragment,
    translation::{self, Progress},
};
use crate::{
    checksum::complete_checksum,
    forward::{
        descriptor::ip_at,
        head::{self, L2Header},
    },
    headers::{Ip, Ipv4, Ipv6},
    mac,
    maps::NAT_PORTS,
    outcome::Outcome,
    packet::Frame,
    parse::Packet,
    run::Run,
    scratch::Mailboxes,
    subprogram::subprogram,
};

/// The outcome of a packet for no service: a backend's answer goes to its client.
#[inline(always)]
pub fn answer(run: &mut Run, packet: &Packet) -> Outcome {
    let Some(ports) = Ports::from_word(NAT_PORTS.load()) else {
        return Outcome::NotOurs;
    };
    let to_port = u16::from_be(packet.to.port_be as u16);
    let whole = packet.is_whole() && ports.contain(to_port);
    let part = packet.is_fragment() && (ports.contain(to_port) || to_port == 0);
    if !(whole || part) || !mac::is_own(run) {
        return Outcome::NotOurs;
    }
    let (ip_at, v6) = (packet.ip.offset_in(&run.frame) as u32, packet.from.v6);
    let sent = if whole {
        answer_whole(run, ip_at, v6)
    } else {
        check::checked(run, |frame, mailboxes, tables| {
            fragment::answer_fragment(frame, mailboxes, ip_at, v6, tables)
        })
    };
    translation::outcome(run, sent, Reason::Reply)
}

#[inline(always)]
fn answer_whole(run: &mut Run, ip_at: u32, v6: bool) -> Result<Progress, ReasonCode> {
    let send = |run: &mut Run, complete| {
        check::checked(run, |frame, mailboxes, tables| {
            answer_datagram(frame, mailboxes, ip_at, v6, tables, complete)
        })
    };
    match send(run, false)? {
        Progress::NeedsChecksum => {
            match complete_checksum(&run.frame, &mut run.mailboxes, ip_at, v6, true, run.tables) {
                Ok(()) => send(run, true),
                Err(reason) if reason.is(Reason::PartialChecksum) => Err(reason),
                // Its lengths contradict each other or the frame: it passes to this host's network stack.
                Err(_) => Err(Reason::NotOurs.into()),
            }
        }
        progress => Ok(progress),
    }
}

subprogram! {
    /// Rewrites an answer, and leaves its translation in the scratch. `complete`: its checksum has been computed,
    /// although it can still look partial by chance.
    fn answer_datagram(ip_at: u32, v6: bool, tables: Tables, complete: bool) -> Progress = answered;
}

#[inline(always)]
fn answered(
    frame: &Frame,
    mailboxes: &mut Mailboxes,
    ip_at: u32,
    v6: bool,
    tables: Tables,
    complete: bool,
) -> Result<Progress, ReasonCode> {
    let Scratch { transmit, translation, .. } = mailboxes.open()?;
    (transmit.ip_at, transmit.stripped) = (ip_at, 0);
    match v6 {
        false => to_client::<Ipv4>(frame, transmit, translation, tables, complete),
        true => to_client::<Ipv6>(frame, transmit, translation, tables, complete),
    }
}

#[inline(always)]
fn to_client<I: Ip>(
    frame: &Frame,
    transmit: &TransmitDescriptor,
    TranslationOfPacket { key, value: translation, .. }: &mut TranslationOfPacket,
    tables: Tables,
    complete: bool,
) -> Result<Progress, ReasonCode> {
    let from = L2Header::of(frame, ip_at(transmit)).map_err(|_| Reason::NotOurs)?;
    let (mut ip, mut udp) = head::own::<I>(frame, transmit).map_err(|_| Reason::NotOurs)?;
    let [backend_be, node_be] = ip.addresses();
    let [backend_port_be, node_port_be] = udp.ports_be();
    *key = TranslationKey { backend_be, backend_port_be, node_port_be };
    translation::read(frame, &from, key, &node_be, translation)?;
    if !translation::is_checked(translation, tables)? {
        return Ok(Progress::NeedsCheck);
    }
    if !complete && udp.is_partial(&ip) {
        return Ok(Progress::NeedsChecksum);
    }
    ip.decrement_ttl()?;
    let l2 = translation::l2_to_client(translation);
    let to = [translation.service_be, translation.client_be];
    udp.rewrite_addresses(&ip.addresses(), &to);
    udp.set_ports(translation.service_port_be, translation.client_port_be);
    ip.rewrite_addresses(to);
    head::write(frame, transmit, &l2, I::ETHER_TYPE, head::NOTHING, ip, udp)?;
    Ok(Progress::Sent)
}
