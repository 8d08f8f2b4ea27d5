//! The daemon and its command line, run as an operator would: the real binary, in a network namespace.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, Permissions},
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::testbed::{
    bpffs::Bpffs,
    cleanup::{self, FILES},
    netns::Namespace,
    topology::{Family, INTERFACE},
};

/// The longest wait for any condition.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The address of `/metrics`.
pub const METRICS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 9477);

/// The files of one daemon: configuration, store, control socket, pins.
pub struct Instance {
    directory: PathBuf,
    bpffs: PathBuf,
    /// The file system that contains `bpffs`; `None` once it is being removed.
    mounted: Option<Bpffs>,
    /// The user that its daemons switch to; `None`: they stay root.
    user: Option<String>,
}

impl Instance {
    /// Creates an empty instance, with its files and a BPF file system under `/run/NAME`. `TOLLGATE_USER` names the
    /// user that its daemons switch to.
    ///
    /// # Errors
    /// If a directory cannot be created, for example because it exists.
    pub fn new(name: &str) -> Result<Self> {
        cleanup::hold_if_interrupted();
        let directory = Path::new(FILES).join(name);
        let (bpf, user) = (directory.join("pins"), env::var("TOLLGATE_USER").ok());
        let mut instance = Self { directory, bpffs: bpf.join("tollgate"), mounted: None, user };
        fs::create_dir(&instance.directory)
            .with_context(|| format!("cannot make {}", instance.directory.display()))?;
        // The daemon's user needs access, independent of the umask.
        fs::set_permissions(&instance.directory, Permissions::from_mode(0o755))?;
        instance.mounted = Some(Bpffs::mount(&bpf)?);
        Ok(instance)
    }

    /// Sets the user that its daemons switch to; `None`: they stay root.
    pub fn set_user(&mut self, user: Option<&str>) {
        self.user = user.map(str::to_owned);
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The directory of pins.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.path("tollgate.toml")
    }

    /// Writes the configuration: this instance's paths, then `services`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn configure(&self, services: &str) -> Result<()> {
        self.configure_on(&[INTERFACE], services)
    }

    /// Like `configure`, for these interfaces.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn configure_on(&self, interfaces: &[&str], services: &str) -> Result<()> {
        let text = format!(
            "node = \"test\"\ninterfaces = {interfaces:?}\nstore = \"file:{}\"\ncontrol = \"{}\"\nmetrics = \"{}:{}\"\n\
             bpffs = \"{}\"\nsessions = 4096\n\n{services}",
            self.path("store").display(),
            self.path("control.sock").display(),
            METRICS.0,
            METRICS.1,
            self.bpffs.display(),
        );
        Ok(fs::write(self.config(), text)?)
    }

    /// The command line in a namespace, with this instance's control socket.
    ///
    /// # Errors
    /// If the namespace is gone.
    pub fn tollgate(&self, namespace: &Namespace, args: &[&str]) -> Result<Command> {
        let mut command = namespace.command(&binary()?)?;
        command.arg("--control").arg(self.path("control.sock")).args(args).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn run(&self, namespace: &Namespace, args: &[&str]) -> Result<Output> {
        Ok(self.tollgate(namespace, args)?.output()?)
    }

    /// Runs a command with `-o json` and parses its output.
    ///
    /// # Errors
    /// If it fails, with its output.
    pub fn json(&self, namespace: &Namespace, args: &[&str]) -> Result<Value> {
        let output = self.run(namespace, &[args, &["-o", "json"]].concat())?;
        ensure!(output.status.success(), "tollgate {}: {}", args.join(" "), said(&output));
        serde_json::from_slice(&output.stdout).with_context(|| format!("tollgate {} -o json", args.join(" ")))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Removing the pin of a link detaches the program.
        self.mounted = None;
        if let Err(error) = fs::remove_dir_all(&self.directory)
            && error.kind() != ErrorKind::NotFound
            && !cleanup::interrupted()
        {
            eprintln!("{} is left behind: {error}", self.directory.display());
        }
    }
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    log: PathBuf,
    /// The length of the log of earlier daemons.
    log_before: usize,
}

