//! Connections, each for one request, all of them bounded: in number, by whom, in time and in size. Whoever opens many
//! or lets them wait gets in nobody's way but their own.

use std::{
    collections::HashMap,
    hash::Hash,
    io,
    net::{IpAddr, Ipv6Addr},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{oneshot, watch},
    task::{AbortHandle, JoinSet, yield_now},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::access::{Caller, Peer, Rules};

/// How long the head of a request may take, which comes in one packet.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may last: a rotation takes the longest, and an answer has megabytes at most.
const WHOLE: Duration = Duration::from_secs(30);
/// Of a request's head.
const HEAD_MAX: usize = 32 * 1024;
/// How long nothing is accepted where the system gives no connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Root's connections to the control socket, and the daemon's own user's.
const OWN: Limits = Limits { each: 64, all: 128 };
/// Everybody else's, so that they leave descriptors and time for those.
const OTHERS: Limits = Limits { each: 8, all: 64 };
/// To the metrics port.
const METRICS: usize = 64;

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Of one user.
    each: usize,
    /// Of all.
    all: usize,
}

/// Serves the control socket until it is told to stop; then answers under way are given and nothing else.
pub async fn control(
    listener: UnixListener,
    router: Router,
    rules: Arc<Rules>,
    mut stop: oneshot::Receiver<()>,
) {
    let (own, others) = (Room::new(OWN), Room::new(OTHERS));
    let (stopping, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    refused_by_system(&error).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
            _ = &mut stop => break,
        };
        let Ok(peer) = Peer::of(&stream) else { continue };
        let room = if rules.is_own(&peer) { &own } else { &others };
        let Some(place) = room.take(peer.uid) else {
            debug!(uid = peer.uid, "too many connections to the control socket");
            continue;
        };
        let router = router.clone().layer(Extension(Caller::new(&rules, &peer)));
        let stopped = stopped.clone();
        connections.spawn(async move {
            serve(stream, router, stopped).await;
            drop(place);
        });
    }
    drop(stopping);
    while connections.join_next().await.is_some() {}
}

/// Serves the metrics port. No connection is refused: where there are 64, the oldest of the sender that has most
/// is closed. So neither requests that are never finished nor answers that are never read keep another sender's probe
/// from its answer, and many senders only those that take longer than it takes to connect so often.
pub async fn metrics(listener: TcpListener, router: Router) {
    let mut connections: Vec<(IpAddr, AbortHandle)> = Vec::new();
    let (_never, stopped) = watch::channel(());
    let mut accepted = 0;
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                refused_by_system(&error).await;
                continue;
            }
        };
        let sender = sender(from.ip());
        connections.retain(|(_, connection)| !connection.is_finished());
        if connections.len() >= METRICS {
            let senders: Vec<IpAddr> = connections.iter().map(|(sender, _)| *sender).collect();
            let (busiest, oldest) = connections.remove(evicted(&senders));
            debug!(%busiest, "too many connections to the metrics port");
            oldest.abort();
        }
        let (router, stopped) = (router.clone(), stopped.clone());
        let connection = tokio::spawn(async move { serve(stream, router, stopped).await });
        connections.push((sender, connection.abort_handle()));
        // A request that came with its connection is answered before as many others can have its connection closed. Not
        // after each of them, or those that wait to be accepted would wait for a page of metrics each.
        accepted = (accepted + 1) % (METRICS / 2);
        if accepted == 0 {
            yield_now().await;
        }
    }
}

/// Whose a connection is: an IPv4 address, or the /64 that an IPv6 host has all addresses of.
fn sender(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// Of connections by age, with whose they are: the oldest of a sender that has most.
fn evicted(senders: &[IpAddr]) -> usize {
    let share = |sender: &IpAddr| senders.iter().filter(|other| *other == sender).count();
    let most = senders.iter().map(share).max().unwrap_or(0);
    senders.iter().position(|sender| share(sender) == most).unwrap_or(0)
}

/// A connection that has gone already, or no descriptor left.
async fn refused_by_system(error: &io::Error) {
    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        warn!("accepting a connection: {error}");
        sleep(PAUSE).await;
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    router: Router,
    mut stopped: watch::Receiver<()>,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let ended = timeout(WHOLE, async {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            // Only ever by the sender's end.
            _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    });
    match ended.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("a connection ended: {error}"),
        Err(_) => debug!("a connection took longer than {} s", WHOLE.as_secs()),
    }
}

/// Places for connections, by whose they are.
struct Room<K> {
    limits: Limits,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

/// One of them, until it is dropped.
struct Place<K: Eq + Hash> {
    who: K,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Copy + Eq + Hash> Room<K> {
    fn new(limits: Limits) -> Self {
        Self { limits, taken: Arc::default() }
    }

    fn take(&self, who: K) -> Option<Place<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.get(&who).copied().unwrap_or(0);
        if all >= self.limits.all || own >= self.limits.each {
            return None;
        }
        taken.insert(who, own + 1);
        Some(Place { who, taken: Arc::clone(&self.taken) })
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.who) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.who)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_sender_loses_its_oldest_connection() {
        let senders = |text: &str| -> Vec<IpAddr> {
            text.split(' ').map(|address| sender(address.parse().unwrap())).collect()
        };
        assert_eq!(evicted(&senders("10.0.0.1 10.0.0.2 10.0.0.2")), 1);
        assert_eq!(evicted(&senders("10.0.0.1 10.0.0.2 ::ffff:10.0.0.1")), 0);
        assert_eq!(evicted(&senders("10.0.0.1 2001:db8::1 10.0.0.2 2001:db8::2:0:0:2")), 1);
        assert_eq!(evicted(&senders("10.0.0.1 2001:db8::1 10.0.0.2")), 0);
    }

    #[test]
    fn places_are_counted_by_whose_they_are_and_given_back() {
        let room = Room::new(Limits { each: 2, all: 3 });
        let first = room.take(1).unwrap();
        let _second = room.take(1).unwrap();
        assert!(room.take(1).is_none());
        let _others = room.take(2).unwrap();
        assert!(room.take(2).is_none() && room.take(3).is_none(), "all are taken");
        drop(first);
        let again = room.take(3).unwrap();
        drop(again);
        assert!(room.take(1).is_some());
        assert_eq!(room.taken.lock().unwrap().len(), 2);
    }
}
