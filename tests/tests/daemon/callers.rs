//! The control socket identifies callers by peer credentials, and no caller can make others wait.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::testbed::{
    daemon::{Daemon, PATIENCE, said},
    user::{self, NAME, STRANGER, become_user},
};
use nix::unistd::Group;
use tollgate::{api::server, protocol::Access};

use crate::testbed::{L2, Testbed};

const READERS: &str = "users";
const ADMINS: &str = "staff";

fn gid(name: &str) -> Result<u32> {
    Ok(Group::from_name(name)?.with_context(|| format!("there is no group {name}"))?.gid.as_raw())
}

fn configured(groups: &str) -> Result<(Testbed, Daemon)> {
    let testbed = Testbed::new(L2, 1)?;
    let text = fs::read_to_string(testbed.instance.config())?;
    fs::write(testbed.instance.config(), format!("{groups}\n{text}"))?;
    let daemon = testbed.start()?;
    Ok((testbed, daemon))
}

/// Runs a command as this user with these groups, the first being the primary one. Returns exit status and output.
pub fn says(testbed: &Testbed, uid: u32, gids: &[u32], args: &[&str]) -> Result<(Option<i32>, String)> {
    let command = testbed.instance.tollgate(&testbed.topology.balancer, args)?;
    let others: Vec<_> = gids[1..].iter().map(ToString::to_string).collect();
    let groups = match others.as_slice() {
        [] => "--clear-groups".to_owned(),
        others => format!("--groups={}", others.join(",")),
    };
    let mut as_user = testbed.topology.balancer.command("setpriv")?;
    as_user
        .args([format!("--reuid={uid}"), format!("--regid={}", gids[0]), groups])
        .arg(command.get_program())
        .args(command.get_args());
    let output = as_user.output()?;
    Ok((output.status.code(), said(&output)))
}

#[test]
fn groups_decide_who_may_ask_for_what() -> Result<()> {
    let (testbed, daemon) =
        configured(&format!("control_group = \"{READERS}\"\nadmin_group = \"{ADMINS}\""))?;
    let token = hex::encode(testbed.token(1)?.to_bytes());
    let keyset = testbed.instance.path("keyset.json");
    fs::write(&keyset, testbed.run(&["keys", "export", "--service", "game"])?.stdout)?;
    let keyset = keyset.to_str().context("a path in UTF-8")?;
    let reads = [
        &["status"][..],
        &["counters"],
        &["keys", "list"],
        &["backends", "list"],
        &["token", "inspect", &token],
    ];
    let changes = [
        &["keys", "rotate"][..],
        &["keys", "export", "--service", "game"],
        &["keys", "import", keyset],
        &["token", "mint", "--service", "game", "--session", "1"],
        &["keys", "revoke", "1"],
        &["sessions", "revoke", "1", "--service", "game"],
        &["sessions", "unrevoke", "1", "--service", "game"],
        &["services", "revoke-before", "game"],
    ];
    let (readers, admins) = (gid(READERS)?, gid(ADMINS)?);
    for (gids, may_read, may_change) in [
        (&[STRANGER][..], false, false),
        (&[readers], true, false),
        (&[STRANGER, readers], true, false),
        (&[STRANGER, admins], true, true),
        (&[admins], true, true),
    ] {
        for (commands, may, group) in [(&reads[..], may_read, READERS), (&changes[..], may_change, ADMINS)] {
            for args in commands {
                let (status, said) = says(&testbed, STRANGER, gids, args)?;
                if may {
                    let no_such_key = args.contains(&"revoke") && said.contains("keys list");
                    ensure!(status == Some(0) || no_such_key, "{gids:?} {args:?}: {status:?} {said}");
                } else {
                    let named = said.contains("not allowed") && said.contains(&format!("`{group}`"));
                    ensure!(status == Some(1) && named, "{gids:?} {args:?}: {status:?} {said}");
                }
            }
        }
    }
    let log = daemon.log();
    for done in [
        "key rotated",
        "keys exported",
        "keys imported",
        "revoked",
        "no longer revoked",
        "tokens issued before",
    ] {
        let by_whom = format!(" caller{{uid={STRANGER}}}: {done} ");
        ensure!(log.contains(&by_whom), "{by_whom} is missing:\n{log}");
    }
    Ok(())
}

#[test]
fn without_groups_it_is_for_root_and_the_daemons_user() -> Result<()> {
    let mut testbed = Testbed::new(L2, 1)?;
    testbed.instance.set_user(Some(NAME));
    let _daemon = testbed.start()?;
    let uid = user::uid()?.as_raw();
    let (status, said) = says(&testbed, uid, &[uid], &["keys", "rotate"])?;
    ensure!(status == Some(0), "{said}");
    let (status, said) = says(&testbed, STRANGER, &[STRANGER], &["status"])?;
    ensure!(status == Some(1) && said.contains("control_group"), "{status:?} {said}");
    ensure!(testbed.json(&["status"])?["ready"] == true, "root may ask");
    Ok(())
}

