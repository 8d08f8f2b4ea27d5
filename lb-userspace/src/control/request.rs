//! Netlink requests for which rtnetlink has no messages: generic netlink and `sock_diag`.

use std::io;

use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NlasIterator,
    },
    sys::{Socket, SocketAddr},
};

/// `struct nlmsghdr`, `struct nlattr` (linux/netlink.h).
const MESSAGE_HEADER_LEN: usize = 16;
const ATTRIBUTE_HEADER_LEN: usize = 4;

/// Whether a request is for one object or for all of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One object.
    Get,
    /// All objects (NLM_F_DUMP).
    Dump,
}

/// Sends one request and returns the payloads of the answers. Blocks until the kernel has answered, which it does while the
/// request is being sent.
///
/// # Errors
/// If there is no socket for the protocol, or the kernel refuses: with its error number.
pub(super) fn request(
    protocol: isize,
    kind: Kind,
    message_type: u16,
    payload: &[u8],
) -> io::Result<Vec<Vec<u8>>> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let flags = NLM_F_REQUEST
        | match kind {
            Kind::Get => NLM_F_ACK,
            Kind::Dump => NLM_F_DUMP,
        };
    let len = u32::try_from(MESSAGE_HEADER_LEN + payload.len()).map_err(io::Error::other)?;
    // Length, type, flags, sequence number, port.
    let header = [
        &len.to_ne_bytes()[..],
        &message_type.to_ne_bytes(),
        &flags.to_ne_bytes(),
        &1_u32.to_ne_bytes(),
        &0_u32.to_ne_bytes(),
    ];
    socket.send(&[&header.concat(), payload].concat(), 0)?;
    let mut answers = Vec::new();
    loop {
        let (received, _) = socket.recv_from_full()?;
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
            match message.message_type() {
                // Both begin with an error number, 0 if the request was carried out.
                NLMSG_DONE | NLMSG_ERROR => {
                    return match error_number(message.payload()) {
                        0 => Ok(answers),
                        errno => Err(io::Error::from_raw_os_error(errno)),
                    };
                }
                _ => answers.push(message.payload().to_vec()),
            }
            let len = usize::try_from(message.length()).map_err(io::Error::other)?;
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn error_number(payload: &[u8]) -> i32 {
    payload.first_chunk().map_or(0, |bytes| -i32::from_ne_bytes(*bytes))
}

/// An attribute of a request.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(ATTRIBUTE_HEADER_LEN + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The value of an attribute in an answer, behind the header of its protocol.
pub(super) fn value_of<const N: usize>(answer: &[u8], header_len: usize, kind: u16) -> Option<[u8; N]> {
    let attributes = NlasIterator::new(answer.get(header_len..)?).map_while(Result::ok);
    attributes.filter(|found| found.kind() == kind).find_map(|found| found.value().try_into().ok())
}
