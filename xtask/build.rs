//! The architecture, for the triple of the guests' programs.

fn main() {
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    println!("cargo::rustc-env=XTASK_ARCH={arch}");
    println!("cargo::rerun-if-changed=build.rs");
}
