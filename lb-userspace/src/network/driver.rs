//! XDP features of drivers, from the generic netlink family `netdev` (linux/netdev.h, Linux 6.3).

use std::io;

use super::raw::{Kind, attribute, request, value_of};
use crate::{
    config::XdpMode,
    datapath::{attach::Mode, preflight::Check},
    protocol::Verdict,
};

const NETLINK_GENERIC: isize = 16;
/// `struct genlmsghdr`: command, version, two reserved bytes.
const HEADER_LEN: usize = 4;
/// The family that resolves the ids of other families (linux/genetlink.h).
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_BASIC: u64 = 1;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 4;

const GENERIC_IS: &str =
    "generic mode is slow, and sees packets after the kernel has merged several into one (GRO)";

/// XDP features of the driver of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Driver {
    /// Run a program in native mode, with XDP_TX.
    pub native: bool,
    /// Send frames that a program of another interface redirects to it.
    pub takes_redirects: bool,
}

/// Reads the features of the driver of an interface; `None` if this kernel does not report them.
///
/// # Errors
/// If the kernel cannot be queried, or has no such interface.
pub fn driver(index: u32) -> io::Result<Option<Driver>> {
    let Some(family) = netdev_family()? else { return Ok(None) };
    let wanted = attribute(NETDEV_A_DEV_IFINDEX, &index.to_ne_bytes());
    let answers = generic(family, NETDEV_CMD_DEV_GET, &wanted)?;
    let features = answers.iter().find_map(|answer| value_of(answer, HEADER_LEN, NETDEV_A_DEV_XDP_FEATURES));
    Ok(features.map(|bytes| Driver::from_features(u64::from_ne_bytes(bytes))))
}

impl Driver {
    const fn from_features(features: u64) -> Self {
        Self {
            native: features & NETDEV_XDP_ACT_BASIC != 0,
            takes_redirects: features & NETDEV_XDP_ACT_NDO_XMIT != 0,
        }
    }
}

/// The id of the family `netdev`; `None` before Linux 6.3.
fn netdev_family() -> io::Result<Option<u16>> {
    let name = attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    match generic(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &name) {
        Ok(answers) => {
            let id = answers.iter().find_map(|answer| value_of(answer, HEADER_LEN, CTRL_ATTR_FAMILY_ID));
            Ok(id.map(u16::from_ne_bytes))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn generic(family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    request(NETLINK_GENERIC, Kind::Get, family, &[&[command, 1, 0, 0], attributes].concat())
}

/// The mode in which `tollgate run` attaches the program to an interface: the mode of the attached program, or by the
/// features of the driver.
pub fn check(
    interface: &str,
    configured: XdpMode,
    attached: Option<Mode>,
    driver: &io::Result<Option<Driver>>,
) -> Check {
    let (verdict, found, hint) = match (attached, driver, configured) {
        (Some(mode), _, _) => (Verdict::Ok, format!("the program is attached in {} mode", mode.name()), ""),
        (None, Err(error), _) => (
            Verdict::Warning,
            format!("the kernel does not say whether its driver has native XDP: {error}"),
            "`tollgate run` logs the mode that it attaches in",
        ),
        (None, Ok(None), _) => (
            Verdict::Ok,
            "this kernel cannot say whether its driver has native XDP (Linux 6.3 and later can): `tollgate run` \
             logs the mode that it attaches in"
                .to_owned(),
            "",
        ),
        (None, Ok(Some(Driver { native: true, .. })), XdpMode::Auto | XdpMode::Native) => (
            Verdict::Ok,
            "its driver has native XDP: `tollgate run` attaches in native mode".to_owned(),
            "",
        ),
        (None, Ok(Some(Driver { native: true, .. })), XdpMode::Generic) => (
            Verdict::Warning,
            format!("its driver has native XDP, and xdp_mode = \"generic\" does not use it: {GENERIC_IS}"),
            "set xdp_mode = \"auto\"",
        ),
        (None, Ok(Some(_)), XdpMode::Native) => (
            Verdict::Failed,
            "the kernel reports no native XDP for its driver as it is set up, and xdp_mode = \"native\" needs \
             it"
                .to_owned(),
            "set xdp_mode = \"auto\" or \"generic\"",
        ),
        (None, Ok(Some(_)), XdpMode::Auto) => (
            Verdict::Warning,
            format!(
                "the kernel reports no native XDP for its driver as it is set up: `tollgate run` attaches in \
                 generic mode, or ends with an error if the driver has native XDP and its settings (such as the \
                 number of queues) do not allow it; {GENERIC_IS}"
            ),
            "use an interface whose driver has native XDP",
        ),
        (None, Ok(Some(_)), XdpMode::Generic) => (
            Verdict::Ok,
            "`tollgate run` attaches in generic mode, as configured; the kernel reports no native XDP for its driver"
                .to_owned(),
            "",
        ),
    };
    Check { name: format!("interface {interface}").into(), verdict, found, hint: hint.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The features of `lo` and of a new veth on Linux 6.18, and the second with NDO_XMIT.
    #[test]
    fn features_are_bits() {
        assert_eq!(Driver::from_features(0), Driver { native: false, takes_redirects: false });
        assert_eq!(Driver::from_features(0b10_0011), Driver { native: true, takes_redirects: false });
        assert_eq!(Driver::from_features(0b110_0111), Driver { native: true, takes_redirects: true });
    }

    #[test]
    fn a_kernel_that_cannot_tell_fails_nothing() {
        for configured in [XdpMode::Auto, XdpMode::Native, XdpMode::Generic] {
            let check = check("eth0", configured, None, &Ok(None));
            assert_eq!(check.verdict, Verdict::Ok);
            assert!(check.found.contains("cannot say") && check.found.contains("logs"), "{}", check.found);
        }
    }

    #[test]
    fn what_the_program_is_attached_in_is_known() {
        let without = Ok(Some(Driver::from_features(0)));
        let check = check("eth0", XdpMode::Native, Some(Mode::Native), &without);
        assert_eq!((check.verdict, check.found.contains("native")), (Verdict::Ok, true));
    }

    #[test]
    fn the_loopback_has_no_native_mode_and_an_index_that_is_missing_is_an_error() {
        let Some(lo) = driver(1).unwrap() else { return };
        assert_eq!(lo, Driver { native: false, takes_redirects: false });
        assert!(driver(i32::MAX.cast_unsigned()).is_err());
    }
}
