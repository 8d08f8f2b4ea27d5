use std::{net::IpAddr, path::Path, time::Duration};

use super::*;

const WHOLE: &str = r#"
node       = "lb-1"
interfaces = ["eth0"]
xdp_mode   = "native"
store      = "file:/var/lib/tollgate"
control    = "/run/tollgate/control.sock"
metrics    = ""
bpffs      = "/sys/fs/bpf/tollgate"
sessions   = 1_000
hmac_budget = 50000

[[service]]
id       = 4294967295
name     = "game"
address  = "203.0.113.10"
port     = 7777
accept   = ["bearer", "proof"]
bind     = "required"
max_ttl  = "1m 30s"
strip    = false
forward  = "l2"
mode     = "observe"
key_rotation = "off"
rate     = { "0" = "1000/s", 255 = " 200/s  burst 400" }
max_sources = 8

[[service.backend]]
id      = 1
name    = "game-a"
address = "10.0.0.11"
port    = 7777
weight  = 7
check   = { type = "none" }

[[service.backend]]
id      = 65535
address = "10.0.0.12"

[[service]]
id = 1
name = "voice"
address = "203.0.113.10"
port = 7778
forward = "local"
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("tollgate.toml"), text)
}

/// The lines of the error.
fn refused(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(config) => panic!("accepted: {config:?}"),
        Err(error) => error.to_string().lines().map(str::to_owned).collect(),
    }
}

/// A configuration with one service. The lines in `change` replace those of the same field.
fn with(change: &str) -> String {
    let mut lines = vec![
        "interfaces = [\"eth0\"]",
        "[[service]]",
        "id = 42",
        "name = \"game\"",
        "address = \"203.0.113.10\"",
        "port = 7777",
        "forward = \"local\"",
    ];
    let field = |line: &str| line.split('=').next().unwrap().trim().to_owned();
    for new in change.lines() {
        match lines.iter().position(|line| field(line) == field(new) && line.contains('=')) {
            Some(old) => lines[old] = new,
            None => lines.push(new),
        }
    }
    lines.join("\n")
}

#[test]
fn a_whole_file_is_read() {
    let config = parse(WHOLE).unwrap();
    let game = Service {
        id: u32::MAX,
        name: "game".into(),
        address: [203, 0, 113, 10].into(),
        port: 7777,
        accept: Accept { bearer: true, proof: true },
        bind: Bind::Required,
        max_ttl: Duration::from_secs(90),
        strip: false,
        forward: Forward::L2,
        mode: Mode::Observe,
        key_rotation: None,
        rates: [(0, Rate { per_second: 1000, burst: 1000 }), (255, Rate { per_second: 200, burst: 400 })]
            .into(),
        max_sources: Some(8),
        backends: vec![
            Backend {
                id: 1,
                name: "game-a".into(),
                address: [10, 0, 0, 11].into(),
                port: 7777,
                weight: 7,
                check: HealthCheck::None,
            },
            Backend {
                id: 65535,
                name: "10.0.0.12".into(),
                address: [10, 0, 0, 12].into(),
                port: 7777,
                weight: 100,
                check: HealthCheck::None,
            },
        ],
    };
    assert_eq!(config.services[0], game);
    assert_eq!(config.warnings, []);
    assert_eq!(
        (config.node.as_str(), config.metrics, config.sessions, config.hmac_budget),
        ("lb-1", None, 1000, 50000)
    );
    assert_eq!(Service::find(&config.services, "game").unwrap().id, u32::MAX);
    assert_eq!(Service::find(&config.services, "1").unwrap().name, "voice");
}

#[test]
fn virtual_mac_addresses_are_read() {
    let config = parse(&format!("virtual_macs = [\"00:00:5e:00:01:0A\"]\n{}", with(""))).unwrap();
    assert_eq!(config.virtual_macs, [[0, 0, 0x5e, 0, 1, 0x0a]]);
}

