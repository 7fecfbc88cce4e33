//! Gives the shared library its soname, and lets programs run against it where cargo leaves it.

use std::path::PathBuf;

/// Of the ABI: RWKV_EDGE_ABI_VERSION. It changes when programs must be compiled again.
const SONAME: &str = "librwkv_edge.so.1";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target_os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if !["linux", "android", "freebsd", "netbsd", "openbsd"].contains(&target_os.as_str()) {
        return;
    }
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,{SONAME}");
    // A program linked with target/release/librwkv_edge.so looks for its soname there. Only a
    // convenience: where the link cannot be made, the library is built all the same.
    #[cfg(unix)]
    if let Some(folder) = output_folder() {
        let link = folder.join(SONAME);
        if std::fs::symlink_metadata(&link).is_err() {
            let _ = std::os::unix::fs::symlink("librwkv_edge.so", link);
        }
    }
}

/// target/release of target/release/build/rwkv-edge-capi-HASH/out.
#[cfg(unix)]
fn output_folder() -> Option<PathBuf> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR")?);
    out.ancestors().nth(3).map(PathBuf::from)
}
