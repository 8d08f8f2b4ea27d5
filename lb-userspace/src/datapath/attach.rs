//! Attaches the program to interfaces by BPF links. The links are pinned, so that the program stays attached when the
//! daemon ends.

use std::{io, path::Path};

use aya::programs::{
    ProgramError, Xdp, XdpMode,
    links::{FdLink, LinkError, PinnedLink},
    loaded_programs,
    xdp::XdpLink,
};
use lb_common::maps;

use super::{Datapath, DatapathError, HeldLink, LastCommit, Pins, error::chain};

/// Mode in which a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Native: in the driver.
    Native,
    /// Generic: after the kernel has made an skb.
    Generic,
}

impl Mode {
    /// Name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

impl Datapath {
    /// Attaches the program to an interface that has none, in the first mode of `modes` that the driver supports, and
    /// pins the link.
    ///
    /// # Errors
    /// If the kernel refuses, for example because another program is attached; then nothing has changed.
    pub fn attach(
        &mut self,
        pins: &Pins,
        interface: &str,
        index: u32,
        modes: &[Mode],
    ) -> Result<(Mode, HeldLink), DatapathError> {
        let (mode, link) = attach_first(self.program_mut(maps::PROGRAM)?, interface, index, modes)?;
        let pin = pins.link(index, interface);
        let failed = |source: io::Error| DatapathError::Pin {
            path: pins.name(&pin),
            action: "pin the link",
            source,
            hint: "the program is detached again; is a BPF file system still mounted there? If it is, and this \
                   daemon is not root, start the daemon again",
        };
        link.pin(&pin).map_err(|error| failed(io::Error::other(chain(&error))))?;
        // aya's descriptor of the link is closed by now, and the pin keeps it.
        Ok((mode, HeldLink::open(&pin).map_err(failed)?))
    }

    /// Replaces the program of a pinned link atomically. `None` if the interface of the link is gone.
    ///
    /// # Errors
    /// If the link cannot be read, or the kernel refuses.
    pub fn replace(
        &mut self,
        pins: &Pins,
        pin: &Path,
        interface: &str,
    ) -> Result<Option<HeldLink>, DatapathError> {
        let unreadable = |cause: String| {
            let hint = format!("remove {} and start again", pins.name(pin).display());
            failed(interface, format!("the pinned link: {cause}"), &hint)
        };
        let program = self.program_mut(maps::PROGRAM)?;
        let link: FdLink = PinnedLink::from_pin(pin).map_err(|error| unreadable(chain(&error)))?.into();
        let link = XdpLink::try_from(link).map_err(|error| unreadable(chain(&error)))?;
        let held = HeldLink::open(pin).map_err(|error| unreadable(error.to_string()))?;
        let id = match program.attach_to_link(link) {
            Ok(id) => id,
            Err(ProgramError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOLINK) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(refusal(interface, &error).0),
        };
        // Closes aya's descriptor of the link.
        program.take_link(id).map_err(|error| refusal(interface, &error).0)?;
        Ok(Some(held))
    }

    /// Pins the maps whose pin is missing, so that the next daemon finds the state of sessions. Returns their names.
    ///
    /// # Errors
    /// If one cannot be pinned.
    pub fn pin_maps(&self, pins: &Pins) -> Result<Vec<&'static str>, DatapathError> {
        let pinned = self.pinned.iter().map(|(name, map)| (*name, map));
        let mut anew = Vec::new();
        for (name, map) in
            pinned.chain(self.owners.maps()).chain([(LastCommit::NAME, self.last_commit.map())])
        {
            let pin = pins.map(name);
            if !pin.exists() {
                map.pin(&pin).map_err(|error| DatapathError::Pin {
                    path: pins.name(&pin),
                    action: "pin the map again",
                    source: io::Error::other(chain(&error)),
                    hint: "its content ends with this daemon: start it again",
                })?;
                anew.push(name);
            }
        }
        Ok(anew)
    }
}

/// Attaches a program to an interface that has none, in the first mode of `modes` that the driver supports. The program
/// is detached when the link is dropped.
pub(super) fn attach_first(
    program: &mut Xdp,
    interface: &str,
    index: u32,
    modes: &[Mode],
) -> Result<(Mode, FdLink), DatapathError> {
    let mut refused = None;
    for mode in modes {
        match attach_anew(program, interface, index, *mode) {
            Ok(link) => return Ok((*mode, link)),
            Err((error, Some(libc::EOPNOTSUPP))) => refused = Some(error),
            Err((error, _)) => return Err(error),
        }
    }
    Err(refused.unwrap_or_else(|| failed(interface, "no mode to attach in".into(), "set `xdp_mode`")))
}

fn attach_anew(
    program: &mut Xdp,
    interface: &str,
    index: u32,
    mode: Mode,
) -> Result<FdLink, (DatapathError, Option<i32>)> {
    let flags = match mode {
        Mode::Native => XdpMode::Driver,
        Mode::Generic => XdpMode::Skb,
    };
    let id = program.attach_to_if_index(index, flags).map_err(|error| refusal(interface, &error))?;
    let link = program.take_link(id).map_err(|error| refusal(interface, &error))?;
    // If the kernel refuses a BPF link, aya attaches the program through netlink. That attachment would end with this
    // process.
    link.try_into().map_err(|_: LinkError| {
        let cause = "the kernel attached the program without a BPF link, which cannot be pinned".to_owned();
        let hint = format!("`ip link set dev {interface} xdp off`, and use Linux 6.1 or later");
        (failed(interface, cause, &hint), None)
    })
}

/// Name of a loaded program, if the kernel reports it.
pub fn program_name(id: u32) -> Option<String> {
    let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == id)?;
    info.name_as_str().map(str::to_owned)
}

fn failed(interface: &str, cause: String, hint: &str) -> DatapathError {
    DatapathError::Attach { interface: interface.to_owned(), cause, hint: hint.to_owned() }
}

fn refusal(interface: &str, error: &ProgramError) -> (DatapathError, Option<i32>) {
    let errno = match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    };
    let cause = match errno {
        Some(libc::EOPNOTSUPP) => "its driver has no native XDP".to_owned(),
        Some(libc::EBUSY) => "another XDP program is on it".to_owned(),
        _ => chain(error),
    };
    let hint = match errno {
        Some(libc::EOPNOTSUPP) => "set xdp_mode = \"auto\" or \"generic\"".to_owned(),
        Some(libc::EBUSY) => {
            format!("see `ip -d link show {interface}`, and take that one off with its own tool")
        }
        Some(libc::EPERM) => "run as root, or with CAP_NET_ADMIN and CAP_BPF".to_owned(),
        _ => format!(
            "`ip -d link show {interface}` and `dmesg` may say more; an MTU of at most 3498 often helps"
        ),
    };
    (failed(interface, cause, &hint), errno)
}