#[test]
fn groups_are_those_of_this_host() {
    let groups = "control_group = \"daemon\"\nadmin_group = \"root\"\n";
    let config = parse(&format!("{groups}{}", with(""))).unwrap();
    assert_eq!(config.admin_group, Some(Group { name: "root".into(), gid: 0 }));
    assert_eq!(config.control_group.map(|group| group.name), Some("daemon".into()));
    let lines = refused(&format!("admin_group = \"nobody-has-this\"\n{}", with("")));
    assert!(lines[0].contains(":1:") && lines[0].contains("groupadd --system nobody-has-this"), "{lines:?}");
    let lines = refused(&format!("admin_group = \"\"\n{}", with("")));
    assert!(lines[0].contains("names no group") && lines[0].contains("remove the field"), "{lines:?}");
}

#[test]
fn what_is_absent_has_a_default() {
    let config = parse(&with("")).unwrap();
    assert_eq!((&config.control_group, &config.admin_group), (&None, &None));
    assert_eq!(config.xdp_mode, XdpMode::Auto);
    assert_eq!(config.store, StoreLocation::File("/var/lib/tollgate".into()));
    assert_eq!(config.control, Path::new("/run/tollgate/control.sock"));
    assert_eq!(config.metrics, Some(([127, 0, 0, 1], 9477).into()));
    assert_eq!(config.bpffs, Path::new("/sys/fs/bpf/tollgate"));
    assert_eq!((config.sessions, config.hmac_budget), (262_144, 200_000));
    assert_eq!(config.nat_ports, Ports { first: 10_000, last: 29_999 });
    assert_eq!(config.nat_ports_per_session, 8);
    assert_eq!((config.tunnel_sources.as_slice(), config.ports_of_nat()), (&[][..], None));
    assert!(config.virtual_macs.is_empty());
    let service = &config.services[0];
    assert_eq!(
        (service.max_ttl, service.key_rotation),
        (Duration::from_hours(1), Some(Duration::from_hours(24)))
    );
    assert_eq!((service.bind, service.mode, service.strip), (Bind::Optional, Mode::Enforce, true));
    assert!(service.accept.bearer && !service.accept.proof);
    assert!(service.rates.is_empty() && service.max_sources.is_none());
    let service = parse(&with("accept = [\"proof\"]")).unwrap().services.remove(0);
    assert!(!service.accept.bearer && service.accept.proof);
}

