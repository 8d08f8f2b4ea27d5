//! Finds or makes the toolchain that builds `lb-ebpf`: a rustc that accepts unstable options, the source of its core
//! library, and a bpf-linker of the same LLVM. docs/adr/0005-toolchain-routes.md gives the reasons for these routes.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{apt, command, log};

/// The version that is built if none is installed. It supports the LLVM majors for which it has a feature `llvm-N`.
const BPF_LINKER: &str = "0.13.0";

/// Where Debian's compiler is, which rustup's does not hide from us.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// The package that it comes in.
pub const DEBIAN_RUSTC_PACKAGE: &str = "rustc-web";

/// What the workspace's `rust-version` asks for.
pub const OLDEST_RUSTC: u32 = 95;

/// A BPF toolchain.
pub struct Toolchain {
    /// Its origin, as text.
    pub route: Route,
    /// The compiler.
    pub rustc: PathBuf,
    /// The linker, of the compiler's LLVM.
    pub bpf_linker: PathBuf,
    /// The cargo to build with: the compiler's own, or the one that runs this program.
    pub cargo: OsString,
    version: Version,
}

/// The origin of a toolchain.
#[derive(Clone, Copy)]
pub enum Route {
    /// A nightly that rustup once installed with `rust-src`.
    Nightly,
    /// Debian's `rustc-web` and `rust-web-src`.
    Debian,
}

/// A toolchain that is complete.
pub fn find() -> Option<Toolchain> {
    find_nightly().or_else(find_debian)
}

/// The Debian packages that [`make`] needs and that are not installed.
pub fn missing_packages() -> Result<Vec<String>> {
    let mut packages = [DEBIAN_RUSTC_PACKAGE, "rust-web-src", "rust-web-llvm", "rust-web-clippy"]
        .map(str::to_owned)
        .to_vec();
    let Some(version) = debian_version() else {
        // Not filtered: an older compiler is there under the same names. Where apt cannot say yet which LLVM the new
        // one has, `make` asks for the rest.
        packages.extend(llvm_of_debian()?.into_iter().flat_map(llvm_packages));
        return Ok(packages);
    };
    packages.extend(llvm_packages(version.llvm));
    apt::missing(&packages)
}

/// Whether a Debian version of the compiler, such as `1.96.0+dfsg1-1~deb12u2`, is.
pub fn is_new_enough(debian_version: &str) -> bool {
    let mut numbers = debian_version.split('.').map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(1)), Some(Ok(minor))) if minor >= OLDEST_RUSTC)
}

/// Builds bpf-linker, because Debian has no package of it, and returns the toolchain.
pub fn make() -> Result<Toolchain> {
    let version = debian_version().with_context(|| {
        format!(
            "{DEBIAN_RUSTC} is older than 1.{OLDEST_RUSTC}, or its library source (rust-web-src) is missing\n\
             try: apt-get update && apt-get install rustc-web rust-web-src"
        )
    })?;
    if find_bpf_linker(version.llvm).is_none() {
        make_bpf_linker(version.llvm)?;
    }
    find_debian()
        .context("the toolchain is not complete after all of it was installed\ntry: cargo xtask setup")
}

impl Toolchain {
    /// Whether programs may load and store at any address, which LLVM can be told since 22.
    pub fn has_misaligned_access(&self) -> bool {
        self.version.llvm >= 22
    }

    /// Another program of this toolchain, such as `rustdoc`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.rustc.with_file_name(name)
    }

    /// Where the standard library's source is.
    pub fn sysroot(&self) -> Result<PathBuf> {
        sysroot(&self.rustc)
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let route = match self.route {
            Route::Nightly => "rustup's",
            Route::Debian => "Debian's",
        };
        let Version { release, llvm, .. } = &self.version;
        write!(
            f,
            "{route} rustc {release} ({}) with its library source, LLVM {llvm}, and {}",
            self.rustc.display(),
            self.bpf_linker.display()
        )
    }
}

/// A nightly of rustup with `rust-src`, if there is a bpf-linker of its LLVM.
fn find_nightly() -> Option<Toolchain> {
    let rustup = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".rustup")))?;
    let mut nightlies: Vec<PathBuf> = fs::read_dir(rustup.join("toolchains"))
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nightly")))
        .collect();
    nightlies.sort();
    nightlies.iter().rev().find_map(|nightly| {
        let rustc = nightly.join("bin/rustc");
        let version = Version::of(&rustc).ok()?;
        if !version.is_new_enough() || !has_library_source(nightly) {
            return None;
        }
        Some(Toolchain {
            route: Route::Nightly,
            bpf_linker: find_bpf_linker(version.llvm)?,
            // build-std wants the cargo that knows this library's manifests.
            cargo: nightly.join("bin/cargo").into_os_string(),
            rustc,
            version,
        })
    })
}

/// Debian's compiler with clippy and library source, if there is a bpf-linker of its LLVM.
fn find_debian() -> Option<Toolchain> {
    let version = debian_version()?;
    let rustc = PathBuf::from(DEBIAN_RUSTC);
    if !rustc.with_file_name("clippy-driver").is_file() {
        return None;
    }
    Some(Toolchain {
        route: Route::Debian,
        bpf_linker: find_bpf_linker(version.llvm)?,
        cargo: env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
        rustc,
        version,
    })
}

