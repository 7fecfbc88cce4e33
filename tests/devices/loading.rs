//! What opening a plugin's file may cost, and that it stays open whatever its table is.

use std::path::{Path, PathBuf};
use std::process::Command;

use rwkv_edge::found_plugins;

use super::{alone, plugin};
use crate::command::stdout;

/// `info --devices` looks at every file that is called like a plugin. One of 64 bytes that says that it has 65,535
/// program headers of 65,535 bytes took 4 GiB, which this process may not have.
#[test]
fn a_header_of_4_gib_takes_no_memory() {
    let is_64 = size_of::<usize>() == 8;
    let mut header = vec![0; 64];
    header[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 1 + u8::from(is_64), 1]);
    if cfg!(target_endian = "big") {
        header[5] = 2;
    }
    let [size_at, number_at] = if is_64 { [54, 56] } else { [42, 44] };
    for at in [size_at, number_at] {
        header[at..at + 2].fill(0xff);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("librwkv_edge_x.so");
    std::fs::write(&file, header).expect("can be written");
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -v 2000000; exec \"$0\" info --devices"])
        .arg(alone().get_program())
        .env("RWKV_EDGE_PLUGIN_PATH", &file);
    let text = stdout(&command.output().expect("sh is there"));
    assert!(text.contains("program headers of 65535 bytes"), "{text}");
}

/// Behind its entry a plugin may have threads, and a driver that knows it: to close it then would be the end of the
/// process, sooner or later.
#[test]
fn a_plugin_with_a_bad_table_stays_loaded() {
    const TABLE: &str = "CPUPLUG_BAD_TABLE";
    if std::env::var_os(TABLE).is_some() {
        return in_a_process_of_its_own();
    }
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("librwkv_edge_bad.so");
    std::fs::copy(plugin(), &copy).expect("can be copied");
    for table in ["none", "version", "size", "name"] {
        let name = "loading::a_plugin_with_a_bad_table_stays_loaded";
        let mut command = Command::new(std::env::current_exe().expect("a file"));
        command
            .args(["--exact", name, "--nocapture"])
            .env(TABLE, table)
            .env("RWKV_EDGE_PLUGIN_PATH", &copy);
        let output = command.output().expect("this program starts again");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("1 passed"), "{table}: {text}");
        stdout(&output);
    }
}

fn in_a_process_of_its_own() {
    let path = PathBuf::from(std::env::var_os("RWKV_EDGE_PLUGIN_PATH").expect("was set"));
    assert!(!is_mapped(&path));
    let found = found_plugins();
    let bad = found.iter().find(|plugin| plugin.path == path);
    let devices = &bad.expect("is named").devices;
    let error = devices.as_ref().expect_err("its table is bad");
    println!("{error}");
    assert!(is_mapped(&path), "{error}");
}

fn is_mapped(path: &Path) -> bool {
    let path = std::fs::canonicalize(path).expect("is there");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux has it");
    maps.contains(path.to_str().expect("test paths are UTF-8"))
}