#[test]
fn nobody_keeps_root_waiting() -> Result<()> {
    let (testbed, _daemon) = configured(&format!("control_group = \"{READERS}\""))?;
    let readers = gid(READERS)?;
    let control = testbed.instance.path("control.sock");
    let connect = || {
        let stream = UnixStream::connect(&control)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        anyhow::Ok(stream)
    };
    let mut streams =
        become_user(STRANGER, &[readers], || (0..200).map(|_| connect()).collect::<Result<Vec<_>>>())?;
    // Each client sends half of a head and then nothing.
    for stream in &mut streams {
        // Most connections are closed by now.
        let _ = stream.write_all(b"GET /v1/status HTTP/1.1\r\n");
    }
    let asked = Instant::now();
    ensure!(testbed.json(&["status"])?["ready"] == true);
    testbed.json(&["keys", "rotate", "--wait"])?;
    ensure!(asked.elapsed() < Duration::from_secs(4), "root waited {:?}", asked.elapsed());
    // Their next request is refused until the other connections have been closed.
    let mut answer = Vec::new();
    for stream in &mut streams {
        // A reset is also a valid end.
        let _ = stream.read_to_end(&mut answer);
    }
    let (status, said) = says(&testbed, STRANGER, &[readers], &["status"])?;
    ensure!(status == Some(0), "{said}");
    Ok(())
}

/// A request on the control socket, as this user with these groups: status and body.
fn request(
    testbed: &Testbed,
    uid: u32,
    gids: &[u32],
    method: &str,
    path: &str,
    body: &str,
) -> Result<(u16, String)> {
    let control = testbed.instance.path("control.sock");
    let connect = || {
        let stream = UnixStream::connect(&control)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        anyhow::Ok(stream)
    };
    let mut stream = if uid == 0 { connect()? } else { become_user(uid, gids, connect)? };
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: tollgate\r\nContent-Type: application/json");
    // Without a body, like curl and `tollgate`.
    let length = if length == 0 { String::new() } else { format!("\r\nContent-Length: {length}") };
    // With one write: an answer may arrive before the last of several writes.
    stream.write_all(format!("{head}{length}\r\n\r\n{body}").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no answer: {answer:?}"))?;
    Ok((head.split(' ').nth(1).context("a status")?.parse()?, body.to_owned()))
}

/// A misspelt field would change the meaning of the request: without `service`, it is for all services.
#[test]
fn a_misspelt_field_rotates_nothing() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let _daemon = testbed.start()?;
    let before = testbed.json(&["keys", "list"])?;
    let (status, body) = request(&testbed, 0, &[], "POST", "/v1/keys/rotate", "{\"sevice\": \"game\"}")?;
    ensure!(status == 422 && body.contains("unknown field `sevice`"), "{status} {body}");
    let (status, body) = request(&testbed, 0, &[], "GET", "/v1/counters?sevice=game", "")?;
    ensure!(status == 400 && body.contains("unknown field `sevice`"), "{status} {body}");
    ensure!(testbed.json(&["keys", "list"])? == before, "{before}");
    Ok(())
}

/// The access of each route, listed again here: the test finds a route that is new or declared differently.
const READS: [(&str, &str); 9] = [
    ("GET", "/v1/status"),
    ("GET", "/v1/counters"),
    ("GET", "/v1/backends"),
    ("GET", "/v1/keys"),
    ("GET", "/v1/sessions"),
    ("GET", "/v1/sessions/revoked"),
    ("GET", "/v1/services"),
    ("GET", "/v1/clock"),
    ("POST", "/v1/token/inspect"),
];
const CHANGES: [&str; 11] = [
    "/v1/keys/rotate",
    "/v1/keys/revoke",
    "/v1/keys/export",
    "/v1/keys/import",
    "/v1/token/mint",
    "/v1/token/revoke",
    "/v1/token/unrevoke",
    "/v1/sessions/revoke",
    "/v1/sessions/unrevoke",
    "/v1/services/revoke-before",
    "/v1/clock/accept",
];