/// Each wrong line by itself: the reported position and message.
#[test]
fn every_wrong_value_is_named() {
    let cases = [
        ("interfaces = []", "1:14: `interfaces` is empty"),
        ("interfaces = \"eth0\"", "`interfaces` is \"eth0\", not a list"),
        ("interfaces = [\"eth0\", \"eth0\"]", "\"eth0\" is named twice"),
        ("interfaces = [\"a/b\"]", "\"a/b\" is not an interface's name"),
        ("interfaces = [\"sixteen-bytes-xx\"]", "is not an interface's name; at most 15 bytes"),
        ("id = 0", "3:6: `service.id` = 0 is out of range; it is a whole number, 1 to 4294967295"),
        ("id = 4294967296", "is out of range"),
        ("id = -1", "is out of range"),
        ("id = \"42\"", "`service.id` is \"42\", not a whole number"),
        ("name = \"42\"", "`service.name` = \"42\" is not a name"),
        ("name = \"-x\"", "is not a name"),
        ("name = \"\"", "is not a name"),
        ("name = \"a b\"", "is not a name"),
        ("port = 0", "`service.port` = 0 is out of range"),
        ("port = 65536", "is out of range"),
        ("address = \"0.0.0.0\"", "is no particular address"),
        ("address = \"224.0.0.1\"", "is a multicast group"),
        ("address = \"255.255.255.255\"", "is the broadcast address"),
        ("address = \"game.example\"", "is not an address"),
        ("address = \"::\"", ":: is no particular address"),
        ("address = \"ff02::1\"", "ff02::1 is a multicast group; write the address of one host"),
        ("address = \"fe80::1\"", "fe80::1 is a link-local address: any link has it"),
        ("address = \"::ffff:10.0.0.1\"", "is an IPv4 address written as IPv6; write 10.0.0.1"),
        ("address = \"2001:db8::g\"", "is not an address; write one IPv4 or IPv6 address, as in"),
        (
            "forward = \"l3\"",
            "is not one of its values; write \"local\" or \"l2\" or \"ipip\" or \"gue\" or \"nat\"",
        ),
        ("accept = []", "`service.accept` is empty: no token would pass"),
        ("accept = [\"knock\"]", "\"knock\" is not a type of token"),
        ("bind = \"yes\"", "write \"optional\" or \"required\""),
        ("mode = \"off\"", "write \"enforce\" or \"observe\""),
        ("strip = \"true\"", "write true or false, without quotes"),
        (
            "max_ttl = \"0s\"",
            "is out of range; write it as in `max_ttl = \"1h\"`: whole seconds, 1s to 366 days",
        ),
        ("max_ttl = \"367days\"", "is out of range"),
        ("max_ttl = \"1500ms\"", "is out of range"),
        ("max_ttl = 3600", "`service.max_ttl` is 3600, not a string"),
        ("max_ttl = \"soon\"", "is not a duration"),
        ("key_rotation = \"0s\"", "is out of range"),
        (
            "key_rotation = \"1s\"\nmax_ttl = \"2h\"",
            "the services need up to 7269 key slots at a time, and there are 4096",
        ),
        (
            "rate = \"1000/s\"",
            "`service.rate` is \"1000/s\", not a table by class; write it as in `rate = { ",
        ),
        ("rate = {}", "`service.rate` names no class; remove the line"),
        ("rate = { all = \"1/s\" }", "`service.rate`: \"all\" is not a class; a class is 0 to 255"),
        ("rate = { \"256\" = \"1/s\" }", "\"256\" is not a class"),
        ("rate = { \"01\" = \"1/s\" }", "\"01\" is not a class"),
        ("rate = { \"0\" = 1000 }", "`service.rate`: 1000 is not a rate"),
        ("rate = { \"0\" = \"1000\" }", "\"1000\" is not a rate"),
        ("rate = { \"0\" = \"0/s\" }", "\"0/s\" is not a rate"),
        ("rate = { \"0\" = \"1000001/s\" }", "is not a rate"),
        ("rate = { \"0\" = \"1/s burst 0\" }", "is not a rate"),
        ("rate = { \"0\" = \"1/s burst\" }", "is not a rate"),
        ("rate = { \"0\" = \"1/m\" }", "1 to 1000000 packets a second, as many at once"),
        ("max_sources = 0", "`service.max_sources` = 0 is out of range; it is a whole number, 1 to 8"),
        ("max_sources = 9", "is out of range"),
        ("adress = \"203.0.113.10\"", "`service.adress` is not a known field; did you mean `address`?"),
        ("colour = 3", "known fields: accept, address, backend, bind, forward, id"),
        ("address = \"127.0.0.1\"\nforward = \"l2\"", "127.0.0.1 is a loopback address"),
    ];
    for (change, expected) in cases {
        let lines = refused(&with(change));
        assert_eq!(lines.len(), 1, "{change}: {lines:?}");
        assert!(lines[0].starts_with("tollgate.toml:") && lines[0].contains(expected), "{change}: {lines:?}");
    }
}

