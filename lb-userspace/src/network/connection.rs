//! The netlink connection: asks the kernel for interfaces, routes and neighbours, and listens for changes.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use rtnetlink::{
    Error, Handle, MulticastGroup, RouteMessageBuilder, new_connection, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        neighbour::{NeighbourFlags, NeighbourState},
        route::{RouteAttribute, RouteFlags, RouteMessage},
    },
};
use tokio::{sync::Notify, time::sleep};
use tracing::warn;

use super::{
    addresses::Address,
    links::{Link, Links},
    netlink,
    types::{Interfaces, Neighbours, Route},
};

/// Pause before the connection for changes is opened again.
const RECONNECT: Duration = Duration::from_secs(1);

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A netlink socket cannot be opened.
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[source] std::io::Error),
    /// A request failed.
    #[error("netlink, {what}: {source}")]
    Request {
        /// The request.
        what: &'static str,
        /// The error of the kernel.
        source: Error,
    },
    /// The route uses a nexthop object, and the kernel does not show its next hops.
    #[error(
        "the route to {to} uses nexthop object {id}, and net.ipv4.nexthop_compat_mode = 0 hides its next hops; \
         `sysctl net.ipv4.nexthop_compat_mode=1`, or give {to} a route with `via`"
    )]
    HiddenNextHop {
        /// The destination.
        to: IpAddr,
        /// The nexthop object, as `ip nexthop show id` takes it.
        id: u32,
    },
}

/// A netlink connection.
#[derive(Clone, Debug)]
pub struct Network {
    handle: Handle,
    changes: Arc<Changes>,
}

/// Changes since the last check.
#[derive(Debug, Default)]
struct Changes {
    /// Woken by every change.
    any: Notify,
    /// Whether anything but a neighbour has changed.
    routes: AtomicBool,
    /// The neighbours whose changes are reported.
    watched: Mutex<BTreeSet<IpAddr>>,
}

type Events = BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>;

impl Network {
    /// Connects, inside a tokio runtime, and listens for changes of interfaces, addresses, rules, routes, and the
    /// neighbours set by [`Network::watch`].
    ///
    /// # Errors
    /// If the kernel provides no netlink for this process.
    pub fn connect() -> Result<Self, NetworkError> {
        // Two sockets: an overrun of the one for changes loses no answer on the other.
        let (connection, handle, _) = new_connection().map_err(NetworkError::Socket)?;
        tokio::spawn(connection);
        let changes = Arc::new(Changes { routes: AtomicBool::new(true), ..Changes::default() });
        tokio::spawn(listen(events()?, Arc::clone(&changes)));
        Ok(Self { handle, changes })
    }

