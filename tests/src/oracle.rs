//! What should become of any frame: the rules of token.md and of the parser, read a second time as plainly as can be,
//! for packets nobody thought of. Tokens are judged by lb-common on the host, which the vectors vouch for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lb_common::{
    backend::Backend,
    balance,
    keyslot::{KeyId, KeySlot},
    reason::Reason,
    service::{FORWARD_LOCAL, Service},
    token::{Claims, Header, Kind, Source, header, verify::verify},
};

use crate::{
    case::Expected,
    packet::{ETHER_TYPE_IPV4, ETHERNET_LEN, IPV4_LEN, TAG_8021AD, TAG_8021Q, TAG_LEN, UDP, UDP_LEN},
    program::{Outcome, Verdict},
    world::World,
};

/// What is to become of a frame that comes to services in enforce mode.
pub fn judge(world: &World, frame: &[u8]) -> Expected {
    let expected = |verdict, frame: Vec<u8>, service, reason, backend| Expected {
        outcome: Outcome { verdict, frame },
        service,
        reason,
        backend,
    };
    if (0..5).all(|tags| is_tag(frame, tags)) {
        return expected(Verdict::Drop, frame.to_vec(), 0, Reason::Unsupported, None);
    }
    let Some(parsed) = Parsed::of(frame).and_then(|parsed| Some((parsed.service(world)?, parsed))) else {
        return expected(Verdict::Pass, frame.to_vec(), 0, Reason::NotOurs, None);
    };
    let (service, parsed) = parsed;
    match parsed.admitted(world, &service).and_then(|claims| way(world, &service, &claims)) {
        Err(reason) => expected(Verdict::Drop, frame.to_vec(), service.index, reason, None),
        Ok(way) => {
            let mut sent = if service.strips() { strip(frame, parsed.ip_at) } else { frame.to_vec() };
            let Some(Backend { destination_mac, source_mac, counter, .. }) = way else {
                return expected(Verdict::Pass, sent, service.index, Reason::Forwarded, None);
            };
            sent[..12].copy_from_slice(&[destination_mac, source_mac].concat());
            expected(Verdict::Transmit, sent, service.index, Reason::Forwarded, Some(counter))
        }
    }
}

/// A frame with the header of an IPv4 packet of UDP.
struct Parsed<'a> {
    tags: usize,
    ip_at: usize,
    ip: &'a [u8],
    /// Source and destination port, where this is a datagram's beginning and the frame holds it.
    ports: Option<(u16, u16)>,
}