#[test]
fn every_wrong_backend_is_named() {
    let cases = [
        ("address = \"10.0.0.1\"", "`service.backend.id` is missing; add a line like `id = 1`"),
        ("id = 1", "8:1: `service.backend.address` is missing"),
        ("id = 0\naddress = \"10.0.0.1\"", "`service.backend.id` = 0 is out of range"),
        ("id = 65536\naddress = \"10.0.0.1\"", "is out of range"),
        ("id = 1\naddress = \"10.0.0.1\"\nweight = 0", "`service.backend.weight` = 0 is out of range"),
        ("id = 1\naddress = \"127.0.0.1\"", "127.0.0.1 is a loopback address"),
        ("id = 1\naddress = \"203.0.113.10\"", "203.0.113.10 is the service's address"),
        (
            "id = 1\naddress = \"10.0.0.1\"\nport = 7778",
            "`service.backend.port` = 7778 is not the service's; remove the line: only forward = \"nat\" changes ports",
        ),
        ("id = 1\naddress = \"::1\"", "::1 is a loopback address"),
        ("id = 1\naddress = \"fe80::11\"", "fe80::11 is a link-local address"),
        ("id = 1\naddress = \"10.0.0.1\"\ncheck = { type = \"udp\" }", "is not supported by this version"),
    ];
    for (backend, expected) in cases {
        let text = format!("{}\n[[service.backend]]\n{backend}", with("forward = \"l2\""));
        let lines = refused(&text);
        assert_eq!(lines.len(), 1, "{backend}: {lines:?}");
        assert!(lines[0].contains(expected), "{backend}: {lines:?}");
    }
}

#[test]
fn the_top_level_is_checked() {
    let cases = [
        (
            "store = \"etcd:http://10.0.0.1:2379/tollgate\"",
            "1:9: `store` = \"etcd:http://10.0.0.1:2379/tollgate\" is not supported by this version",
        ),
        ("store = \"/var/lib\"", "is not a store; write `store = \"file:/var/lib/tollgate\"`"),
        ("store = \"file:relative\"", "is not a store"),
        ("control = \"run/x\"", "is not an absolute path"),
        ("metrics = \"9477\"", "is not an address and a port"),
        ("xdp_mode = \"offload\"", "write \"auto\" or \"native\" or \"generic\""),
        ("sessions = 1", "it is a whole number, 256 to 16777216"),
        ("hmac_budget = 0", "is out of range"),
        (
            "nat_ports = \"40000\"",
            "`nat_ports` = \"40000\" is not a range of ports; write the first and the last",
        ),
        ("virtual_macs = \"00:00:5e:00:01:0a\"", "not a list; write a list, as in `virtual_macs ="),
        ("virtual_macs = [\"00:00:5e:00:01\"]", "\"00:00:5e:00:01\" is not a MAC address"),
        ("virtual_macs = [\"0:0:5e:0:1:a\"]", "is not a MAC address"),
        ("virtual_macs = [\"00:00:5e:00:01:+a\"]", "is not a MAC address"),
        ("virtual_macs = [\"01:00:5e:00:01:0a\"]", "is a group address"),
        ("virtual_macs = [\"00:00:00:00:00:00\"]", "is no station's address"),
        ("virtual_macs = [\"00:00:5e:00:01:0a\", \"00:00:5E:00:01:0A\"]", "is named twice"),
        ("nat_ports = 40000", "`nat_ports` is 40000, not a string"),
        ("nat_ports = \"40000-70000\"", "is not a range of ports"),
        ("nat_ports = \"1000-2000\"", "has ports of system services; begin at 1024 or above"),
        ("nat_ports = \"40000-40006\"", "has too few ports; at least 8"),
        ("nat_ports = \"40000-39999\"", "has too few ports"),
        (
            "nat_ports_per_session = 0",
            "`nat_ports_per_session` = 0 is out of range; it is a whole number, 1 to 16",
        ),
        ("nat_ports_per_session = 17", "is out of range"),
        ("tunnel_sources = \"10.9.0.0/24\"", "`tunnel_sources` is \"10.9.0.0/24\", not a list"),
        ("tunnel_sources = [\"10.9.0.0\"]", "\"10.9.0.0\" is not a prefix"),
        (
            "tunnel_sources = [\"10.9.0.1/24\"]",
            "is no prefix of several addresses; bits behind the prefix are zero",
        ),
        ("tunnel_sources = [\"10.9.0.1/32\"]", "is no prefix of several addresses"),
        ("tunnel_sources = [\"127.0.0.0/8\"]", "127.0.0.0 is a loopback address"),
        ("tunnel_sources = [\"fe80::/64\"]", "fe80:: is a link-local address"),
        (
            "tunnel_sources = [\"10.9.0.0/24\", \"10.8.0.0/24\"]",
            "10.9.0.0/24 and 10.8.0.0/24 are of one family",
        ),
        ("node = \"a b\"", "`node` = \"a b\" is not a name"),
        ("service = 3", "`service` is 3, not a list of tables; begin each with a line `[[service]]`"),
    ];
    for (line, expected) in cases {
        let lines = refused(&format!("{line}\ninterfaces = [\"eth0\"]\n"));
        assert_eq!(lines.len(), 1, "{line}: {lines:?}");
        assert!(lines[0].contains(expected), "{line}: {lines:?}");
    }
    assert!(refused("")[0].contains("`interfaces` is missing; add a line like `interfaces = [\"eth0\"]`"));
    let long = format!("control = \"/{}\"\ninterfaces = [\"eth0\"]", "x".repeat(107));
    assert!(refused(&long)[0].contains("has 108 bytes; the path of a unix socket has at most 107"));
}