/// The version of Debian's compiler, if it is new enough and its library source is there.
fn debian_version() -> Option<Version> {
    let version = Version::of(Path::new(DEBIAN_RUSTC)).ok()?;
    (version.is_new_enough() && has_library_source(Path::new("/usr"))).then_some(version)
}

/// The LLVM that Debian's compiler will have when it is installed; `None` if apt cannot say.
fn llvm_of_debian() -> Result<Option<u32>> {
    let dependencies = apt::dependencies("rust-web-llvm")?;
    Ok(dependencies.iter().find_map(|name| name.strip_prefix("llvm-")?.parse().ok()))
}

/// The packages for building bpf-linker.
fn llvm_packages(llvm: u32) -> Vec<String> {
    let mut packages = vec![format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")];
    packages.extend(["g++", "libzstd-dev", "zlib1g-dev", "libxml2-dev"].map(str::to_owned));
    packages
}

/// A bpf-linker of this LLVM: ours, or one in PATH.
fn find_bpf_linker(llvm: u32) -> Option<PathBuf> {
    [made_bpf_linker(llvm)]
        .into_iter()
        .chain(command::find("bpf-linker"))
        .find(|candidate| llvm_of_linker(candidate) == Some(llvm))
}

/// Builds bpf-linker against Debian's LLVM.
fn make_bpf_linker(llvm: u32) -> Result<()> {
    apt::install(&apt::missing(&llvm_packages(llvm))?)?;
    log::say(format_args!("setup: building bpf-linker {BPF_LINKER} for LLVM {llvm}: about two minutes"));
    let made = made_bpf_linker(llvm);
    let place = made.ancestors().nth(2).context("bpf-linker has a place of its own")?;
    log::run_quietly(
        "bpf-linker",
        command::cargo("install")
            .args(["bpf-linker", "--version", BPF_LINKER, "--locked", "--force"])
            .args(["--no-default-features", "--features", &format!("llvm-{llvm}")])
            .arg("--root")
            .arg(place)
            .arg("--target-dir")
            .arg(place.join("target"))
            .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}")),
    )
    .with_context(|| {
        format!(
            "bpf-linker {BPF_LINKER} could not be built for LLVM {llvm}\ntry: fix what cargo reports below; if it \
             is the \
             feature llvm-{llvm}, a newer version may have it: BPF_LINKER in xtask/src/toolchain.rs"
        )
    })?;
    fs::remove_dir_all(place.join("target")).context("cannot remove what building bpf-linker left")?;
    ensure!(
        llvm_of_linker(&made) == Some(llvm),
        "{} was built, but not against LLVM {llvm}\ntry: remove other versions' llvm-*-dev packages",
        made.display()
    );
    Ok(())
}

/// Where we put the bpf-linker that we build.
fn made_bpf_linker(llvm: u32) -> PathBuf {
    command::target().join(format!("setup/bpf-linker-{BPF_LINKER}-llvm-{llvm}/bin/bpf-linker"))
}

/// The LLVM major that a bpf-linker is dynamically linked with. A static one does not tell, and `None` keeps it out:
/// bitcode of another major may be misread without an error.
fn llvm_of_linker(path: &Path) -> Option<u32> {
    let binary = fs::read(path).ok()?;
    [&b"libLLVM.so."[..], b"libLLVM-"].into_iter().find_map(|library| {
        let start = binary.windows(library.len()).position(|window| window == library)? + library.len();
        let digits: String = binary[start..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .map(|&byte| char::from(byte))
            .collect();
        digits.parse().ok()
    })
}

fn has_library_source(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file()
}

fn sysroot(rustc: &Path) -> Result<PathBuf> {
    Ok(command::output(command::command(rustc).args(["--print", "sysroot"]))?.trim().into())
}

/// The output of `rustc -vV`.
struct Version {
    release: String,
    minor: u32,
    llvm: u32,
}

impl Version {
    fn of(rustc: &Path) -> Result<Self> {
        if !rustc.is_file() {
            bail!("there is no {}", rustc.display());
        }
        let text = command::output(command::command(rustc).arg("-vV"))?;
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name));
            value.with_context(|| format!("{} -vV does not say its {name:?}", rustc.display()))
        };
        let release = field("release: ")?.to_owned();
        let minor = release.split('.').nth(1).and_then(|minor| minor.parse().ok());
        let minor = minor.with_context(|| format!("{release:?} is no version of rustc"))?;
        let llvm = field("LLVM version: ")?;
        let major = llvm.split('.').next().and_then(|major| major.parse().ok());
        let llvm = major.with_context(|| format!("{llvm:?} is no version of LLVM"))?;
        Ok(Self { release, minor, llvm })
    }

    fn is_new_enough(&self) -> bool {
        self.minor >= OLDEST_RUSTC
    }
}

#[cfg(test)]
mod tests {
    use super::is_new_enough;

    #[test]
    fn versions_of_debian() {
        assert!(is_new_enough("1.96.0+dfsg1-1~deb12u2"));
        assert!(is_new_enough("1.95.0"));
        assert!(!is_new_enough("1.85.0+dfsg3-1~deb12u3"));
        assert!(!is_new_enough("(none)"));
    }
}
