//! Embeds the BPF objects that `cargo xtask build` made; without one the program says so when it is to load it.

use std::{env, fs, path::PathBuf};

/// Where the balancer's object is.
const OBJECT: &str = "TOLLGATE_BPF_OBJECT";
/// The object beside it that a backend takes the outer headers off with.
const DECAP: &str = "decap-xdp";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(bpf_object)");
    println!("cargo::rerun-if-env-changed={OBJECT}");
    println!("cargo::rerun-if-changed=build.rs");
    let Some(object) = env::var_os(OBJECT).map(PathBuf::from) else { return };
    let directory = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    for (from, to) in [(object.clone(), "tollgate-xdp"), (object.with_file_name(DECAP), DECAP)] {
        println!("cargo::rerun-if-changed={}", from.display());
        if let Err(error) = fs::copy(&from, directory.join(to)) {
            panic!(
                "{OBJECT} = {}: {}: {error}\ntry: cargo xtask build, which makes both objects",
                object.display(),
                from.display()
            );
        }
    }
    println!("cargo::rustc-cfg=bpf_object");
}