#[test]
fn duplicates_are_shown_with_the_first() {
    let text =
        WHOLE.replace("7778", "7777").replace("id = 1\n", "id = 0xffff_ffff\n").replace("voice", "game");
    let lines = refused(&text);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].contains("`service.id` = 4294967295 is already on line 13"), "{lines:?}");
    assert!(lines[1].contains("`service.name` = \"game\" is already on line 14"), "{lines:?}");
    assert!(
        lines[2].contains("203.0.113.10 port 7777 is already used by the service on line 15"),
        "{lines:?}"
    );
    let page = parse(&text).unwrap_err().report(false);
    assert!(page.contains("tollgate.toml:40:6") && page.contains("first here"), "{page}");
    let lines = refused(&WHOLE.replace("65535", "1").replace("10.0.0.12", "10.0.0.11"));
    assert!(lines[0].contains("`service.backend.id` = 1 is already on line 28"), "{lines:?}");
    assert!(lines[1].contains("`service.backend.address` = 10.0.0.11 is already on line 30"), "{lines:?}");
}

#[test]
fn a_name_may_not_be_the_default_name_of_another_backend() {
    let lines = refused(&WHOLE.replace("\"game-a\"", "\"10.0.0.12\""));
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("`service.backend.name` = \"10.0.0.12\" is already on line 29"), "{lines:?}");
}

#[test]
fn all_problems_are_reported_at_once_and_shown_in_the_file() {
    let text =
        "interfaces = [\"eth0\"]\nsesions = 4\n[[service]]\nid = 0\nname = \"géant\"\nforward = \"l3\"\n";
    let error = parse(text).unwrap_err();
    let lines: Vec<_> =
        error.to_string().lines().map(|line| line.split(": ").next().unwrap().to_owned()).collect();
    let at = ["2:1", "3:1", "3:1", "4:6", "5:8", "6:11"].map(|place| format!("tollgate.toml:{place}"));
    assert_eq!(lines, at);
    let page = error.report(false);
    assert!(page.contains("sesions = 4") && page.contains("did you mean `sessions`?"), "{page}");
    assert!(page.contains("tollgate.toml:6:11"), "{page}");
    assert!(!page.contains('\u{1b}'), "{page}");
    assert!(error.report(true).contains('\u{1b}'));
}

