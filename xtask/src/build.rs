//! `cargo xtask build`: the XDP programs first, then the host crates with the program inside.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::setup::{self, Needs};
use crate::toolchain::Toolchain;
use crate::{command, log};

/// The artefacts of a build.
pub struct Built {
    /// The toolchain of the BPF object.
    pub bpf: Toolchain,
    /// The BPF object.
    pub object: PathBuf,
    /// The `tollgate` binary that contains it.
    pub tollgate: PathBuf,
    commit: Option<String>,
}

/// The requirements of building.
pub const NEEDS: Needs = Needs {
    subcommand: "build",
    kernel: None,
    parts: &[],
    built: "release/tollgate",
    minutes: 6,
    then: None,
    gigabytes: 3,
};

/// `cargo xtask build`.
pub fn show() -> Result<()> {
    setup::check(&NEEDS)?;
    let built = run(&NEEDS)?;
    println!("{}\n{}", built.object.display(), built.tollgate.display());
    Ok(())
}

/// Runs setup for the subcommand, and builds everything.
pub fn run(needs: &Needs) -> Result<Built> {
    let bpf = setup::run(needs)?;
    log::say(format_args!("build: the XDP program, with {bpf}"));
    command::run_aside(bpf_cargo(&bpf, "build")?.arg("--release"))?;
    command::run_aside(replay_cargo(&bpf, "build")?.arg("--release"))?;
    let object = command::target().join("bpf/bpfel-unknown-none/release/tollgate-xdp");
    ensure!(object.is_file(), "cargo built no {}", object.display());

    let tollgate = command::target().join("release/tollgate");
    let built = Built { bpf, object, tollgate, commit: commit() };
    command::run_aside(built.host_cargo("build").args(["--release", "--package", "lb-userspace"]))?;
    ensure!(built.tollgate.is_file(), "cargo built no {}", built.tollgate.display());
    Ok(built)
}

impl Built {
    /// Cargo for the host crates, with the object in their environment.
    pub fn host_cargo(&self, subcommand: &str) -> Command {
        let mut cargo = command::cargo(subcommand);
        self.describe_to(&mut cargo);
        cargo
    }

    /// A program of `lb-tests`, which finds the artefacts by its environment.
    pub fn test_program(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        self.describe_to(&mut command);
        command
    }

    fn describe_to(&self, command: &mut Command) {
        command.env("TOLLGATE_BPF_OBJECT", &self.object).env("TOLLGATE_BIN", &self.tollgate);
        match &self.commit {
            Some(commit) => command.env("TOLLGATE_COMMIT", commit),
            None => command.env_remove("TOLLGATE_COMMIT"),
        };
    }

    /// Builds one program of `lb-tests` in release and returns where it is. `selection` is cargo's, as in
    /// `["--bin", "demo"]`.
    pub fn test_executable(&self, selection: [&str; 2]) -> Result<PathBuf> {
        let messages = command::output(
            self.host_cargo("build")
                .args(["--release", "--package", "lb-tests", "--features", "kernel"])
                .args(selection)
                .arg("--message-format=json-render-diagnostics"),
        )?;
        let executable = messages.lines().find_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            let is_wanted = message["target"]["name"] == selection[1];
            message["executable"].as_str().filter(|_| is_wanted).map(PathBuf::from)
        });
        executable.with_context(|| format!("cargo built no program for {}", selection.join(" ")))
    }
}

/// Cargo for `lb-ebpf` and the core library below it, in a target directory of its own: host builds and BPF builds
/// would otherwise undo each other.
pub fn bpf_cargo(toolchain: &Toolchain, subcommand: &str) -> Result<Command> {
    bpf_cargo_into(toolchain, subcommand, &command::target().join("bpf"))
}

/// [`bpf_cargo`] with this target directory.
pub fn bpf_cargo_into(toolchain: &Toolchain, subcommand: &str, target: &Path) -> Result<Command> {
    cargo_for_bpf(toolchain, subcommand, ["--package", "lb-ebpf"], target)
}

/// Cargo for the XDP programs of benchmark and load test, into the directory of the XDP program.
pub fn replay_cargo(toolchain: &Toolchain, subcommand: &str) -> Result<Command> {
    let package = ["--manifest-path", "tests/replay/Cargo.toml"];
    cargo_for_bpf(toolchain, subcommand, package, &command::target().join("bpf"))
}

fn cargo_for_bpf(
    toolchain: &Toolchain,
    subcommand: &str,
    package: [&str; 2],
    target: &Path,
) -> Result<Command> {
    let mut cargo = command::command(&toolchain.cargo);
    cargo
        .arg(subcommand)
        .args(package)
        .args(["--target", "bpfel-unknown-none", "-Z", "build-std=core", "--target-dir"])
        .arg(target)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTDOC", toolchain.program("rustdoc"))
        // Debian's compiler is a stable one, and so may be cargo: this lets both take unstable options.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.bpf_linker)
        .env("CARGO_ENCODED_RUSTFLAGS", bpf_rustflags(toolchain)?.join("\u{1f}"))
        // As one module per crate, linked whole by bpf-linker: functions that are not inlined break the stack's limit.
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        // Set by `cargo run` for the libraries of another toolchain than this one.
        .env_remove("LD_LIBRARY_PATH");
    Ok(cargo)
}

fn bpf_rustflags(toolchain: &Toolchain) -> Result<Vec<String>> {
    let mut flags: Vec<String> =
        // Types and line numbers for the verifier's messages, as BTF. v3 has 32-bit and atomic instructions, and every
        // kernel from 6.1 on has v3.
        ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Ctarget-cpu=v3"].map(str::to_owned).to_vec();
    if toolchain.has_misaligned_access() {
        // XDP lets programs read packets at any address; without this, LLVM reads them byte by byte.
        flags.push("-Clink-arg=--cpu-features=+allows-misaligned-mem-access".into());
    }
    // The object is the same, byte by byte, wherever it is built.
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let places = [
        (Some(command::root().to_owned()), "/tollgate"),
        (cargo_home, "/cargo"),
        (Some(toolchain.sysroot()?.join("lib/rustlib/src/rust")), "/rust"),
    ];
    flags.extend(
        places
            .into_iter()
            .filter_map(|(from, to)| Some(format!("--remap-path-prefix={}={to}", from?.display()))),
    );
    Ok(flags)
}

/// The commit of this tree; none if git or its directory is missing.
fn commit() -> Option<String> {
    let described = command::command("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8(described.stdout).ok()?.trim().to_owned())
}
