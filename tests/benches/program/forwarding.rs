//! The rows of the forwarding modes: a service, a key, a backend and a packet for each.

use std::net::SocketAddr;

use anyhow::Result;
use lb_common::{
    backend::Backend,
    keyslot::KeyId,
    reason::Reason,
    service::{FLAG_STRIP, FORWARD_GUE, FORWARD_IPIP, FORWARD_L2, FORWARD_LOCAL, FORWARD_NAT, Service},
    token::{Claims, Header, mint::Grant},
};
use lb_tests::model::{
    fixture::{self, Key},
    packet::{Family, Packet},
    program::Program,
};

/// One row.
#[derive(Clone, Copy)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// The goal, nanoseconds without the empty program.
    pub goal: Option<u64>,
    forward: u8,
    strip: bool,
    family: Family,
    backend: Family,
    tags: u16,
    answer: bool,
    number: u16,
}

/// 1.3 times the time that Katran's program needs to forward a packet with IPIP, without any check, on such a machine.
const KATRAN: u64 = 100;

/// Number of rows.
pub const COUNT: u32 = all().len() as u32;

/// All rows.
pub const fn all() -> [Row; 18] {
    use Family::{V4, V6};
    const fn row(number: u16, name: &'static str, forward: u8, family: Family) -> Row {
        let (goal, backend) = (None, family);
        Row { name, goal, forward, strip: false, family, backend, tags: 0, answer: false, number }
    }
    [
        Row { strip: true, ..row(0, "cached_l2_strip", FORWARD_L2, V4) },
        Row { strip: true, ..row(1, "cached_l2_strip_v6", FORWARD_L2, V6) },
        row(2, "cached_local_v4", FORWARD_LOCAL, V4),
        row(3, "cached_local_v6", FORWARD_LOCAL, V6),
        row(4, "cached_l2_v4", FORWARD_L2, V4),
        row(5, "cached_l2_v6", FORWARD_L2, V6),
        Row { tags: 1, ..row(6, "cached_l2_v4_1_tag", FORWARD_L2, V4) },
        Row { tags: 2, ..row(7, "cached_l2_v4_2_tags", FORWARD_L2, V4) },
        Row { goal: Some(KATRAN), ..row(8, "cached_ipip_v4", FORWARD_IPIP, V4) },
        row(9, "cached_ipip_v6", FORWARD_IPIP, V6),
        Row { backend: V6, ..row(10, "cached_ipip_v4_in_v6", FORWARD_IPIP, V4) },
        Row { strip: true, ..row(11, "cached_ipip_strip_v4", FORWARD_IPIP, V4) },
        row(12, "cached_gue_v4", FORWARD_GUE, V4),
        row(13, "cached_gue_v6", FORWARD_GUE, V6),
        row(14, "cached_nat_v4", FORWARD_NAT, V4),
        row(15, "cached_nat_v6", FORWARD_NAT, V6),
        Row { answer: true, ..row(16, "nat_reply_v4", FORWARD_NAT, V4) },
        Row { answer: true, ..row(17, "nat_reply_v6", FORWARD_NAT, V6) },
    ]
}

impl Row {
    /// Address and port of its service.
    pub fn at(&self) -> SocketAddr {
        let mut at = self.family.twin_at(fixture::SERVICE);
        at.set_port(10_000 + self.number);
        at
    }

    /// Its service.
    pub fn service(&self) -> Service {
        Service {
            id: 1000 + u32::from(self.number),
            index: 100 + u32::from(self.number),
            forward: self.forward,
            flags: if self.strip { FLAG_STRIP } else { 0 },
            ..fixture::service()
        }
    }

    /// Its service's key.
    pub fn key(&self) -> Key {
        Key::new([9; 32], KeyId::new(1000 + u32::from(self.number), 1).expect("in range"))
    }

    /// Its backend.
    pub fn backend(&self) -> Backend {
        let id = 100 + self.number as u8;
        Backend { service_index: 100 + self.number, ..fixture::backend_at(id, self.backend) }
    }

    /// A token of its service.
    pub fn token(&self) -> Header {
        let claims = Claims { service_id: self.service().id, ..fixture::grant().claims };
        self.key().bearer(&Grant { claims, ..fixture::grant() })
    }

    /// The packet of its row, and the reason that counts it. An answer follows a datagram that goes to the backend
    /// first.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub fn packet(&self, program: &Program) -> Result<(Packet, Reason)> {
        let mut packet = Packet::with_token(&self.token()).over(self.family).tagged(self.tags);
        packet.to = self.at();
        if !self.answer {
            return Ok((packet, Reason::Forwarded));
        }
        let sent = program.run(&packet.bytes())?.frame;
        let at = packet.transport_offset();
        let node_port = u16::from_be_bytes([sent[at], sent[at + 1]]);
        let backend = self.backend();
        let address = |words| SocketAddr::new(lb_tests::model::forwarding::address(words), 0);
        let (mut from, mut to) = (address(backend.address_be), address(backend.source_be));
        from.set_port(u16::from_be(backend.port_be));
        to.set_port(node_port);
        Ok((Packet { from, to, ..packet }, Reason::Reply))
    }

    /// Whether the program changes headers that it reads.
    pub const fn changes_headers(&self) -> bool {
        self.strip || !matches!(self.forward, FORWARD_L2 | FORWARD_LOCAL)
    }

    /// The number of bytes by which it changes the length of the frame; the empty program then does the same. 0 if it
    /// does not.
    pub const fn changes_length(&self) -> u32 {
        if self.strip || matches!(self.forward, FORWARD_IPIP | FORWARD_GUE) { 20 } else { 0 }
    }
}
