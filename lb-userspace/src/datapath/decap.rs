//! The program for the host of a backend: it removes the outer headers of balancers while this process runs.

use std::{fmt, net::IpAddr, str::FromStr};

use aya::{
    Ebpf,
    maps::{Array, IterableMap as _, Map, MapData, PerCpuArray},
    programs::{Xdp, links::FdLink},
};
use lb_common::{
    counter::Counter,
    decap::{COUNTERS, Outcome, PROGRAM, SETTINGS, SOURCES_MAX, Settings, Source},
};

use super::{
    DatapathError, Totals,
    attach::{self, Mode},
    load,
};

/// The loaded program.
pub struct Decap {
    ebpf: Ebpf,
    settings: Array<MapData, Settings>,
    counters: PerCpuArray<MapData, Counter>,
    cpus: usize,
    told: Settings,
    link: Option<FdLink>,
}

/// The object that was built into this binary.
///
/// # Errors
/// If there is none.
pub fn embedded_object() -> Result<&'static [u8], DatapathError> {
    #[cfg(bpf_object)]
    return Ok(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decap-xdp")));
    #[cfg(not(bpf_object))]
    Err(DatapathError::NoObject)
}

impl Decap {
    /// Loads the program for an interface with this MAC address and these balancers; attaches nothing.
    ///
    /// # Errors
    /// If there are too many balancers, or the kernel refuses.
    pub fn load(object: &[u8], mac: [u8; 6], balancers: &[Balancers]) -> Result<Self, DatapathError> {
        if balancers.len() > SOURCES_MAX {
            return Err(DatapathError::Full {
                what: "addresses and prefixes of balancers",
                wanted: balancers.len(),
                capacity: SOURCES_MAX,
            });
        }
        let mut told = Settings::default();
        for (source, balancers) in told.sources.iter_mut().zip(balancers) {
            *source = balancers.source();
        }
        let mut ebpf = Ebpf::load(object).map_err(load::refused_object)?;
        load::xdp(&mut ebpf, PROGRAM)?.load().map_err(load::refused_program)?;
        let opened = |map| move |source| DatapathError::Map { map, action: "open it", source };
        let mut take = |name| ebpf.take_map(name).ok_or(DatapathError::Missing { what: "map", name });
        let settings: Map = take(SETTINGS)?;
        let counters = take(COUNTERS)?;
        let mut decap = Self {
            settings: settings.try_into().map_err(opened(SETTINGS))?,
            counters: counters.try_into().map_err(opened(COUNTERS))?,
            cpus: load::cpus()?,
            told,
            link: None,
            ebpf,
        };
        decap.tell()?;
        decap.set_mac(mac)?;
        Ok(decap)
    }

    /// Sets the MAC address of the interface.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn set_mac(&mut self, mac: [u8; 6]) -> Result<(), DatapathError> {
        let [a, b, c, d, e, f] = mac;
        let words = [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes);
        if self.told.mac != words {
            self.told.mac = words;
            self.tell()?;
        }
        Ok(())
    }

    fn tell(&mut self) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::Map { map: SETTINGS, action: "write it", source };
        self.settings.set(0, self.told, 0).map_err(failed)
    }

    /// Attaches the program to an interface, in native mode if the driver supports it; returns the mode. The program is
    /// detached when this value is dropped.
    ///
    /// # Errors
    /// If the kernel refuses, for example because another program is attached.
    pub fn attach(&mut self, interface: &str, index: u32) -> Result<Mode, DatapathError> {
        let modes = [Mode::Native, Mode::Generic];
        let program = load::xdp(&mut self.ebpf, PROGRAM)?;
        let (mode, link) = attach::attach_first(program, interface, index, &modes)?;
        self.link = Some(link);
        Ok(mode)
    }

    /// The program, for test runs.
    ///
    /// # Errors
    /// If the object has none.
    pub fn program(&self) -> Result<&Xdp, DatapathError> {
        let missing = DatapathError::Missing { what: "program", name: PROGRAM };
        self.ebpf.program(PROGRAM).and_then(|program| program.try_into().ok()).ok_or(missing)
    }

    /// Received frames and bytes, by outcome.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn counts(&self) -> Result<Vec<(Outcome, Counter)>, DatapathError> {
        let totals = Totals::read(COUNTERS, self.counters.map(), self.cpus)?;
        Ok(Outcome::ALL.map(|outcome| (outcome, totals.at(outcome.index()))).to_vec())
    }
}

