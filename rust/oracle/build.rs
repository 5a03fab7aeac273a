//! Builds the plugin that logs what an emulated machine does to its debug registers (`plugin/steps.rs`): a shared
//! library, which this crate carries as bytes.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=plugin");
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let library = Path::new(&variable("OUT_DIR")).join("steps.so");
    if variable("CARGO_CFG_TARGET_OS") != "linux" || variable("CARGO_CFG_TARGET_ARCH") != "x86_64" {
        // There is no such world elsewhere.
        fs::write(&library, []).expect("OUT_DIR can be written");
        return;
    }
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["plugin/steps.rs", "--crate-type=cdylib", "--edition=2024", "--target", &variable("TARGET"), "-o"]);
    rustc.arg(&library);
    rustc.args(["-Copt-level=s", "-Cpanic=abort", "-Cstrip=symbols", "-Dwarnings"]);
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    let status = rustc.status().expect("rustc can be started");
    assert!(status.success(), "plugin/steps.rs does not compile: {status}");
}
