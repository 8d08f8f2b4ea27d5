//! Loads the program and its maps into the kernel.

use std::{io, sync::Arc, time::Duration};

use aya::{
    Ebpf, EbpfError, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Map, MapData, MapError},
    programs::{ProgramError, Xdp},
};
use aya_log::EbpfLogger;
use lb_common::{control::ClockReading, maps, nat::Ports};

use super::{
    Counters, DatapathError, Egress, KeySlots, LastCommit, MappedControlPage, Options, Owners, Pins,
    Revocations, Tables, error::chain, layout,
};

/// The loaded programs and their maps.
pub struct Datapath {
    ebpf: Ebpf,
    /// The control page: the clock, and the active bank of tables.
    pub control_page: Arc<MappedControlPage>,
    /// Services, Maglev tables and backends.
    pub tables: Tables,
    /// The interfaces that frames may be redirected to.
    pub egress: Egress,
    /// The keys.
    pub key_slots: KeySlots,
    /// The revocations.
    pub revocations: Revocations,
    /// The counters.
    pub counters: Counters,
    /// The owners of the counters.
    pub owners: Owners,
    /// The newest commit of the store.
    pub last_commit: LastCommit,
    /// Maps that start empty although other pinned maps do not: their size has changed, or their pin is missing.
    pub made_anew: Vec<&'static str>,
    /// The pinned maps, to restore their pins.
    pub(super) pinned: Vec<(&'static str, MapData)>,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
}

/// Runs of the program and their time; counted while the BPF statistics of the kernel are on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProgramRuns {
    /// Number of runs.
    pub runs: u64,
    /// Total time.
    pub time: Duration,
}

/// The object that was built into this binary.
///
/// # Errors
/// If there is none.
pub fn embedded_object() -> Result<&'static [u8], DatapathError> {
    #[cfg(bpf_object)]
    return Ok(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tollgate-xdp")));
    #[cfg(not(bpf_object))]
    Err(DatapathError::NoObject)
}

impl Datapath {
    /// Loads the programs of an object, reusing pinned maps; attaches nothing.
    ///
    /// # Errors
    /// If a pinned map has another layout, or the kernel refuses.
    pub fn load(object: &[u8], options: &Options) -> Result<Self, DatapathError> {
        let layouts = layout::Layout::of_object(object, options)?;
        let nat_ports = options.nat_ports.map_or(0, Ports::to_word);
        let mut made_anew = Vec::new();
        let mut loader = EbpfLoader::new();
        loader
            .override_global(maps::HMAC_COST_NS, &options.hmac_cost_ns, true)
            .override_global(maps::NAT_PORTS, &nat_ports, true)
            .override_global(maps::NAT_PORTS_PER_SESSION, &options.nat_ports_per_session, true);
        for name in maps::ALL {
            if let Some(entries) = options.entries(name) {
                loader.map_max_entries(name, entries);
            }
        }
        if let Some(pins) = &options.pins {
            made_anew = layout::reconcile(pins, &layouts)?;
            for name in maps::ALL {
                loader.map_pin_path(name, pins.map(name));
            }
        }
        let mut ebpf = loader.load(object).map_err(refused_object)?;
        for name in [maps::PROGRAM, maps::PROGRAM_PASS, maps::PROGRAM_CLOCK] {
            xdp(&mut ebpf, name)?.load().map_err(refused_program)?;
        }
        let mut take = |name| ebpf.take_map(name).ok_or(DatapathError::Missing { what: "map", name });
        let Map::Array(page) = take(maps::CONTROL)? else {
            return Err(DatapathError::Missing { what: "array", name: maps::CONTROL });
        };
        let control_page = Arc::new(MappedControlPage::new(&page)?);
        let tables = [
            take(maps::SERVICES)?,
            take(maps::MACS)?,
            take(maps::RATES)?,
            take(maps::MAGLEV)?,
            take(maps::BACKENDS)?,
            take(maps::PINNED)?,
        ];
        let key_slots = take(maps::KEY_SLOTS)?;
        let revocations = take(maps::REVOCATIONS)?;
        let egress = take(maps::EGRESS)?;
        let counters = [
            take(maps::COUNTERS)?,
            take(maps::BACKEND_COUNTERS)?,
            take(maps::SCRATCH)?,
            take(maps::SESSIONS)?,
            take(maps::STATEFUL)?,
            take(maps::TRANSLATIONS)?,
        ];
        let cpus = cpus()?;
        let pinned = options.pins.as_ref().map_or(Ok(Vec::new()), open_pinned)?;
        Ok(Self {
            pinned,
            tables: Tables::new(Arc::clone(&control_page), tables, options.grace)?,
            revocations: Revocations::new(Arc::clone(&control_page), revocations)?,
            control_page,
            egress: Egress::new(egress, options.grace)?,
            key_slots: KeySlots::new(key_slots, options.grace)?,
            counters: Counters::new(counters, cpus)?,
            owners: Owners::open(options.pins.as_ref())?,
            last_commit: LastCommit::open(options.pins.as_ref())?,
            made_anew,
            // An object without log calls has no log map.
            logger: EbpfLogger::init(&mut ebpf).ok(),
            ebpf,
        })
    }