#[test]
fn every_route_is_closed_to_strangers_and_refuses_what_it_does_not_know() -> Result<()> {
    let (testbed, daemon) =
        configured(&format!("control_group = \"{READERS}\"\nadmin_group = \"{ADMINS}\""))?;
    let (readers, admins) = (gid(READERS)?, gid(ADMINS)?);
    let routes: Vec<_> = server::routes()
        .into_iter()
        .map(|route| (route.method.to_string(), route.path, route.access))
        .collect();
    let expected = READS.map(|(method, path)| (method, path, Access::Read));
    let expected = expected.into_iter().chain(CHANGES.map(|path| ("POST", path, Access::Change)));
    for (method, path, access) in expected {
        ensure!(routes.contains(&(method.to_owned(), path, access)), "{method} {path} is not {access:?}");
    }
    ensure!(routes.len() == READS.len() + CHANGES.len(), "a route is missing above: {routes:?}");

    let keys = || testbed.json(&["keys", "list"]);
    let before = keys()?;
    for (method, path, access) in &routes {
        let unknown = match method.as_str() {
            "GET" => (format!("{path}?colour=3"), ""),
            _ => ((*path).to_owned(), "{\"colour\":3}"),
        };
        let body_or_query = match method.as_str() {
            "GET" => ((*path).to_owned(), "{}"),
            _ => (format!("{path}?colour=3"), "{}"),
        };
        for (gids, may) in [
            (&[STRANGER][..], None),
            (&[readers], Some(Access::Read)),
            (&[STRANGER, admins], Some(Access::Change)),
        ] {
            let ask =
                |method: &str, path: &str, body: &str| request(&testbed, STRANGER, gids, method, path, body);
            for (path, body) in [&unknown, &body_or_query] {
                let (status, answer) = ask(method, path, body)?;
                let error: serde_json::Value = serde_json::from_str(&answer)?;
                let error = error["error"].as_str().with_context(|| answer.clone())?;
                let refused = if may < Some(*access) {
                    status == 403 && error.contains("not allowed")
                } else {
                    [400, 422].contains(&status)
                        && ["colour", "no body", "expected unit"].iter().any(|text| error.contains(text))
                };
                ensure!(refused, "{may:?}: {method} {path} {body}: {status} {answer}");
            }
            // Another method, and another body.
            let other = if method == "GET" { "POST" } else { "GET" };
            let (status, answer) = ask(other, path, "")?;
            let expected = if may.is_none() { 403 } else { 405 };
            ensure!(
                status == expected && answer.contains("\"error\""),
                "{may:?}: {other} {path}: {status} {answer}"
            );
        }
    }
    let (status, answer) = request(&testbed, STRANGER, &[STRANGER], "GET", "/v1/none", "")?;
    ensure!(status == 403, "{answer}");
    let (status, answer) = request(&testbed, 0, &[], "GET", "/v1/none", "")?;
    ensure!(status == 404 && answer.contains("another version"), "{answer}");
    ensure!(keys()? == before, "something has changed");
    ensure!(!daemon.log().contains("caller"), "something was done: {}", daemon.log());
    Ok(())
}

#[test]
fn a_body_that_says_it_is_no_json_is_refused() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let _daemon = testbed.start()?;
    let mut stream = UnixStream::connect(testbed.instance.path("control.sock"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let head =
        "POST /v1/keys/rotate HTTP/1.1\r\nHost: tollgate\r\nContent-Type: text/plain\r\nContent-Length: 2";
    write!(stream, "{head}\r\n\r\n{{}}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 415") && answer.contains("\"error\""), "{answer}");
    Ok(())
}

#[test]
fn what_is_too_large_or_no_json_is_refused_with_reasons() -> Result<()> {
    let testbed = Testbed::new(L2, 1)?;
    let _daemon = testbed.start()?;
    let answer = |head: &str, body: &[u8]| {
        let mut stream = UnixStream::connect(testbed.instance.path("control.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "POST /v1/keys/import HTTP/1.1\r\nHost: tollgate\r\nContent-Type: application/json\r\n{head}\r\n\r\n"
        )?;
        stream.write_all(body)?;
        let mut answer = String::new();
        // Unread bytes of the request may reset the connection after the answer.
        let _ = stream.read_to_string(&mut answer);
        anyhow::Ok(answer)
    };
    let large = answer("Content-Length: 5000000", b"{")?;
    ensure!(large.starts_with("HTTP/1.1 413") && large.contains("\"error\""), "{large}");
    let broken = answer("Content-Length: 1", b"{")?;
    ensure!(broken.starts_with("HTTP/1.1 400") && broken.contains("\"error\""), "{broken}");
    let head = answer(&format!("X: {}", "x".repeat(100_000)), b"");
    ensure!(head.as_ref().map_or(true, |answer| answer.starts_with("HTTP/1.1 431")), "{head:?}");
    let file = testbed.instance.path("large.json");
    let key = format!(
        "{{\"key_id\":1,\"state\":\"retiring\",\"master\":\"{}\",\"not_after\":1,\"sign_until\":0}}",
        "00".repeat(32)
    );
    let keys = vec![key; 40_000].join(",");
    fs::write(&file, format!("{{\"service\":\"game\",\"service_id\":42,\"keys\":[{keys}]}}"))?;
    let output = testbed.run(&["keys", "import", file.to_str().context("a path in UTF-8")?])?;
    ensure!(output.status.code() == Some(1) && said(&output).contains("at most"), "{}", said(&output));
    Ok(())
}