    /// Sets the neighbours whose changes are reported.
    pub fn watch(&self, addresses: BTreeSet<IpAddr>) {
        *self.changes.watched.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// Waits until something has changed since the last wait.
    pub async fn changed(&self) {
        self.changes.any.notified().await;
    }

    /// Whether anything except neighbours has changed since the last call; true the first time.
    pub fn take_routes_changed(&self) -> bool {
        self.changes.routes.swap(false, Ordering::Relaxed)
    }

    /// Makes the next [`Network::take_routes_changed`] true.
    pub fn set_routes_changed(&self) {
        self.changes.routes.store(true, Ordering::Relaxed);
    }

    /// All interfaces: by name, and as a stack.
    ///
    /// # Errors
    /// If the kernel cannot be queried.
    pub async fn interfaces(&self) -> Result<(Interfaces, Links), NetworkError> {
        let failed = |source| NetworkError::Request { what: "interfaces", source };
        let messages: Vec<_> = self.handle.link().get().execute().try_collect().await.map_err(failed)?;
        let mut interfaces: Interfaces = messages.iter().filter_map(netlink::interface).collect();
        let links = messages.iter().filter_map(Link::from_message).collect();
        let failed = |source| NetworkError::Request { what: "secondary MAC addresses", source };
        let mut entries = self.handle.neighbours().get().set_address_family(AddressFamily::Bridge).execute();
        while let Some(entry) = entries.try_next().await.map_err(failed)? {
            if let Some((index, mac)) = netlink::secondary(&entry) {
                let interface = interfaces.values_mut().find(|interface| interface.index == index);
                interface.into_iter().for_each(|interface| {
                    interface.receives.secondary.insert(mac);
                });
            }
        }
        Ok((interfaces, links))
    }

    /// The addresses of all interfaces.
    ///
    /// # Errors
    /// If the kernel cannot be queried.
    pub(super) async fn addresses(&self) -> Result<Vec<Address>, NetworkError> {
        let failed = |source| NetworkError::Request { what: "addresses", source };
        let messages: Vec<_> = self.handle.address().get().execute().try_collect().await.map_err(failed)?;
        Ok(messages.iter().filter_map(Address::from_message).collect())
    }

    /// The route to an address by the routing tables; `None` if there is none.
    ///
    /// An answer without RTM_F_FIB_MATCH includes the exceptions that the kernel keeps for a destination: path MTUs and
    /// next hops that anyone can write with forged ICMP errors and redirects. The source address is chosen from the
    /// routing tables alone (`fib_result_prefsrc`, `ip6_route_get_saddr`), and only that is taken from such an answer.
    ///
    /// # Errors
    /// If the kernel cannot be queried, or does not show the route's next hops.
    pub async fn route(&self, to: IpAddr) -> Result<Option<Route>, NetworkError> {
        let Some(entry) = self.get_route(to, RouteFlags::FibMatch, None).await? else { return Ok(None) };
        let found = netlink::route(&entry, to);
        let Some(mut route) = found.map_err(|id| NetworkError::HiddenNextHop { to, id })? else {
            return Ok(None);
        };
        if route.source.is_none() && !route.local {
            route.source = self.source(to, route.index).await?;
        }
        Ok(Some(route))
    }

    /// The source address of this host for packets to an address through an interface.
    async fn source(&self, to: IpAddr, index: u32) -> Result<Option<IpAddr>, NetworkError> {
        let answer = self.get_route(to, RouteFlags::empty(), None).await?;
        let through = answer.as_ref().and_then(netlink::source).filter(|(found, _)| *found == index);
        let Some((_, source)) = through else {
            // The kernel chose another next hop of several.
            let answer = self.get_route(to, RouteFlags::empty(), Some(index)).await?;
            return Ok(answer.as_ref().and_then(netlink::source).and_then(|(_, source)| source));
        };
        Ok(source)
    }

    async fn get_route(
        &self,
        to: IpAddr,
        flags: RouteFlags,
        through: Option<u32>,
    ) -> Result<Option<RouteMessage>, NetworkError> {
        let mut request = match to {
            IpAddr::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).build(),
            IpAddr::V6(to) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, 128).build(),
        };
        request.header.flags = flags;
        request.attributes.extend(through.map(RouteAttribute::Oif));
        let mut answers = self.handle.route().get(request).execute();
        match answers.try_next().await {
            Ok(answer) => Ok(answer),
            // EHOSTUNREACH, ENETUNREACH and similar errors mean that there is no route.
            Err(Error::NetlinkError(_)) => Ok(None),
            Err(source) => Err(NetworkError::Request { what: "route", source }),
        }
    }

    /// All neighbours of both families.
    ///
    /// # Errors
    /// If the kernel cannot be queried.
    pub async fn neighbours(&self) -> Result<Neighbours, NetworkError> {
        let failed = |source| NetworkError::Request { what: "neighbours", source };
        let mut entries = self.handle.neighbours().get().execute();
        let mut found = HashMap::new();
        while let Some(entry) = entries.try_next().await.map_err(failed)? {
            if let Some((key, neighbour)) = netlink::neighbour(&entry) {
                found.insert(key, neighbour);
            }
        }
        Ok(found)
    }

    /// Uses a neighbour entry like a packet that is sent to it: the kernel resolves the MAC address if it is unknown,
    /// and confirms it if it is old.
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
            .map_err(|source| NetworkError::Request { what: "probe a neighbour", source })
    }
}

/// Opens the connection for changes.
fn events() -> Result<Events, NetworkError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv6Rule,
    ];
    let (connection, _, events) = new_multicast_connection(&groups).map_err(NetworkError::Socket)?;
    tokio::spawn(connection);
    Ok(events.map(|(message, _)| message).boxed())
}

/// Reports changes until the [`Network`] is dropped.
async fn listen(mut events: Events, changes: Arc<Changes>) {
    while Arc::strong_count(&changes) > 1 {
        let Some(message) = events.next().await else {
            // An invalid message has ended the connection; later changes are lost.
            sleep(RECONNECT).await;
            match self::events() {
                Ok(again) => events = again,
                Err(error) => warn!("{error}"),
            }
            changes.all_may_have_changed();
            continue;
        };
        match message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message),
            ) => {
                let watched = changes.watched.lock().unwrap_or_else(PoisonError::into_inner);
                if netlink::neighbour(&message).is_some_and(|((_, address), _)| watched.contains(&address)) {
                    changes.any.notify_one();
                }
            }
            // An overrun means that changes were lost.
            NetlinkPayload::InnerMessage(_) | NetlinkPayload::Overrun(_) => changes.all_may_have_changed(),
            _ => {}
        }
    }
}

impl Changes {
    fn all_may_have_changed(&self) {
        self.routes.store(true, Ordering::Relaxed);
        self.any.notify_one();
    }
}
