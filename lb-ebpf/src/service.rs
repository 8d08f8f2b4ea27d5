//! Last part of step 1: the service that a packet is for.

use lb_common::{
    control::Tables,
    service::{BUCKETS, Service, ServiceKey},
};

use crate::maps::SERVICES;

/// The service at an address and port.
#[inline(always)]
pub fn find(tables: Tables, key: &ServiceKey) -> Option<&'static Service> {
    let bucket = SERVICES.get(tables.bank * BUCKETS + key.bucket(tables.seed))?;
    for entry in bucket {
        if entry.key.is(key) && entry.service.index != 0 {
            return Some(&entry.service);
        }
    }
    None
}
