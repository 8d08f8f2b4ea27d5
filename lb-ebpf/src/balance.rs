//! Step 10, its beginning: the backend of a session.

use core::ops::Deref;

use lb_common::{
    backend::{Backend, PinnedKey},
    balance,
    live::Tables,
    maps::{BACKENDS_MAX, SERVICES_MAX},
    reason::Reason,
    service::Service,
    token::Source,
};

use crate::{
    admit::Admitted,
    maps::{BACKENDS, MAGLEV, PINNED},
};

/// A backend, and where it is among all.
#[derive(Clone, Copy)]
pub struct Chosen {
    backend: &'static Backend,
    /// Its place in the map.
    pub place: u32,
}

impl Deref for Chosen {
    type Target = Backend;

    #[inline(always)]
    fn deref(&self) -> &Backend {
        self.backend
    }
}

/// The backend of a session: the one its token names, else the one its hash picks.
#[inline(always)]
pub fn for_session(tables: Tables, service: &Service, admitted: Admitted) -> Result<Chosen, Reason> {
    match admitted.backend_id {
        0 => hashed(tables, service, admitted.session_id),
        backend_id => pinned(tables, service, backend_id),
    }
}

/// The backend of a client without a token: by its address alone, so that its fragments go the same way.
#[inline(always)]
pub fn for_client(tables: Tables, service: &Service, from: &Source) -> Result<Chosen, Reason> {
    hashed(tables, service, from.address)
}

#[inline(always)]
fn hashed(tables: Tables, service: &Service, session: u64) -> Result<Chosen, Reason> {
    let table = MAGLEV.get(tables.half * SERVICES_MAX + service.index).ok_or(Reason::NoBackend)?;
    match table[balance::position(session) as usize] {
        0 => Err(Reason::NoBackend),
        place => at(tables, u32::from(place) - 1),
    }
}

/// The backend of a service with this id.
#[inline(always)]
pub fn pinned(tables: Tables, service: &Service, backend_id: u16) -> Result<Chosen, Reason> {
    let key = PinnedKey { half: tables.half, service_index: service.index as u16, backend_id };
    // SAFETY: a word, copied out here and now.
    let place = *unsafe { PINNED.get(key) }.ok_or(Reason::NoBackend)?;
    at(tables, place)
}

#[inline(always)]
fn at(tables: Tables, place: u32) -> Result<Chosen, Reason> {
    let place = tables.half * BACKENDS_MAX + place;
    let backend = BACKENDS.get(place).filter(|backend| backend.backend_id != 0).ok_or(Reason::NoBackend)?;
    Ok(Chosen { backend, place })
}
