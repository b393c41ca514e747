//! Says where the host's binary is, which cargo tells the host's own benches alone.

fn main() {
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    // target/release/build/keywheel-gate-…/out
    let profile = out.ancestors().nth(3).expect("a folder of the profile");
    println!("cargo::rustc-env=CARGO_BIN_EXE_keywheel={}", profile.join("keywheel").display());
    println!("cargo::rerun-if-changed=build.rs");
}