/// Whether a frame has a tag below so many.
fn is_tag(frame: &[u8], tags: usize) -> bool {
    matches!(be16(frame, ETHERNET_LEN - 2 + TAG_LEN * tags), Some(TAG_8021Q | TAG_8021AD))
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl<'a> Parsed<'a> {
    fn of(frame: &'a [u8]) -> Option<Self> {
        let type_at = |tags: usize| be16(frame, ETHERNET_LEN - 2 + TAG_LEN * tags);
        let tags = (0..5).find(|tags| !is_tag(frame, *tags))?;
        if type_at(tags)? != ETHER_TYPE_IPV4 {
            return None;
        }
        let ip_at = ETHERNET_LEN + TAG_LEN * tags;
        let ip = frame.get(ip_at..).filter(|ip| ip.len() >= IPV4_LEN && ip[9] == UDP)?;
        let mut parsed = Self { tags, ip_at, ip, ports: None };
        if parsed.fragment_offset() == 0 && parsed.header_len() >= IPV4_LEN {
            let udp = parsed.header_len();
            parsed.ports = be16(ip, udp).zip(be16(ip, udp + 2));
        }
        Some(parsed)
    }

    fn header_len(&self) -> usize {
        usize::from(self.ip[0] & 0xf) * 4
    }

    fn fragment_offset(&self) -> u16 {
        u16::from_be_bytes([self.ip[6], self.ip[7]]) & 0x1fff
    }

    fn address(&self, at: usize) -> Ipv4Addr {
        Ipv4Addr::new(self.ip[at], self.ip[at + 1], self.ip[at + 2], self.ip[at + 3])
    }

    /// The service it is for; without ports, the first by id of all at its address.
    fn service(&self, world: &World) -> Option<Service> {
        let to = IpAddr::V4(self.address(16));
        let is_for = |at: &SocketAddr| match self.ports {
            Some((_, port)) => *at == SocketAddr::new(to, port),
            None => at.ip() == to,
        };
        let services = world.services.iter().filter(|(at, _)| is_for(at)).map(|(_, service)| *service);
        services.min_by_key(|service| service.id)
    }

    fn admitted(&self, world: &World, service: &Service) -> Result<Claims, Reason> {
        if self.fragment_offset() != 0 || self.ip[6] & 0x20 != 0 {
            return Err(Reason::Fragment);
        }
        let (from_port, _) = self.ports.ok_or(Reason::Malformed)?;
        if self.ip[0] >> 4 != 4 {
            return Err(Reason::Malformed);
        }
        if self.header_len() != IPV4_LEN || self.tags > 2 {
            return Err(Reason::Unsupported);
        }
        let (total_len, udp_len) =
            be16(self.ip, 2).zip(be16(self.ip, IPV4_LEN + 4)).ok_or(Reason::Malformed)?;
        let datagram = self.ip.get(IPV4_LEN..usize::from(total_len)).ok_or(Reason::Malformed)?;
        if datagram.len() != usize::from(udp_len) || datagram.len() < UDP_LEN {
            return Err(Reason::Malformed);
        }
        let payload = &datagram[UDP_LEN..];
        let proof = |header: Header| header.kind() == Kind::Proof;
        if Header::from_payload(payload).is_ok_and(proof) {
            return Err(Reason::Policy);
        }
        let slot = |slot| {
            let in_it = |key: &&KeySlot| KeyId(key.key_id).slot() == slot;
            world.keys.iter().find(in_it).copied().unwrap_or_default()
        };
        verify(payload, &Source::new(self.address(12).into(), from_port), service, slot, world.now_ns)
    }
}

/// The backend, or none where it is for this host.
fn way(world: &World, service: &Service, claims: &Claims) -> Result<Option<Backend>, Reason> {
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
    backend
        .filter(|backend| backend.ifindex == crate::world::LOOPBACK)
        .map(|backend| Some(*backend))
        .ok_or(Reason::NoBackend)
}

/// The frame without its token: lengths less by it, and checksums as right or as wrong as they were. In the arithmetic
/// of RFC 1071, modulo 65535, a checksum grows by what its words lose.
fn strip(frame: &[u8], ip_at: usize) -> Vec<u8> {
    let mut sent = frame.to_vec();
    let udp_at = ip_at + IPV4_LEN;
    let token_at = udp_at + UDP_LEN;
    let token: u64 = frame[token_at..][..header::LEN]
        .chunks(2)
        .map(|word| u64::from(word[0]) << 8 | u64::from(word[1]))
        .sum();
    sent.drain(token_at..token_at + header::LEN);

    let mut change = |at: usize, by: &dyn Fn(u64) -> u64| {
        let old = u64::from(u16::from_be_bytes([sent[at], sent[at + 1]]));
        sent[at..at + 2].copy_from_slice(&(by(old) as u16).to_be_bytes());
    };
    let len = header::LEN as u64;
    change(ip_at + 2, &|total_len| total_len - len);
    change(ip_at + 10, &|checksum| (checksum + len) % 0xffff);
    change(udp_at + 4, &|udp_len| udp_len - len);
    // The length counts twice: once in the pseudo-header.
    change(udp_at + 6, &|checksum| match (checksum, (checksum + 2 * len + token) % 0xffff) {
        (0, _) => 0,
        (_, 0) => 0xffff,
        (_, sum) => sum,
    });
    sent
}
