//! What the kernel knows of the network: interfaces, routes, neighbours; and that it changed.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Error, Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection,
    packet_core::NetlinkPayload,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp, XdpAttached},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};
use tokio::sync::Notify;

use crate::datapath::attach::Mode;

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No netlink.
    #[error("cannot open a netlink socket: {0}; is this a network namespace of Linux?")]
    Socket(#[source] std::io::Error),
    /// A request failed.
    #[error("netlink, {what}: {source}")]
    Request {
        /// What was asked.
        what: &'static str,
        /// What the kernel said.
        source: Error,
    },
}

/// A MAC address.
pub type Mac = [u8; 6];

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number for it.
    pub index: u32,
    /// Its MAC address, if it has one.
    pub mac: Option<Mac>,
    /// Of a VLAN's interface: the one in this namespace that its frames come in on, tagged.
    pub below: Option<u32>,
    /// The XDP program on it, and how it is attached.
    pub xdp: Option<(u32, Mode)>,
}

/// The way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The interface.
    pub index: u32,
    /// The router, if it is not on the same segment.
    pub gateway: Option<IpAddr>,
    /// Whether the address is one of this host's.
    pub local: bool,
}

/// What the neighbour table says of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// It answers, or has until a moment ago.
    Known {
        /// Its MAC address.
        mac: Mac,
        /// Whether the kernel is sure, or is about to make sure.
        fresh: bool,
    },
    /// It is being asked for.
    Asking,
    /// It did not answer.
    Failed,
}

/// A netlink connection.
#[derive(Clone, Debug)]
pub struct Network {
    handle: Handle,
    changed: Arc<Notify>,
    routes_changed: Arc<AtomicBool>,
}

impl Network {
    /// Connects, inside a tokio runtime, and listens for changes: of interfaces and routes, and of these neighbours.
    ///
    /// # Errors
    /// If the kernel has no netlink for this process.
    pub fn connect(addresses: BTreeSet<IpAddr>) -> Result<Self, NetworkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv4Ifaddr,
        ];
        let (connection, handle, mut events) =
            new_multicast_connection(&groups).map_err(NetworkError::Socket)?;
        tokio::spawn(connection);
        let changed = Arc::new(Notify::new());
        let routes_changed = Arc::new(AtomicBool::new(true));
        let (notify, routes) = (Arc::clone(&changed), Arc::clone(&routes_changed));
        tokio::spawn(async move {
            while let Some((message, _)) = events.next().await {
                let NetlinkPayload::InnerMessage(message) = message.payload else { continue };
                match message {
                    RouteNetlinkMessage::NewNeighbour(message)
                    | RouteNetlinkMessage::DelNeighbour(message) => {
                        let about = neighbour(&message);
                        if !about.is_some_and(|((_, address), _)| addresses.contains(&address)) {
                            continue;
                        }
                    }
                    _ => routes.store(true, Ordering::Relaxed),
                }
                notify.notify_one();
            }
        });
        Ok(Self { handle, changed, routes_changed })
    }

    /// Waits until something has changed since the last wait.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Whether more than neighbours has changed since the last call; true the first time.
    pub fn take_routes_changed(&self) -> bool {
        self.routes_changed.swap(false, Ordering::Relaxed)
    }

    /// Makes the next [`Network::take_routes_changed`] true.
    pub fn set_routes_changed(&self) {
        self.routes_changed.store(true, Ordering::Relaxed);
    }

    /// All interfaces, by name.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn interfaces(&self) -> Result<HashMap<String, Interface>, NetworkError> {
        let failed = |source| NetworkError::Request { what: "interfaces", source };
        let mut links = self.handle.link().get().execute();
        let mut found = HashMap::new();
        while let Some(link) = links.try_next().await.map_err(failed)? {
            if let Some((name, interface)) = interface(&link) {
                found.insert(name, interface);
            }
        }
        Ok(found)
    }

    /// The way to an address; `None` if there is none.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn route(&self, to: Ipv4Addr) -> Result<Option<Route>, NetworkError> {
        let request = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).build();
        let mut answers = self.handle.route().get(request).execute();
        match answers.try_next().await {
            Ok(answer) => Ok(answer.as_ref().and_then(route)),
            // EHOSTUNREACH, ENETUNREACH and the like: that is the answer.
            Err(Error::NetlinkError(_)) => Ok(None),
            Err(source) => Err(NetworkError::Request { what: "route", source }),
        }
    }

    /// All IPv4 neighbours, by interface and address.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn neighbours(&self) -> Result<HashMap<(u32, IpAddr), Neighbour>, NetworkError> {
        let failed = |source| NetworkError::Request { what: "neighbours", source };
        let mut entries = self.handle.neighbours().get().set_address_family(AddressFamily::Inet).execute();
        let mut found = HashMap::new();
        while let Some(entry) = entries.try_next().await.map_err(failed)? {
            if let Some((key, neighbour)) = neighbour(&entry) {
                found.insert(key, neighbour);
            }
        }
        Ok(found)
    }

    /// Uses a neighbour's entry, as sending to it would: the kernel asks for its MAC address where it does not know it,
    /// and whether it is still there where it has not heard of it for a while.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn ask(&self, index: u32, address: IpAddr) -> Result<(), NetworkError> {
        let request = self.handle.neighbours().add(index, address);
        request
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace()
            .execute()
            .await
            .map_err(|source| NetworkError::Request { what: "asking for a neighbour", source })
    }
}

