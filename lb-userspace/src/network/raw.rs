//! Netlink requests for which rtnetlink has no messages: generic netlink and `sock_diag`.

use std::io;

use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::TimeVal,
};
use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NlasIterator,
    },
    sys::{Socket, SocketAddr},
};

/// `struct nlmsghdr`, `struct nlattr` (linux/netlink.h).
const MESSAGE_HEADER_LEN: usize = 16;
const ATTRIBUTE_HEADER_LEN: usize = 4;

/// How long to wait for each message of an answer. The kernel answers while a request is being sent, so a message that
/// has not arrived by then is lost.
const PATIENCE: TimeVal = TimeVal::new(1, 0);

/// Whether a request is for one object or for all of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One object.
    Get,
    /// All objects (NLM_F_DUMP).
    Dump,
}

/// Sends one request and returns the payloads of the answers. Blocks until the kernel has answered, which it does
/// while the request is being sent.
///
/// # Errors
/// If there is no socket for the protocol, the kernel refuses (with its error number), or a message of the answer
/// does not arrive.
pub(super) fn request(
    protocol: isize,
    kind: Kind,
    message_type: u16,
    payload: &[u8],
) -> io::Result<Vec<Vec<u8>>> {
    let socket = connect(protocol)?;
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
        let received = receive(&socket)?;
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

/// A socket to the kernel.
fn connect(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    setsockopt(&socket, ReceiveTimeout, &PATIENCE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

fn receive(socket: &Socket) -> io::Result<Vec<u8>> {
    match socket.recv_from_full() {
        Ok((received, _)) => Ok(received),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel did not answer a netlink request"))
        }
        Err(error) => Err(error),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_an_answer_ends() {
        let socket = connect(libc::NETLINK_GENERIC as isize).unwrap();
        let (done, is_done) = std::sync::mpsc::channel();
        // Not joined, because it may block forever.
        std::thread::spawn(move || done.send(receive(&socket)));
        let received = is_done.recv_timeout(std::time::Duration::from_secs(10)).expect("it still waits");
        assert_eq!(received.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