impl Daemon {
    /// Starts a daemon without waiting.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(instance: &Instance, namespace: &Namespace) -> Result<Self> {
        Self::spawn_with(instance, namespace, &[])
    }

    /// Starts a daemon with these options of `tollgate run`, without waiting.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn_with(instance: &Instance, namespace: &Namespace, options: &[&str]) -> Result<Self> {
        let mut command = instance.tollgate(namespace, &["run", "-c"])?;
        command.arg(instance.config()).args(options);
        if let Some(user) = &instance.user {
            command.args(["--user", user]);
        }
        Self::spawn_as(instance, command)
    }

    /// Starts a daemon with this command, without waiting.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn_as(instance: &Instance, mut command: Command) -> Result<Self> {
        cleanup::hold_if_interrupted();
        let log = instance.path("log");
        let to = || fs::OpenOptions::new().create(true).append(true).open(&log);
        let (out, err) = (to()?, to()?);
        let log_before = usize::try_from(err.metadata()?.len())?;
        let child = command.stdout(out).stderr(err).spawn()?;
        Ok(Self { child, log, log_before })
    }

    /// Starts a daemon and waits until `/readyz` reports that it filters.
    ///
    /// # Errors
    /// If it ends, or takes too long; with its log.
    pub fn start(instance: &Instance, namespace: &Namespace) -> Result<Self> {
        Self::spawn(instance, namespace)?.until_ready(namespace)
    }

    /// Waits until `/readyz` reports that it filters.
    ///
    /// # Errors
    /// If it ends, or takes too long; with its log.
    pub fn until_ready(mut self, namespace: &Namespace) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the daemon ended ({status}):\n{}", self.log());
            }
            match http(namespace, "/readyz") {
                Ok((200, _)) => return Ok(self),
                answer if Instant::now() > deadline => {
                    bail!("not ready: {answer:?}\n{}", self.log());
                }
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log so far, without the logs of earlier daemons.
    pub fn log(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(log.get(self.log_before..).unwrap_or_default()).into_owned()
    }

    /// Sends SIGKILL.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends SIGTERM; returns the exit status.
    ///
    /// # Errors
    /// If it does not end.
    pub fn terminate(self) -> Result<ExitStatus> {
        self.stop(Signal::SIGTERM)
    }

    /// Sends a signal; returns the exit status.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop(mut self, signal: Signal) -> Result<ExitStatus> {
        kill(Pid::from_raw(self.pid().try_into()?), signal)?;
        self.ended()
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// If the kernel does not report it.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If it does not.
    pub fn ended(&mut self) -> Result<ExitStatus> {
        end_of(&mut self.child, "the daemon's end")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already; then nothing is left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a process ends.
pub(super) fn end_of(child: &mut Child, what: &str) -> Result<ExitStatus> {
    let mut status = None;
    wait_for(what, || {
        status = child.try_wait()?;
        Ok(status.is_some())
    })?;
    status.context("it has ended")
}

/// The binary under test.
///
/// # Errors
/// If the environment does not name it.
pub fn binary() -> Result<String> {
    env::var("TOLLGATE_BIN").context("TOLLGATE_BIN does not name the binary; use `cargo xtask test`")
}

/// The output of a finished command, standard output first.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Sends an HTTP request to the daemon: returns status and body.
///
/// # Errors
/// If there is no answer.
pub fn http(namespace: &Namespace, path: &str) -> Result<(u16, String)> {
    namespace.enter(|| {
        let mut stream = TcpStream::connect(METRICS)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split(' ').nth(1).context("no HTTP status")?.parse()?;
        Ok((status, body.to_owned()))
    })?
}

/// Polls until a condition holds.
///
/// # Errors
/// If it does not hold in time, or cannot be determined.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition()? {
        ensure!(Instant::now() < deadline, "waited {} s for {what}", PATIENCE.as_secs());
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The `[[service]]` named `game` at its family's address, with these other fields and backends.
pub fn service(family: Family, fields: &str, backends: &[IpAddr]) -> String {
    service_named(42, "game", family.service(), fields, backends)
}

/// A `[[service]]` with these other fields and backends. Their ids are 1 and up.
pub fn service_named(id: u32, name: &str, at: SocketAddr, fields: &str, backends: &[IpAddr]) -> String {
    let mut text = format!(
        "[[service]]\nid = {id}\nname = \"{name}\"\naddress = \"{}\"\nport = {}\n{fields}\n",
        at.ip(),
        at.port()
    );
    for (address, number) in backends.iter().zip(1..) {
        text.push_str(&format!(
            "[[service.backend]]\nid = {number}\nname = \"backend{number}\"\naddress = \"{address}\"\n",
        ));
    }
    text
}

/// Packets of a service by reason, those that are not zero, from `tollgate counters`.
///
/// # Errors
/// If the daemon cannot be asked.
pub fn counters(instance: &Instance, namespace: &Namespace, service: &str) -> Result<BTreeMap<String, u64>> {
    let report = instance.json(namespace, &["counters", "--service", service])?;
    let reasons = report["services"][0]["reasons"].as_array().context("the service's counters")?;
    let mut found = BTreeMap::new();
    for reason in reasons {
        let packets = reason["packets"].as_u64().context("packets")?;
        if packets > 0 {
            found.insert(reason["reason"].as_str().context("a reason")?.to_owned(), packets);
        }
    }
    Ok(found)
}
