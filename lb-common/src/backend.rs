//! A backend as the program sees it: how to reach it. One that may not be used is not in the table.

/// The way to a backend, resolved by the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    /// The service's index on this node.
    pub service_index: u16,
    /// The `backend_id` of token and configuration, 1..=65535; 0 where the table has no backend.
    pub backend_id: u16,
    /// Where its counters stand in the backend counters.
    pub counter: u32,
    /// The interface it is reached through; the program refuses to send out of another.
    pub ifindex: u32,
    /// The address of its network card, or of the router before it.
    pub destination_mac: [u8; 6],
    /// The address of this host's network card on the way to it.
    pub source_mac: [u8; 6],
}

/// Key of the pinned map: from what a token names to a position among the backends of a half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct PinnedKey {
    /// The half of the tables.
    pub half: u32,
    /// The service's index on this node.
    pub service_index: u16,
    /// The `backend_id` of the token.
    pub backend_id: u16,
}

const _: () = {
    assert!(size_of::<Backend>() == 24 && align_of::<Backend>() == 4);
    assert!(core::mem::offset_of!(Backend, destination_mac) == 12);
    assert!(size_of::<PinnedKey>() == 8 && align_of::<PinnedKey>() == 4);
};
crate::map_value!(Backend, PinnedKey);
