//! A comparison of what was sent, delivered and counted, with every difference.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{balance, reason::Reason};
use lb_tests::testbed::forward::Forward;
use tollgate::balancer::{Share, table};

use crate::{
    junk::Junk,
    receivers::Received,
    script::{BACKENDS, Options},
    sender::{SESSIONS, Sender, claims, session_id},
};

/// The data that is compared.
pub struct Report<'a> {
    /// The options of the run.
    pub options: Options,
    /// The sent datagrams.
    pub sender: &'a Sender,
    /// The datagrams that each backend's application received.
    pub received: &'a [Received],
    /// `tollgate counters`: packets by reason, without zeros.
    pub counted: &'a BTreeMap<String, u64>,
    /// `tollgate backends list`: packets of each backend.
    pub counted_of_backends: &'a [u64],
}

impl Report<'_> {
    /// Prints the tables, and returns every deviation.
    pub fn print(&self) -> Vec<String> {
        let mut faults = Vec::new();
        self.kinds(&mut faults);
        self.reasons(&mut faults);
        self.keys();
        match self.options.forward {
            Forward::Local => self.sessions(&mut faults),
            _ => self.backends(&mut faults),
        }
        let received = self.received.iter().flat_map(|one| &one.valid);
        self.each_once("valid datagrams", received, &mut faults);
        if let Some(answers) = &self.sender.answers {
            println!("\n{:<18}{:>10}{:>12}", "answers", "sent", "arrived");
            println!("{:<18}{:>10}{:>12}", "to valid", self.sender.valid, answers.len());
            self.each_once("answers", answers, &mut faults);
        }
        faults
    }

    fn kinds(&self, faults: &mut Vec<String>) {
        println!("\n{:<18}{:>10}{:>12}{:>10}", "sent", "datagrams", "delivered", "dropped");
        let row = |name: &str, sent: u64, delivered: u64| {
            println!("{name:<18}{sent:>10}{delivered:>12}{:>10}", sent.saturating_sub(delivered));
        };
        row("valid", self.sender.valid, self.received.iter().map(|one| one.valid.len() as u64).sum());
        for kind in Junk::ALL {
            let name = kind.name();
            let sent = self.sender.junk.get(&kind).copied().unwrap_or(0);
            let delivered = self.received.iter().filter_map(|one| one.junk.get(&kind)).sum();
            row(name, sent, delivered);
            if sent == 0 {
                faults.push(format!("no datagram {name} was sent"));
            }
            if delivered > 0 {
                faults.push(format!("{delivered} datagrams {name} were delivered"));
            }
        }
    }

    fn reasons(&self, faults: &mut Vec<String>) {
        let mut expected = BTreeMap::from([(Reason::Forwarded.name(), self.sender.valid)]);
        for (kind, sent) in &self.sender.junk {
            *expected.entry(kind.reason().name()).or_default() += sent;
        }
        if let Some(answers) = &self.sender.answers {
            expected.insert(Reason::Reply.name(), answers.len() as u64);
        }
        println!("\n{:<18}{:>10}{:>12}", "counted as", "packets", "sent");
        let names: BTreeSet<&str> =
            expected.keys().copied().chain(self.counted.keys().map(String::as_str)).collect();
        for name in names {
            let counted = self.counted.get(name).copied().unwrap_or(0);
            let sent = expected.get(name).copied().unwrap_or(0);
            println!("{name:<18}{counted:>10}{sent:>12}");
            if counted != sent {
                faults.push(format!("{counted} packets are counted as {name}, and {sent} were sent"));
            }
        }
    }

    fn keys(&self) {
        println!("\n{:<18}{:>10}", "signed by key", "valid sent");
        for (key, sent) in &self.sender.by_key {
            println!("{:<18}{sent:>10}", key.0);
        }
    }

    fn backends(&self, faults: &mut Vec<String>) {
        println!("\n{:<18}{:>10}{:>12}{:>10}", "backend", "counted", "arrived", "sessions");
        for ((received, counted), id) in self.received.iter().zip(self.counted_of_backends).zip(1u16..) {
            let arrived = received.valid.len() as u64;
            let sessions: BTreeSet<u32> = received.valid.iter().map(|(session, _)| *session).collect();
            println!("{:<18}{counted:>10}{arrived:>12}{:>10}", format!("backend{id}"), sessions.len());
            if arrived != *counted {
                faults.push(format!("backend{id}: {arrived} datagrams arrived, and {counted} are counted"));
            }
            if received.strange > 0 {
                faults.push(format!(
                    "backend{id} got {} datagrams that the client did not send",
                    received.strange
                ));
            }
            for session in sessions {
                if session >= SESSIONS || backend_of(session) != id {
                    faults.push(format!("session {session} came to backend{id}"));
                }
            }
        }
        if self.received.len() != self.counted_of_backends.len() {
            faults.push(format!("the daemon lists {} backends", self.counted_of_backends.len()));
        }
    }

    /// Compares the sessions; only if there are backends.
    fn sessions(&self, faults: &mut Vec<String>) {
        let sessions: BTreeSet<u32> =
            self.received.iter().flat_map(|one| &one.valid).map(|(session, _)| *session).collect();
        println!("\n{:<18}{:>10}", "sessions", sessions.len());
        let strange: u64 = self.received.iter().map(|one| one.strange).sum();
        if strange > 0 {
            faults.push(format!("{strange} datagrams arrived that the client did not send"));
        }
    }

    fn each_once<'a>(
        &self,
        what: &str,
        datagrams: impl IntoIterator<Item = &'a (u32, u32)>,
        faults: &mut Vec<String>,
    ) {
        let mut arrived = BTreeSet::new();
        for datagram in datagrams {
            if !arrived.insert(*datagram) {
                faults.push(format!("{what}: number {} of session {} came twice", datagram.1, datagram.0));
            }
        }
        let sent: BTreeSet<(u32, u32)> = (0..)
            .zip(&self.sender.sequences)
            .flat_map(|(session, end)| (0..*end).map(move |sequence| (session, sequence)))
            .collect();
        let missing = sent.difference(&arrived).count();
        if missing > 0 {
            faults.push(format!("{what}: {missing} have not arrived"));
        }
        let extra = arrived.difference(&sent).count();
        if extra > 0 {
            faults.push(format!("{what}: {extra} arrived that were never sent"));
        }
    }
}

/// The backend of a session: the one its token names, else the Maglev table's.
fn backend_of(number: u32) -> u16 {
    let claims = claims(number);
    if claims.backend_id != 0 {
        return claims.backend_id;
    }
    let shares: Vec<_> = (1..=u16::from(BACKENDS))
        .map(|backend_id| Share { backend_id, weight: 100, entry: backend_id })
        .collect();
    table(claims.service_id, &shares)[balance::position(session_id(number)) as usize]
}