    /// One of the programs of `lb_common::maps`.
    ///
    /// # Errors
    /// If the object has none of this name.
    pub fn program(&self, name: &'static str) -> Result<&Xdp, DatapathError> {
        let missing = DatapathError::Missing { what: "program", name };
        self.ebpf.program(name).and_then(|program| program.try_into().ok()).ok_or(missing)
    }

    pub(super) fn program_mut(&mut self, name: &'static str) -> Result<&mut Xdp, DatapathError> {
        xdp(&mut self.ebpf, name)
    }

    /// The kernel's id of the filtering program.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn program_id(&self) -> Result<u32, DatapathError> {
        let info = self.program(maps::PROGRAM)?.info().map_err(refused_program)?;
        Ok(info.id())
    }

    /// Number and total time of the filtering program's runs; `None` if the kernel does not count them.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn program_runs(&self) -> Result<Option<ProgramRuns>, DatapathError> {
        let counts =
            std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|on| on.trim() == "1");
        let info = self.program(maps::PROGRAM)?.info().map_err(refused_program)?;
        Ok(counts.then(|| ProgramRuns { runs: info.run_count(), time: info.run_time() }))
    }

    /// Reads the kernel's clocks at one moment.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub fn read_clock(&self) -> Result<ClockReading, DatapathError> {
        let failed = |cause| DatapathError::Run { program: maps::PROGRAM_CLOCK, cause };
        let packet = [0; 64];
        let mut out = [0; 64];
        let options =
            TestRunOptions { data_in: Some(&packet), data_out: Some(&mut out), ..TestRunOptions::default() };
        let result =
            self.program(maps::PROGRAM_CLOCK)?.test_run(options).map_err(|error| failed(chain(&error)))?;
        const XDP_PASS: u32 = 2;
        if result.return_value != XDP_PASS {
            return Err(failed(format!("it returned {}", result.return_value)));
        }
        let word = |at: usize| u64::from_ne_bytes(out[at..at + 8].try_into().expect("eight bytes"));
        Ok(ClockReading {
            jiffies: word(std::mem::offset_of!(ClockReading, jiffies)),
            monotonic_ns: word(std::mem::offset_of!(ClockReading, monotonic_ns)),
        })
    }

    /// Copies messages of the program to the log.
    pub fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }
}

/// Number of values of an entry of a per-CPU map.
pub(super) fn cpus() -> Result<usize, DatapathError> {
    aya::util::nr_cpus().map_err(|(path, error)| DatapathError::Refused {
        cause: format!("{path}: {error}"),
        hint: "is /sys mounted?",
    })
}

fn open_pinned(pins: &Pins) -> Result<Vec<(&'static str, MapData)>, DatapathError> {
    let open = |name| match MapData::from_pin(pins.map(name)) {
        Ok(map) => Ok((name, map)),
        Err(source) => Err(DatapathError::Map { map: name, action: "open its pin", source }),
    };
    maps::ALL.into_iter().map(open).collect()
}

pub(super) fn xdp<'e>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut Xdp, DatapathError> {
    let missing = DatapathError::Missing { what: "program", name };
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or(missing)
}

pub(super) fn refused_object(error: EbpfError) -> DatapathError {
    let io_error = match &error {
        EbpfError::MapError(MapError::CreateError { io_error, .. } | MapError::IoError(io_error)) => {
            Some(io_error)
        }
        EbpfError::MapError(MapError::SyscallError(error)) => Some(&error.io_error),
        EbpfError::ParseError(_) => return DatapathError::Object(Box::new(error)),
        _ => None,
    };
    DatapathError::Refused { cause: chain(&error), hint: hint(io_error) }
}

pub(super) fn refused_program(error: ProgramError) -> DatapathError {
    let io_error = match &error {
        ProgramError::LoadError { io_error, .. } => Some(io_error),
        ProgramError::SyscallError(error) => Some(&error.io_error),
        _ => None,
    };
    DatapathError::Refused { cause: chain(&error), hint: hint(io_error) }
}

fn hint(error: Option<&io::Error>) -> &'static str {
    match error.and_then(io::Error::raw_os_error) {
        Some(libc::EPERM | libc::EACCES) => {
            "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; `tollgate check` shows what is missing"
        }
        Some(libc::ENOMEM) => "free memory, or reduce `sessions`",
        Some(libc::E2BIG) => "reduce `sessions`",
        _ => "`tollgate check` shows what this kernel lacks",
    }
}