#[test]
fn what_is_no_toml_is_shown_where_it_breaks() {
    let lines = refused("interfaces = [\"eth0\"\n[[service]]\n");
    assert!(lines[0].starts_with("tollgate.toml:2:1: not TOML: "), "{lines:?}");
    let lines = refused("interfaces = [\"eth0\"]\ninterfaces = [\"eth1\"]\n");
    assert!(lines[0].starts_with("tollgate.toml:2:1: not TOML: duplicate key"), "{lines:?}");
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let backend = "\n[[service.backend]]\nid = 1\naddress = \"10.0.0.1\"";
    let cases = [
        ("interfaces = [\"eth0\"]".to_owned(), "no service is configured"),
        (with("") + backend, "configuration line 8: the backends of a local service are not used"),
        (with("forward = \"l2\""), "the service has no backend"),
        (with("forward = \"nat\""), "the service has no backend"),
        ("tunnel_sources = [\"10.9.0.0/24\"]\n".to_owned() + &with(""), "`tunnel_sources` is not used"),
        (
            "xdp_mode = \"generic\"\n".to_owned() + &with("forward = \"l2\"") + backend,
            "counts them as `partial_checksum`",
        ),
        (with("key_rotation = \"10m\""), "the rotation needs 11 key slots; a key_rotation of 10m is shorter"),
    ];
    for (text, expected) in cases {
        let warnings = parse(&text).unwrap().warnings;
        assert_eq!(warnings.len(), 1, "{text}: {warnings:?}");
        assert!(warnings[0].to_string().contains(expected), "{text}: {warnings:?}");
    }
}

#[test]
fn a_node_has_room_for_so_much() {
    let service = |n: usize| {
        format!(
            "[[service]]\nid = {n}\nname = \"s{n}\"\naddress = \"203.0.113.1\"\nport = {n}\nforward = \"l2\"\n"
        )
    };
    let backend =
        |n: usize| format!("[[service.backend]]\nid = {n}\naddress = \"10.0.{}.{}\"\n", n / 250, 1 + n % 250);
    let mut text = "interfaces = [\"eth0\"]\n".to_owned();
    (1..=255).for_each(|n| text += &service(n));
    assert_eq!(parse(&text).unwrap().services.len(), 255);
    assert!(
        refused(&(text.clone() + &service(256)))[0]
            .contains("there are 256 services; a node has at most 255")
    );
    (1..=4096).for_each(|n| text += &backend(n));
    assert_eq!(parse(&text).unwrap().services[254].backends.len(), 4096);
    text += &backend(4097);
    assert!(refused(&text)[0].contains("there are 4097 backends; a node has at most 4096"));
}

#[test]
fn a_file_that_cannot_be_read_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tollgate.toml");
    let error = Config::load(&file).unwrap_err().to_string();
    assert!(error.contains("there is no such file; create it, or use another one with `-c FILE`"), "{error}");
    let error = Config::load(directory.path()).unwrap_err().to_string();
    assert!(error.contains("it is a directory; use a file in it"), "{error}");
    std::fs::write(&file, b"ab\xff").unwrap();
    let error = Config::load(&file).unwrap_err().to_string();
    assert!(error.contains("byte 2 is not UTF-8"), "{error}");
    std::fs::write(&file, WHOLE).unwrap();
    assert_eq!(Config::load(&file).unwrap().services.len(), 2);
}

