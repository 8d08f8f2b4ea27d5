//! A backend as the program sees it: how to reach it. One that may not be used has no entry.

/// Key of the backend map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct BackendKey {
    /// The service's index on this node.
    pub service_index: u16,
    /// The `backend_id` of token and configuration, 1..=65535.
    pub backend_id: u16,
}

/// The way to a backend, resolved by the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    /// Where its counters stand in the backend counters.
    pub counter: u32,
    /// The interface it is reached through; the program refuses to send out of another.
    pub ifindex: u32,
    /// The address of its network card, or of the router before it.
    pub destination_mac: [u8; 6],
    /// The address of this host's network card on the way to it.
    pub source_mac: [u8; 6],
}

const _: () = {
    assert!(size_of::<BackendKey>() == 4 && align_of::<BackendKey>() == 2);
    assert!(size_of::<Backend>() == 20 && align_of::<Backend>() == 4);
    assert!(core::mem::offset_of!(Backend, destination_mac) == 8);
};
crate::map_value!(BackendKey, Backend);
