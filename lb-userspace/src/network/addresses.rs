//! The addresses of this host, from one RTM_GETADDR dump (rtnetlink(7)).

use std::net::IpAddr;

use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// The interface.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Whether another host has it (IFA_F_DADFAILED): the kernel does not use it then.
    pub duplicate: bool,
}

impl Address {
    /// IFA_LOCAL where there is one: on a point-to-point interface, IFA_ADDRESS is the other end's.
    pub fn from_message(message: &AddressMessage) -> Option<Self> {
        let (mut local, mut address) = (None, None);
        let mut duplicate = message.header.flags.contains(AddressHeaderFlags::Dadfailed);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(found) => local = Some(*found),
                AddressAttribute::Address(found) => address = Some(*found),
                AddressAttribute::Flags(flags) => duplicate |= flags.contains(AddressFlags::Dadfailed),
                _ => {}
            }
        }
        Some(Self { index: message.header.index, address: local.or(address)?, duplicate })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_address_of_a_point_to_point_interface_is_the_hosts() {
        let of = |attributes: &[AddressAttribute]| {
            let mut message = AddressMessage::default();
            message.header.index = 4;
            message.attributes = attributes.to_vec();
            Address::from_message(&message)
        };
        let (own, peer) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let found = Address { index: 4, address: own, duplicate: false };
        assert_eq!(of(&[AddressAttribute::Address(peer), AddressAttribute::Local(own)]), Some(found));
        assert_eq!(of(&[AddressAttribute::Address(own)]), Some(found));
        let failed = AddressAttribute::Flags(AddressFlags::Dadfailed | AddressFlags::Permanent);
        let duplicate = Address { duplicate: true, ..found };
        assert_eq!(of(&[AddressAttribute::Address(own), failed]), Some(duplicate));
        assert_eq!(of(&[]), None);
    }
}
