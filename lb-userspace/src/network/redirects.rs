//! Finds interfaces that accept ICMP redirects.
//!
//! Next hops of backends never follow a redirect. The host itself does: its own packets leave by the next hop of a
//! redirect, and over IPv6 a redirect may write the sender's MAC address into the neighbour entry of a router (RFC
//! 4861, 8.3), as may any neighbour advertisement of the segment.

use std::{collections::BTreeSet, fs};

use super::links::Links;

/// An interface that accepts ICMP redirects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirects {
    /// Name of the interface.
    pub interface: String,
    /// The settings that enable it.
    pub settings: Vec<String>,
}

impl Redirects {
    /// The command that disables them.
    pub fn hint(&self) -> String {
        let off: Vec<_> = self.settings.iter().map(|setting| format!("{setting}=0")).collect();
        format!("`sysctl -w {}`", off.join(" "))
    }
}

/// The interfaces that accept redirects, among the named ones and all interfaces above them, such as VLANs.
pub fn accepted(names: &[String], links: &Links) -> Vec<Redirects> {
    let named = names.iter().filter_map(|name| links.named(name)).map(|link| link.index);
    let all: BTreeSet<u32> =
        named.flat_map(|index| links.all_uppers(index).into_iter().chain([index])).collect();
    let setting = |path: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/{path}")).unwrap_or_default();
        text.trim().parse::<u32>().is_ok_and(|value| value != 0)
    };
    let of = |index: &u32| {
        let interface = links.get(*index)?.name.clone();
        let settings = of_interface(&interface, setting);
        Some(Redirects { interface, settings }).filter(|found| !found.settings.is_empty())
    };
    all.iter().filter_map(of).collect()
}

/// The settings by which an interface accepts redirects: IN_DEV_RX_REDIRECTS (linux/inetdevice.h) for IPv4,
/// `rt6_do_redirect` for IPv6. `secure_redirects` rejects none while `shared_media` is on, which is the default.
fn of_interface(name: &str, setting: impl Fn(&str) -> bool) -> Vec<String> {
    let v4 = |of: &str, field: &str| setting(&format!("ipv4/conf/{of}/{field}"));
    let v6 = |field: &str| setting(&format!("ipv6/conf/{name}/{field}"));
    let of_host = ["all", name].map(|of| v4(of, "accept_redirects"));
    // A router accepts them if both settings are on, a host if one is.
    let v4_accepts = if v4(name, "forwarding") { of_host == [true; 2] } else { of_host != [false; 2] };
    let mut settings = Vec::new();
    for (of, on) in ["all", name].iter().zip(of_host) {
        if v4_accepts && on {
            settings.push(format!("net.ipv4.conf.{}.accept_redirects", of.replace('.', "/")));
        }
    }
    if !v6("forwarding") && v6("accept_redirects") {
        settings.push(format!("net.ipv6.conf.{}.accept_redirects", name.replace('.', "/")));
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_takes_them_where_both_settings_are_on_and_a_host_where_one_is() {
        let all = "ipv4/conf/all/accept_redirects";
        let own = "ipv4/conf/eth0.5/accept_redirects";
        let router = "ipv4/conf/eth0.5/forwarding";
        let [v6, v6_router] = ["ipv6/conf/eth0.5/accept_redirects", "ipv6/conf/eth0.5/forwarding"];
        for (on, count) in [
            (vec![], 0),
            (vec![all], 1),
            (vec![own], 1),
            (vec![all, own], 2),
            (vec![all, router], 0),
            (vec![own, router], 0),
            (vec![all, own, router], 2),
            (vec![v6], 1),
            (vec![v6, v6_router], 0),
            (vec![v6, router, own], 1),
        ] {
            let settings = of_interface("eth0.5", |path| on.contains(&path));
            assert_eq!(settings.len(), count, "{on:?}: {settings:?}");
        }
        let settings = of_interface("eth0.5", |path| path == v6);
        assert_eq!(settings, ["net.ipv6.conf.eth0/5.accept_redirects"], "as sysctl(8) takes it");
    }
}
