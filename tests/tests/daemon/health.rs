//! Health and readiness respond within a second, regardless of other requests to the metrics port.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::testbed::daemon::{METRICS, http};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt::RcvBuf,
    },
};

use crate::testbed::{L2, Testbed};

/// How long a probe waits.
const SOON: Duration = Duration::from_secs(1);

/// Connects to the metrics port from a loopback address, with a small receive buffer.
fn connect_from(last: u8) -> Result<TcpStream> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)?;
    setsockopt(&socket, RcvBuf, &1024)?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, last, 0))?;
    let [a, b, c, d] = METRICS.0.octets();
    connect(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, METRICS.1))?;
    Ok(socket.into())
}

/// This many connections from this many addresses that have sent this request and read nothing.
fn crowd(testbed: &Testbed, connections: usize, addresses: u8, sent: &str) -> Result<Vec<TcpStream>> {
    // A machine with strict limits may not allow more open files.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most.min(8192), most)?;
    testbed.topology.balancer.enter(|| {
        (0..connections)
            .map(|number| {
                let mut stream = connect_from(2 + (number % usize::from(addresses)) as u8)?;
                stream.write_all(sent.as_bytes())?;
                Ok(stream)
            })
            .collect()
    })?
}

fn answers_soon(testbed: &Testbed, what: &str) -> Result<()> {
    for path in ["/readyz", "/healthz"] {
        let asked = Instant::now();
        let answer = http(&testbed.topology.balancer, path).with_context(|| format!("{what}: {path}"))?;
        let took = asked.elapsed();
        ensure!(
            answer == (200, "ok\n".to_owned()) && took < SOON,
            "{what}: {path} after {took:?}: {answer:?}"
        );
    }
    Ok(())
}

#[test]
fn half_requests_keep_no_probe_waiting() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let _daemon = testbed.start()?;
    const HALF: &str = "GET /readyz HTTP/1.1\r\nHost: ";
    for (connections, addresses) in [(80, 4), (1000, 4), (1000, 1), (1000, 100)] {
        let what = format!("{connections} half requests from {addresses} addresses");
        let _streams = crowd(&testbed, connections, addresses, HALF)?;
        answers_soon(&testbed, &what)?;
        let (status, page) = http(&testbed.topology.balancer, "/metrics")?;
        ensure!(status == 200 && page.contains("tollgate_build_info"), "{what}: {status}");
    }
    Ok(())
}

#[test]
fn pages_that_nobody_reads_keep_no_probe_waiting() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let _daemon = testbed.start()?;
    const WHOLE: &str = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (connections, addresses) in [(80, 4), (500, 4), (500, 100)] {
        let what = format!("{connections} unread pages for {addresses} addresses");
        let _streams = crowd(&testbed, connections, addresses, WHOLE)?;
        answers_soon(&testbed, &what)?;
        let (status, _) = http(&testbed.topology.balancer, "/metrics")?;
        ensure!(status == 200, "{what}: {status}");
    }
    Ok(())
}

/// A slow request is answered: an address with one connection does not lose it to other addresses.
#[test]
fn a_slow_request_survives_a_crowd() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let _daemon = testbed.start()?;
    let slow = SocketAddr::from((METRICS.0, METRICS.1));
    ensure!(slow.ip() == IpAddr::from(Ipv4Addr::LOCALHOST), "the crowd comes from other addresses");
    let mut stream = testbed.topology.balancer.enter(|| TcpStream::connect(slow))??;
    stream.write_all(b"GET /healthz HTTP/1.1\r\n")?;
    let _streams = crowd(&testbed, 500, 4, "GET /")?;
    stream.write_all(b"Host: localhost\r\n\r\n")?;
    stream.set_read_timeout(Some(SOON))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}
