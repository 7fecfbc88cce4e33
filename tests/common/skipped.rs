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