/// The source of packets of balancers: an address or a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balancers {
    address: IpAddr,
    length: u8,
}

impl Balancers {
    fn source(self) -> Source {
        match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX << (32 - u32::from(self.length));
                let words = [address.to_bits(), mask].map(|word| [0, 0, 0, word.to_be()]);
                Source { version: 4, address: words[0], mask: words[1] }
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX << (128 - u32::from(self.length));
                let words = |bits: u128| [96, 64, 32, 0].map(|shift| ((bits >> shift) as u32).to_be());
                Source { version: 6, address: words(address.to_bits()), mask: words(mask) }
            }
        }
    }
}

impl FromStr for Balancers {
    type Err = String;

    /// `ADDR` or `ADDR/LEN`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| format!("{address:?} is not an IP address"))?;
        let (width, bits) = match address {
            IpAddr::V4(address) => (32, u128::from(address.to_bits()) << 96),
            IpAddr::V6(address) => (128, address.to_bits()),
        };
        if address.is_unspecified() || address.is_multicast() {
            return Err(format!(
                "{address} is not the address of a host; use the addresses of the balancers"
            ));
        }
        let length = length.map_or(Ok(width), |length| {
            let parsed = length.parse().ok().filter(|length| (1..=width).contains(length));
            parsed.ok_or_else(|| format!("/{length} is no prefix length; 1 to {width} is"))
        })?;
        if length < width && bits << length != 0 {
            return Err(format!("{address} has more bits than the {length} of the prefix"));
        }
        Ok(Self { address, length })
    }
}

impl fmt::Display for Balancers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = if self.address.is_ipv4() { 32 } else { 128 };
        if self.length == width {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.length)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_prefixes_are_read() {
        for text in ["10.9.0.1", "10.9.0.0/24", "10.9.0.2/31", "fd00:9::1", "fd00:9::/64"] {
            assert_eq!(text.parse::<Balancers>().unwrap().to_string(), text);
        }
        assert_eq!("10.9.0.1/32".parse::<Balancers>().unwrap().to_string(), "10.9.0.1");
        for text in ["", "lb-1", "10.9.0.1/24", "10.9.0.0/0", "10.9.0.0/33", "10.9.0.0/x", "fd00:9::1/64"] {
            assert!(text.parse::<Balancers>().is_err(), "{text}");
        }
        for nobody in ["0.0.0.0", "::", "::/8", "224.0.0.1", "ff02::1"] {
            assert!(nobody.parse::<Balancers>().is_err(), "{nobody}");
        }
    }

    #[test]
    fn a_prefix_holds_its_addresses() {
        let v6 = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
        let words = |octets: [u8; 16]| {
            [0, 4, 8, 12].map(|at| u32::from_ne_bytes(octets[at..at + 4].try_into().unwrap()))
        };
        let source = "fd00:9::/65".parse::<Balancers>().unwrap().source();
        assert!(source.holds(6, words(v6("fd00:9::7fff:0:0:1"))));
        assert!(!source.holds(6, words(v6("fd00:9::8000:0:0:1"))));
        let source = "10.9.0.2/31".parse::<Balancers>().unwrap().source();
        let v4 = |octets: [u8; 4]| [0, 0, 0, u32::from_ne_bytes(octets)];
        assert!(source.holds(4, v4([10, 9, 0, 3])) && !source.holds(4, v4([10, 9, 0, 4])));
    }
}
