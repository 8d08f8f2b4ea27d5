//! Embeds the BPF object that `cargo xtask build` made; without one the program says so when it is to load it.

use std::{env, fs, path::PathBuf};

const OBJECT: &str = "TOLLGATE_BPF_OBJECT";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(bpf_object)");
    println!("cargo::rerun-if-env-changed={OBJECT}");
    println!("cargo::rerun-if-changed=build.rs");
    let Some(object) = env::var_os(OBJECT).map(PathBuf::from) else { return };
    println!("cargo::rerun-if-changed={}", object.display());
    let directory = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    if let Err(error) = fs::copy(&object, directory.join("tollgate-xdp")) {
        panic!("{OBJECT} = {}: {error}\ntry: cargo xtask build, which makes it", object.display());
    }
    println!("cargo::rustc-cfg=bpf_object");
}