#[test]
fn families_that_cannot_be_forwarded_are_refused() {
    let (v4, v6) = (["203.0.113.10", "10.0.0.11"], ["2001:db8::10", "2001:db8:1::11"]);
    for forward in Forward::ALL.into_iter().filter(|forward| *forward != Forward::Local) {
        for (service, backend) in [(v4, v4), (v4, v6), (v6, v4), (v6, v6)] {
            let (service, backend) = (service[0], backend[1]);
            let text = format!(
                "{}\n[[service.backend]]\nid = 1\naddress = \"{backend}\"",
                with(&format!("forward = \"{}\"\naddress = \"{service}\"", forward.name()))
            );
            let goes = matches!(
                (forward, service.contains(':'), backend.contains(':')),
                (_, true, true) | (_, false, false) | (Forward::Ipip | Forward::Gue, false, true)
            );
            match goes {
                true => {
                    let config = parse(&text).unwrap();
                    assert_eq!(config.services[0].backends[0].address, backend.parse::<IpAddr>().unwrap());
                }
                false => {
                    let lines = refused(&text);
                    let expected = format!("10:11: `service.backend.address`: {backend} is IPv");
                    assert!(lines.len() == 1 && lines[0].contains(&expected), "{lines:?}");
                    assert!(
                        lines[0].contains(&format!("and the service's address {service} is IPv")),
                        "{lines:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn nat_changes_ports_and_has_its_own() {
    let backends = "\n[[service.backend]]\nid = 1\naddress = \"10.0.0.1\"\nport = 8001\n\
                    [[service.backend]]\nid = 2\naddress = \"10.0.0.1\"\n";
    let text = "nat_ports = \"50000-50007\"\n".to_owned() + &with("forward = \"nat\"") + backends;
    let config = parse(&text).unwrap();
    assert_eq!(config.ports_of_nat(), Some(Ports { first: 50_000, last: 50_007 }));
    let places: Vec<_> =
        config.services[0].backends.iter().map(|backend| (backend.name.as_str(), backend.port)).collect();
    assert_eq!(places, [("10.0.0.1:8001", 8001), ("10.0.0.1", 7777)]);
    let lines = refused(&text.replace("port = 8001\n", ""));
    assert!(lines.iter().any(|line| line.contains("= 10.0.0.1:7777 is already on line 11")), "{lines:?}");
    let lines = refused(&text.replace("port = 7777", "port = 50003"));
    assert!(lines[0].contains("`service.port` = 50003 is one of `nat_ports`"), "{lines:?}");
}

#[test]
fn outer_packets_may_come_from_many_addresses() {
    let text = "tunnel_sources = [\"10.9.0.0/24\", \"fd00:9::/64\"]\n".to_owned()
        + &with("forward = \"gue\"")
        + "\n[[service.backend]]\nid = 1\naddress = \"10.0.0.1\"";
    let config = parse(&text).unwrap();
    let source = |to: &str| config.tunnel_source(to.parse().unwrap()).map(ToString::to_string);
    assert_eq!(source("10.0.0.1").as_deref(), Some("10.9.0.0/24"));
    assert_eq!(source("2001:db8::1").as_deref(), Some("fd00:9::/64"));
}

/// Reading the file without a field is the same as reading it with the documented default.
#[test]
fn documented_defaults_are_the_defaults() {
    let backend = "\n[[service.backend]]\nid = 1\naddress = \"10.0.0.1\"\n";
    let text = with("forward = \"l2\"") + backend;
    let absent = parse(&text).unwrap();
    let mut defaults = 0;
    for (fields, table) in
        [(Config::FIELDS, ""), (Service::FIELDS, "[[service]]\n"), (Backend::FIELDS, "[[service.backend]]\n")]
    {
        for FieldDoc { name, absent: doc, .. } in fields {
            let value = match doc {
                AbsentDoc::Text(text) => format!("\"{text}\""),
                AbsentDoc::Toml(value) => (*value).to_owned(),
                AbsentDoc::Required | AbsentDoc::Words(_) => continue,
            };
            let given = match table {
                "" => format!("{name} = {value}\n{text}"),
                table => text.replace(table, &format!("{table}{name} = {value}\n")),
            };
            assert_ne!(given, text);
            assert_eq!(parse(&given).unwrap(), absent, "{name} = {value}");
            defaults += 1;
        }
    }
    assert_eq!(defaults, 17);
    assert_eq!(absent.sessions, lb_common::maps::SESSIONS_DEFAULT);
    assert_eq!(u64::from(absent.hmac_budget), lb_common::maps::HMACS_PER_SECOND_DEFAULT);
    assert_eq!(absent.nat_ports_per_session, lb_common::nat::PER_SESSION_DEFAULT);
    assert_eq!(absent.node, nix::unistd::gethostname().unwrap().to_str().unwrap());
}
