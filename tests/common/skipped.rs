//! Tests that cannot run here say so, and .ci/run counts them.

use std::fs::OpenOptions;
use std::io::Write;

/// Says why a test does nothing here: a line of its output, and of the file that RWKV_EDGE_TEST_SKIPPED names, because
/// the output of tests that pass is not shown.
pub fn skipped(why: &str) {
    println!("skipped: {why}");
    let Some(file) = std::env::var_os("RWKV_EDGE_TEST_SKIPPED") else {
        return;
    };
    let file = OpenOptions::new().create(true).append(true).open(file);
    let told = file.and_then(|mut file| file.write_all(format!("{why}\n").as_bytes()));
    told.expect("a file that can be written");
}

/// A public file that is too large for the repository, or `None` where it is not at hand, which is noted.
#[allow(dead_code)] // Not every test that skips something reads files.
pub fn test_data(file: &str) -> Option<std::path::PathBuf> {
    let Some(folder) = std::env::var_os("RWKV_EDGE_TEST_DATA") else {
        skipped(&format!("{file} in RWKV_EDGE_TEST_DATA"));
        return None;
    };
    Some(std::path::Path::new(&folder).join(file))
}