fn interface(link: &LinkMessage) -> Option<(String, Interface)> {
    let mut name = None;
    let (mut mac, mut xdp, mut below) = (None, None, None);
    // Below an interface that came from another namespace is another namespace's interface.
    let (mut vlan, mut foreign) = (false, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(found) => name = Some(found.clone()),
            LinkAttribute::Address(bytes) => mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::LinkNetNsId(_) => foreign = true,
            LinkAttribute::LinkInfo(infos) => vlan = infos.contains(&LinkInfo::Kind(InfoKind::Vlan)),
            LinkAttribute::Xdp(attributes) => xdp = attached(attributes),
            _ => {}
        }
    }
    Some((name?, Interface { index: link.header.index, mac, below: below.filter(|_| vlan && !foreign), xdp }))
}

fn attached(attributes: &[LinkXdp]) -> Option<(u32, Mode)> {
    let mut mode = Mode::Native;
    let mut program = None;
    for attribute in attributes {
        match attribute {
            LinkXdp::Attached(XdpAttached::None) => return None,
            LinkXdp::Attached(XdpAttached::SocketBuffer) => mode = Mode::Generic,
            LinkXdp::ProgId(id) => program = Some(*id),
            // With programs in more than one mode only these are told; the driver's sees packets first.
            LinkXdp::SkbProgId(id) => program = program.or(Some(*id)),
            LinkXdp::DrvProgId(id) | LinkXdp::HwProgId(id) => program = Some(*id),
            _ => {}
        }
    }
    Some((program?, mode))
}

fn route(message: &RouteMessage) -> Option<Route> {
    let mut index = None;
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(found) => index = Some(*found),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(IpAddr::V4(*address)),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => gateway = Some(IpAddr::V6(*address)),
            _ => {}
        }
    }
    Some(Route { index: index?, gateway, local: message.header.kind == RouteType::Local })
}

fn neighbour(message: &NeighbourMessage) -> Option<((u32, IpAddr), Neighbour)> {
    let mut address = None;
    let mut mac: Option<Mac> = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => {
                address = Some(IpAddr::V4(*found));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let neighbour = match (message.header.state, mac) {
        (NeighbourState::Stale, Some(mac)) => Neighbour::Known { mac, fresh: false },
        (
            NeighbourState::Reachable
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent,
            Some(mac),
        ) => Neighbour::Known { mac, fresh: true },
        (NeighbourState::Failed, _) => Neighbour::Failed,
        _ => Neighbour::Asking,
    };
    Some(((message.header.ifindex, address?), neighbour))
}
