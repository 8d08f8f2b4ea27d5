//! First part of step 10: the backend of a session.

use core::ops::Deref;

use lb_common::{
    backend::{Backend, PinnedKey},
    balance,
    control::Tables,
    maps::{BACKENDS_MAX, SERVICES_MAX},
    reason::{Reason, ReasonCode},
    service::Service,
    token::Source,
};

use crate::{
    admit::Admitted,
    maps::{BACKENDS, MAGLEV, PINNED},
};

/// A backend, and its index.
#[derive(Clone, Copy)]
pub struct Chosen {
    backend: &'static Backend,
    /// Its index in the map.
    pub index: u32,
}

impl Deref for Chosen {
    type Target = Backend;

    #[inline(always)]
    fn deref(&self) -> &Backend {
        self.backend
    }
}

/// The backend of a session: the one that its token names, else the one that its hash selects.
#[inline(always)]
pub fn for_session(tables: Tables, service: &Service, admitted: Admitted) -> Result<Chosen, ReasonCode> {
    match admitted.backend_id {
        0 => hashed(tables, service, admitted.session_id),
        backend_id => pinned(tables, service, backend_id),
    }
}

/// The backend of a client without a token. It depends only on the client's address, so that fragments go to the same
/// backend.
#[inline(always)]
pub fn for_client(tables: Tables, service: &Service, from: &Source) -> Result<Chosen, ReasonCode> {
    hashed(tables, service, from.address)
}

#[inline(always)]
fn hashed(tables: Tables, service: &Service, session: u64) -> Result<Chosen, ReasonCode> {
    let table = MAGLEV.get(tables.bank * SERVICES_MAX + service.index).ok_or(Reason::NoBackend)?;
    match table[balance::position(session) as usize] {
        0 => Err(Reason::NoBackend.into()),
        entry => at(tables, u32::from(entry) - 1),
    }
}

/// The backend of a service with this id.
#[inline(always)]
pub fn pinned(tables: Tables, service: &Service, backend_id: u16) -> Result<Chosen, ReasonCode> {
    let key = PinnedKey { bank: tables.bank, service_index: service.index as u16, backend_id };
    // SAFETY: one word, which is copied immediately.
    let index = *unsafe { PINNED.get(key) }.ok_or(Reason::NoBackend)?;
    at(tables, index)
}

#[inline(always)]
fn at(tables: Tables, index: u32) -> Result<Chosen, ReasonCode> {
    let index = tables.bank * BACKENDS_MAX + index;
    let backend = BACKENDS.get(index).filter(|backend| backend.backend_id != 0).ok_or(Reason::NoBackend)?;
    Ok(Chosen { backend, index })
}
