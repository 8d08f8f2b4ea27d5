//! UDP sockets of this network namespace, by `sock_diag` (linux/inet_diag.h, sock_diag(7)).
//!
//! /proc/net/udp6 has neither IPV6_V6ONLY, which decides whether a socket on `::` takes IPv4, nor the interface that
//! a socket is bound to.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::raw::{Kind, request, value_of};

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// UDP sockets that are bound and not connected: TCP_CLOSE. A connected socket takes packets of its peer alone.
const UNCONNECTED: u32 = 1 << 7;
/// `struct inet_diag_msg`.
const MESSAGE_LEN: usize = 72;
const INET_DIAG_SKV6ONLY: u16 = 11;

/// A UDP socket that takes packets from anyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct UdpSocket {
    /// The address that it is bound to. Of an IPv6 socket on an IPv4-mapped address, the IPv4 address.
    pub address: IpAddr,
    /// Of an IPv6 socket on `::`, whether it takes IPv4, too.
    pub dual_stack: bool,
    /// The interface that it is bound to (SO_BINDTODEVICE); 0: all.
    pub device: u32,
}

/// The unconnected UDP sockets on a port, of both families.
///
/// # Errors
/// If the kernel cannot be queried, for example because it lacks the module `udp_diag`.
pub(super) fn on_port(port: u16) -> io::Result<Vec<UdpSocket>> {
    let mut sockets = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let answers = match request(NETLINK_SOCK_DIAG, Kind::Dump, SOCK_DIAG_BY_FAMILY, &wanted(family, port))
        {
            Ok(answers) => answers,
            // A kernel without IPv6 has no such sockets.
            Err(error) if family == libc::AF_INET6 && error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        sockets.extend(answers.iter().filter_map(|answer| UdpSocket::from_answer(answer)));
    }
    Ok(sockets)
}

/// `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, `struct inet_diag_sockid`.
fn wanted(family: libc::c_int, port: u16) -> Vec<u8> {
    let socket_id = [&port.to_be_bytes()[..], &[0; 46]].concat();
    [&[family as u8, libc::IPPROTO_UDP as u8, 0, 0][..], &UNCONNECTED.to_ne_bytes(), &socket_id].concat()
}

impl UdpSocket {
    /// `struct inet_diag_msg`: family, state, timer, retransmissions; ports, addresses, interface and cookie of the
    /// socket.
    fn from_answer(answer: &[u8]) -> Option<Self> {
        let address = answer.get(8..24)?;
        let device = u32::from_ne_bytes(*answer.get(40..)?.first_chunk()?);
        if i32::from(*answer.first()?) == libc::AF_INET {
            let v4 = Ipv4Addr::from(*address.first_chunk::<4>()?);
            return Some(Self { address: v4.into(), dual_stack: false, device });
        }
        let v6 = Ipv6Addr::from(*address.first_chunk::<16>()?);
        let v6_only = value_of::<1>(answer, MESSAGE_LEN, INET_DIAG_SKV6ONLY) != Some([0]);
        let dual_stack = v6.is_unspecified() && !v6_only;
        Some(Self { address: IpAddr::V6(v6).to_canonical(), dual_stack, device })
    }

    /// Whether it receives packets to any address of the family of this one.
    pub fn is_wildcard_for(self, address: IpAddr) -> bool {
        self.address.is_unspecified() && (self.dual_stack || self.address.is_ipv4() == address.is_ipv4())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn6, bind, getsockname, setsockopt, socket, sockopt,
    };

    #[test]
    fn sockets_are_found_by_port_with_what_they_take() {
        let v4 = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let found = |port| on_port(port).unwrap();
        let one = |address: &str, dual_stack| {
            vec![UdpSocket { address: address.parse().unwrap(), dual_stack, device: 0 }]
        };
        assert_eq!(found(v4.local_addr().unwrap().port()), one("127.0.0.1", false));
        v4.connect("127.0.0.1:9").unwrap();
        assert_eq!(found(v4.local_addr().unwrap().port()), [], "a connected one");

        for (v6_only, to, address) in
            [(false, "[::]:0", "::"), (true, "[::]:0", "::"), (false, "[::ffff:127.0.0.1]:0", "127.0.0.1")]
        {
            let v6 = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
            setsockopt(&v6, sockopt::Ipv6V6Only, &v6_only).unwrap();
            let to: std::net::SocketAddrV6 = to.parse().unwrap();
            use std::os::fd::AsRawFd as _;
            bind(v6.as_raw_fd(), &SockaddrIn6::from(to)).unwrap();
            let port = getsockname::<SockaddrIn6>(v6.as_raw_fd()).unwrap().port();
            let dual_stack = address == "::" && !v6_only;
            assert_eq!(found(port), one(address, dual_stack), "{to} {v6_only}");
            assert_eq!(found(port)[0].is_wildcard_for(Ipv4Addr::LOCALHOST.into()), dual_stack);
            assert_eq!(found(port)[0].is_wildcard_for(Ipv6Addr::LOCALHOST.into()), address == "::");
        }
    }
}
