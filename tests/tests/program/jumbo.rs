//! Frames in several buffers, of which the program reads only the first.

use std::io::{self, Write as _};

use anyhow::{Result, ensure};
use aya::{TestRun as _, TestRunOptions, util::KernelVersion};
use lb_common::{
    backend::Backend,
    maps::PROGRAM,
    reason::Reason,
    service::{FLAG_STRIP, FORWARD_GUE, FORWARD_IPIP, FORWARD_L2, FORWARD_LOCAL},
    token::{Header, header::LEN},
};
use lb_tests::model::{
    case::{Case, Expected, both},
    fixture::{self, Fixture, SESSION},
    forwarding,
    packet::{Family, Packet, UdpChecksum},
    program::{Counts, FIRST_BUFFER_MAX, Outcome, Program, Verdict},
};

use crate::{
    matrix::case_groups,
    proof::{self, TS, changed, forged, forwarded, refused},
};

case_groups! {
    whole: "Frames in several buffers" => cases();
}

/// For a packet of no service, only the first buffer is counted: the length of all buffers would cost a helper call for
/// every frame.
#[test]
fn not_ours() -> Result<()> {
    let program = Program::load()?;
    for family in Family::BOTH {
        let frame = Packet { protocol: Some(6), ..jumbo(&[]) }.over(family).bytes();
        ensure!(program.run(&frame)? == Outcome { verdict: Verdict::Pass, frame });
    }
    let counted = program.counts()?.reasons[&(0, Reason::NotOurs)];
    ensure!(counted.packets == 2 && counted.bytes == 2 * FIRST_BUFFER_MAX as u64, "{counted:?}");
    Ok(())
}

/// Wherever a driver splits a frame into buffers, its token is read completely or the frame is refused as unreadable.
/// In the latter case, no sequence number of a PROOF token is used up.
#[test]
fn cut_anywhere() -> Result<()> {
    if KernelVersion::current()? < KernelVersion::new(6, 18, 0) {
        // On this kernel, the first buffer of a test run has a fixed length, which `whole` tests. Not written with a
        // macro, because tests capture its output.
        writeln!(
            io::stderr(),
            "jumbo::cut_anywhere is LEFT OUT: only since Linux 6.18 can frames be cut anywhere"
        )?;
        return Ok(());
    }
    let mut program = Program::load()?;
    program.enter(&proof::fixture())?;
    for family in Family::BOTH {
        let (bearer, token) = (fixture::token(), fixture::key().proof(&fixture::grant()));
        for (read, made) in [
            (LEN, &(|_| bearer) as &dyn Fn(u32) -> Header),
            (LEN + 16, &|number| token.header(number, TS, &data())),
        ] {
            program.forget()?;
            for first in 0..LEN + 40 {
                let packet = jumbo(&made(first.saturating_sub(read) as u32).to_bytes()).over(family);
                let name = format!("{first} bytes of the payload in the first buffer");
                let case = if first < read {
                    refused(&name, &packet, Reason::Unsupported)
                } else {
                    forwarded(&name, SESSION, &packet)
                };
                check_cut(&mut program, &case, packet.payload_offset() + first)?;
            }
        }
    }
    Ok(())
}

/// [`Case::check`] for a frame whose first buffer has only this many bytes.
fn check_cut(program: &mut Program, case: &Case, first: usize) -> Result<()> {
    let before = program.counts()?;
    // `data_end` of struct xdp_md.
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&u32::try_from(first)?.to_ne_bytes());
    let mut out = vec![0; case.frame.len()];
    let options = TestRunOptions {
        data_in: Some(&case.frame),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        ..TestRunOptions::default()
    };
    let result = program.datapath().program(PROGRAM)?.test_run(options)?;
    out.truncate(result.data_size_out as usize);
    let Expected { outcome: wanted, service, reason, backend } = &case.expected;
    let as_wanted = wanted.verdict == Verdict::Drop || out == wanted.frame;
    ensure!(result.return_value == wanted.verdict.action() && as_wanted, "{}: {out:02x?}", case.name);
    let mut expected = Counts::default();
    expected.add(*service, *reason, *backend, case.frame.len());
    let moved = program.counts()?.since(&before);
    ensure!(moved == expected, "{}: counted as {moved:?}", case.name);
    Ok(())
}

fn data() -> Vec<u8> {
    std::iter::repeat(0..=250).flatten().take(8001).collect()
}

fn jumbo(token: &[u8]) -> Packet {
    Packet::with_payload([token, &data()].concat())
}

fn cases() -> Vec<Case> {
    let packet = jumbo(&fixture::token().to_bytes());
    let proof = jumbo(&fixture::key().proof(&fixture::grant()).header(1, TS, &data()).to_bytes());
    assert!(packet.bytes().len() > FIRST_BUFFER_MAX);
    let mut cases = both(|_| {
        vec![
            forwarded("a PROOF token, stripped", SESSION, &proof),
            refused("a PROOF token, a wrong proof", &forged(&proof), Reason::BadProof),
            refused(
                "a PROOF token, another 16th byte behind it",
                &changed(&proof, LEN + 15),
                Reason::BadProof,
            ),
            refused("a PROOF token, again", &proof, Reason::Replay)
                .after(vec![forwarded("before", SESSION, &proof)]),
        ]
    });
    for (forward, mode) in [(FORWARD_L2, "l2"), (FORWARD_IPIP, "ipip"), (FORWARD_GUE, "gue")] {
        for (flags, strip) in [(FLAG_STRIP, "stripped"), (0, "unstripped")] {
            for (family, partial) in
                Family::BOTH.into_iter().flat_map(|family| [(family, false), (family, true)])
            {
                let mut packet = packet.clone().over(family);
                let mut name = format!("a valid token, {strip}: {mode}");
                if partial {
                    packet.udp_checksum = UdpChecksum::Partial;
                    name = format!("a valid token, a partial UDP checksum, {strip}: {mode}");
                }
                let backend = Backend { mtu: 9000, ..fixture::backend_at(1, family) };
                let fixture = fixture::sending(forward, flags, backend);
                let inner = if flags == 0 { packet.clone() } else { packet.clone().stripped() };
                let sent = forwarding::leaving(&inner, &fixture.services[0].1, &backend, SESSION, None);
                cases.push(Case::sent(name, fixture, &packet, &sent, &backend, Reason::Forwarded));
            }
        }
    }
    let local = fixture::sending(FORWARD_LOCAL, FLAG_STRIP, fixture::backend(1));
    let delivered = packet.clone().stripped();
    cases.extend(both(|_| {
        vec![
            Case::local(
                "a valid token, stripped: local",
                local.clone(),
                &packet,
                &delivered,
                Reason::Forwarded,
            ),
            Case::refused("no token", Fixture::default(), &jumbo(&[]), Reason::NoToken),
            Case::refused(
                "a length that is one more than the frame's",
                Fixture::default(),
                &one_more(packet.clone()),
                Reason::Malformed,
            ),
        ]
    }));
    cases
}

/// Both lengths are one more.
fn one_more(packet: Packet) -> Packet {
    let len = packet.payload.len() + lb_tests::model::packet::UDP_LEN + 1;
    let ip_len = i32::try_from(len).ok();
    Packet { ip_len, udp_len: u16::try_from(len).ok(), ..packet }
}
