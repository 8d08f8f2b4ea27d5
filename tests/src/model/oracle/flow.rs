//! The backend that gets an ICMP error about a client: a second implementation of docs/adr/0010.

use std::{collections::HashMap, net::SocketAddr};

use super::{
    session::{Session, TokenId},
    token::{Sealed, Token},
};

/// A client of a service, by the service's index.
type Client = (SocketAddr, u32);

/// The flows of sessions.
#[derive(Default)]
pub struct Flows(HashMap<Client, Flow>);

/// The owner of a client.
struct Flow {
    sealed: Sealed,
    owner: TokenId,
}

/// The use of a token.
pub struct Use {
    /// The source of its last datagram; `None` if one of its flows was taken over since.
    client: Option<SocketAddr>,
    /// The time of that datagram, in units of its own phase.
    unit: u64,
    /// Whether another session owns the client.
    lost: bool,
    phase_ns: u64,
    bound: bool,
}

impl Use {
    /// The use of a token that has not passed yet.
    pub fn none(token: &Token<'_>) -> Self {
        let phase_ns = u64::from(token.claims()[32]) << 26;
        Self { client: None, unit: 0, lost: false, phase_ns, bound: token.is_bound() }
    }

    const fn unit_at(&self, kernel_ns: u64) -> u64 {
        (kernel_ns + self.phase_ns) >> 30
    }
}

impl Flows {
    /// The session that owns this client.
    pub fn session(&self, client: Client) -> Option<Sealed> {
        self.0.get(&client).map(|flow| flow.sealed)
    }

    /// Records that a datagram of a token has passed.
    pub fn passed(
        &mut self,
        tokens: &mut HashMap<TokenId, Session>,
        id: TokenId,
        client: Client,
        kernel_ns: u64,
    ) {
        let Some(Session { sealed, used, .. }) = tokens.get_mut(&id) else { return };
        let (sealed, bound, now) = (*sealed, used.bound, used.unit_at(kernel_ns));
        if used.client == Some(client.0) {
            if used.lost && used.unit == now {
                return;
            }
            if !used.lost && used.unit / 16 == now / 16 {
                used.unit = now;
                return;
            }
        }
        let is_own = match self.0.get(&client) {
            Some(flow) if flow.sealed.session_id != sealed.session_id => {
                let owner = tokens.get_mut(&flow.owner).map(|owner| &mut owner.used);
                owner.filter(|owner| owner.client == Some(client.0)).is_none_or(|owner| {
                    let recently = owner.unit_at(kernel_ns) - owner.unit <= 2;
                    let keeps = recently && !owner.lost && (owner.bound || !bound);
                    if !keeps {
                        owner.client = None;
                    }
                    !keeps
                })
            }
            _ => true,
        };
        if is_own {
            self.0.insert(client, Flow { sealed, owner: id });
        }
        if let Some(Session { used, .. }) = tokens.get_mut(&id) {
            (used.client, used.unit, used.lost) = (Some(client.0), now, !is_own);
        }
    }
}
