//! Serves connections, one request each, with limits on number, time and size. A client that opens many connections
//! or lets them wait delays only itself.

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

/// Time limit for the head of a request, which usually arrives in one packet.
const HEAD: Duration = Duration::from_secs(5);
/// Time limit for a connection: a key rotation takes longest, and an answer has a few megabytes at most.
const WHOLE: Duration = Duration::from_secs(30);
/// Size limit for the head of a request, bytes.
const HEAD_MAX: usize = 32 * 1024;
/// Pause after accept(2) has failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections of root and of the user of the daemon to the control socket.
const OWN: Limits = Limits { each: 64, all: 128 };
/// Connections of other users, so that descriptors and time are left for root.
const OTHERS: Limits = Limits { each: 8, all: 64 };
/// Connections to the metrics port.
const METRICS: usize = 64;

/// Limits on the number of connections.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Of one user.
    each: usize,
    /// Of all.
    all: usize,
}

/// Serves the control socket until `stop`; then only sends pending answers.
pub async fn control(
    listener: UnixListener,
    router: Router,
    rules: Arc<Rules>,
    mut stop: oneshot::Receiver<()>,
) {
    let (own, others) = (Limiter::new(OWN), Limiter::new(OTHERS));
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
        let limiter = if rules.is_own(&peer) { &own } else { &others };
        let Some(permit) = limiter.acquire(peer.uid) else {
            debug!(uid = peer.uid, "too many connections to the control socket");
            continue;
        };
        let router = router.clone().layer(Extension(Caller::new(&rules, &peer)));
        let stopped = stopped.clone();
        connections.spawn(async move {
            serve(stream, router, stopped).await;
            drop(permit);
        });
    }
    drop(stopping);
    while connections.join_next().await.is_some() {}
}

/// Serves the metrics port. No connection is refused: where there are 64, the oldest connection of the sender with
/// the most is closed. So requests that are never finished and answers that are never read do not delay the probe of
/// another sender.
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
        // A request that arrived with its connection is answered before enough other connections arrive to have it
        // closed. Not after each connection: otherwise waiting connections would be delayed by one metrics page each.
        accepted = (accepted + 1) % (METRICS / 2);
        if accepted == 0 {
            yield_now().await;
        }
    }
}

/// The sender of a connection: an IPv4 address, or the /64 of an IPv6 address, because a host can use all addresses
/// of its /64.
fn sender(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// Index of the connection to close, given the senders of all connections by age: the oldest of the sender with the
/// most.
fn evicted(senders: &[IpAddr]) -> usize {
    let share = |sender: &IpAddr| senders.iter().filter(|other| *other == sender).count();
    let most = senders.iter().map(share).max().unwrap_or(0);
    senders.iter().position(|sender| share(sender) == most).unwrap_or(0)
}

/// Handles an error of accept(2): a connection that has already been closed, or no descriptor left.
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
            // The sender ends when the server stops.
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

/// Limits the number of connections, in total and of each holder.
struct Limiter<K> {
    limits: Limits,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

/// The right to have one connection, until it is dropped.
struct Permit<K: Eq + Hash> {
    holder: K,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Copy + Eq + Hash> Limiter<K> {
    fn new(limits: Limits) -> Self {
        Self { limits, taken: Arc::default() }
    }

    fn acquire(&self, holder: K) -> Option<Permit<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.get(&holder).copied().unwrap_or(0);
        if all >= self.limits.all || own >= self.limits.each {
            return None;
        }
        taken.insert(holder, own + 1);
        Some(Permit { holder, taken: Arc::clone(&self.taken) })
    }
}

impl<K: Eq + Hash> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.holder) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.holder)),
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
    fn permits_are_counted_by_holder_and_given_back() {
        let limiter = Limiter::new(Limits { each: 2, all: 3 });
        let first = limiter.acquire(1).unwrap();
        let _second = limiter.acquire(1).unwrap();
        assert!(limiter.acquire(1).is_none());
        let _others = limiter.acquire(2).unwrap();
        assert!(limiter.acquire(2).is_none() && limiter.acquire(3).is_none(), "all are taken");
        drop(first);
        let again = limiter.acquire(3).unwrap();
        drop(again);
        assert!(limiter.acquire(1).is_some());
        assert_eq!(limiter.taken.lock().unwrap().len(), 2);
    }
}
