//! The program before interfaces: by BPF links that are pinned, so that it stays when the daemon goes.

use std::io;

use aya::programs::{
    ProgramError, Xdp, XdpMode,
    links::{FdLink, LinkError, PinnedLink},
    loaded_programs,
    xdp::XdpLink,
};
use lb_common::maps;

use super::{Datapath, DatapathError, Pins, error::chain};

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// After the kernel has made an skb.
    Generic,
}

impl Mode {
    /// As in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// What [`Datapath::attach`] found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// There was no program; now there is, in this mode.
    Anew(Mode),
    /// Our link was there: its program was replaced, between two packets.
    Replaced,
}

impl Datapath {
    /// Attaches the program to an interface, in the first of `modes` that its driver can, and pins the link; or puts
    /// it in place of the one that a pinned link holds.
    ///
    /// # Errors
    /// If the kernel refuses, as it does where somebody else's program is. Then nothing has changed.
    pub fn attach(
        &mut self,
        pins: &Pins,
        interface: &str,
        index: u32,
        modes: &[Mode],
    ) -> Result<Attached, DatapathError> {
        let pin = pins.link(interface);
        if pin.exists() {
            match self.replace(pins, interface) {
                Err(Replacing::Gone) => pins.remove(&pin)?,
                Err(Replacing::Failed(error)) => return Err(error),
                Ok(()) => return Ok(Attached::Replaced),
            }
        }
        let (mode, link) = attach_first(self.program_mut(maps::PROGRAM)?, interface, index, modes)?;
        // Somebody may have removed what was pinned, directory and all.
        pins.make()?;
        self.pin_again(pins)?;
        link.pin(&pin).map_err(|error| DatapathError::Pin {
            path: pins.name(&pin),
            action: "pin the link",
            source: io::Error::other(chain(&error)),
            mend: "the program is off again; is a BPF file system still mounted there? Where it is, and this daemon is not \
                   root, start it again",
        })?;
        Ok(Attached::Anew(mode))
    }

    /// Pins the maps again where their pins have gone, so that the next daemon finds what sessions remember.
    fn pin_again(&self, pins: &Pins) -> Result<(), DatapathError> {
        let pinned = self.pinned.iter().map(|(name, map)| (*name, map));
        for (name, map) in pinned.chain(self.owners.maps()) {
            let pin = pins.map(name);
            if !pin.exists() {
                map.pin(&pin).map_err(|error| DatapathError::Pin {
                    path: pins.name(&pin),
                    action: "pin the map again",
                    source: io::Error::other(chain(&error)),
                    mend: "the program is off; start the daemon again",
                })?;
            }
        }
        Ok(())
    }

    fn replace(&mut self, pins: &Pins, interface: &str) -> Result<(), Replacing> {
        let program = self.program_mut(maps::PROGRAM).map_err(Replacing::Failed)?;
        let unreadable = |error: LinkError| {
            let mend = format!("remove {} and start again", pins.name(&pins.link(interface)).display());
            Replacing::Failed(failed(interface, format!("the pinned link: {}", chain(&error)), &mend))
        };
        let link: FdLink = PinnedLink::from_pin(pins.link(interface)).map_err(unreadable)?.into();
        let link = XdpLink::try_from(link).map_err(unreadable)?;
        let id = match program.attach_to_link(link) {
            Ok(id) => id,
            // The interface that the link was for is gone; one of its name may be another.
            Err(ProgramError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOLINK) =>
            {
                return Err(Replacing::Gone);
            }
            Err(error) => return Err(Replacing::Failed(refusal(interface, &error).0)),
        };
        // Closes our descriptor; the pin keeps the link.
        program.take_link(id).map_err(|error| Replacing::Failed(refusal(interface, &error).0))?;
        Ok(())
    }
}

enum Replacing {
    /// The link's interface is no more.
    Gone,
    Failed(DatapathError),
}

/// Attaches a program to an interface that has none, in the first of `modes` that its driver can. The program is off
/// again with the link.
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
    // aya falls back to netlink where the kernel refuses a link; that would end with this process.
    link.try_into().map_err(|_: LinkError| {
        let cause = "the kernel attached the program without a BPF link, which cannot be pinned".to_owned();
        let mend = format!("`ip link set dev {interface} xdp off`, and use Linux 6.1 or later");
        (failed(interface, cause, &mend), None)
    })
}

/// The program that an interface's pinned link holds.
pub fn linked_program(pins: &Pins, interface: &str) -> Option<u32> {
    let link: FdLink = PinnedLink::from_pin(pins.link(interface)).ok()?.into();
    Some(link.info().ok()?.program_id())
}

/// The name of a loaded program, if the kernel tells.
pub fn program_name(id: u32) -> Option<String> {
    let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == id)?;
    info.name_as_str().map(str::to_owned)
}

fn failed(interface: &str, cause: String, mend: &str) -> DatapathError {
    DatapathError::Attach { interface: interface.to_owned(), cause, mend: mend.to_owned() }
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
    let mend = match errno {
        Some(libc::EOPNOTSUPP) => "set xdp_mode = \"auto\" or \"generic\"".to_owned(),
        Some(libc::EBUSY) => {
            format!("see `ip -d link show {interface}`, and take that one off with its own tool")
        }
        Some(libc::EPERM) => "run as root, or with CAP_NET_ADMIN and CAP_BPF".to_owned(),
        _ => format!(
            "`ip -d link show {interface}` and `dmesg` may say more; an MTU of at most 3498 often helps"
        ),
    };
    (failed(interface, cause, &mend), errno)
}
