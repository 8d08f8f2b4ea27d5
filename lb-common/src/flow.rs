//! Where a client's session went: what ties an ICMP error, which quotes a backend's answer to the client, to a backend.

/// Key of the flows: a client of a service. The value is the [`Admission`](crate::session::Admission) of its last verified datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// The client's address as its wire bytes lie in memory, an IPv4 address v4-mapped.
    pub client_be: [u32; 4],
    /// The client's UDP port as its wire bytes lie in memory.
    pub client_port_be: u16,
    /// The service's index on this node.
    pub service_index: u16,
}

const _: () = assert!(size_of::<FlowKey>() == 20 && align_of::<FlowKey>() == 4);
crate::map_value!(FlowKey, crate::session::Admission);
