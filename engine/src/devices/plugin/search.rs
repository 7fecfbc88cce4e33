//! Where plugins are looked for.
//!
//! In this order: what RWKV_EDGE_PLUGIN_PATH names (files, or folders with them), beside the program,
//! beside the library (a program that links the C library may lie elsewhere), and where packages install
//! them. In folders only names count, so a file's table must call its devices as the file is called. A file that
//! the variable names is a plugin whatever it is called, and its table says of which devices.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};

use super::library::{self, Plugin};
use crate::error::{Error, Result};

/// The one environment variable that says where plugins are.
const VARIABLE: &str = "RWKV_EDGE_PLUGIN_PATH";
/// Where packages put plugins.
const INSTALLED: [&str; 2] = ["/usr/lib/rwkv-edge", "/usr/local/lib/rwkv-edge"];
/// In front of the name of the plugin's devices, behind `lib`.
const FILE_PREFIX: &str = "rwkv_edge_";

/// The plugin whose devices are called `name`.
///
/// # Errors
/// [`ErrorKind::Backend`](crate::ErrorKind::Backend) when there is none, with the places; what opening it
/// says when it is damaged or made for another version, and both names when its table has another than its file.
pub(crate) fn named(name: &str) -> Result<&'static Plugin> {
    let file_name = format!("{DLL_PREFIX}{FILE_PREFIX}{name}{DLL_SUFFIX}");
    let (files, folders) = places();
    let mut others = Vec::new();
    for file in &files {
        // The only file that is named, or the one that has the right name, is the one that is meant.
        let is_called_so = file.file_name().is_some_and(|f| f == file_name.as_str());
        match library::open(file) {
            Ok(plugin) if plugin.name() == name => return Ok(plugin),
            Ok(plugin) if is_called_so => return Err(misnamed(file, plugin, name)),
            Ok(plugin) => others.push(format!("{} is one for {}", file.display(), plugin.name())),
            Err(error) if is_called_so || files.len() == 1 => return Err(error),
            Err(error) => others.push(error.to_string()),
        }
    }
    for folder in &folders {
        let path = folder.join(&file_name);
        if path.is_file() {
            return open_as(&path, name);
        }
    }
    let folders: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
    others.push(format!(
        "looked for {file_name} in {}; put it there, or name it with {VARIABLE}",
        folders.join(", ")
    ));
    Err(Error::backend(format!(
        "no plugin for the device {name}: {}",
        others.join("; ")
    )))
}

/// Opens a file that was found by its name, which is that of the devices.
fn open_as(path: &Path, name: &str) -> Result<&'static Plugin> {
    let plugin = library::open(path)?;
    match plugin.name() == name {
        true => Ok(plugin),
        false => Err(misnamed(path, plugin, name)),
    }
}

fn misnamed(path: &Path, plugin: &Plugin, expected: &str) -> Error {
    let text = format!(
        "was loaded, but its table calls its devices {}, expected {expected} as in the file's name",
        plugin.name()
    );
    Error::backend(text).at(format_args!("plugin {}", path.display()))
}

/// Every plugin there is, or why it cannot be used. One of each name: the first that would be found.
pub(crate) fn all() -> Vec<(PathBuf, Result<&'static Plugin>)> {
    let (files, folders) = places();
    let mut plugins: Vec<_> = files
        .iter()
        .map(|path| (path.clone(), library::open(path)))
        .collect();
    for folder in folders {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        let found: BTreeSet<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.is_file() && !files.contains(path))
            .collect();
        plugins.extend(found.into_iter().filter_map(|path| {
            let plugin = open_as(&path, device_name(&path)?);
            Some((path, plugin))
        }));
    }
    let mut names = BTreeSet::new();
    plugins.retain(|(path, plugin)| {
        names.insert(match plugin {
            Ok(plugin) => plugin.name().to_owned(),
            Err(_) => path.display().to_string(),
        })
    });
    plugins
}

/// How the devices of a plugin's file are called, by the file's name.
fn device_name(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_prefix(DLL_PREFIX)?.strip_prefix(FILE_PREFIX)?;
    let name = name.strip_suffix(DLL_SUFFIX)?;
    library::is_device_name(name).then_some(name)
}

/// Files that are plugins, and folders that may hold some.
fn places() -> (Vec<PathBuf>, Vec<PathBuf>) {
    let named = std::env::var_os(VARIABLE).unwrap_or_default();
    let named = std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty());
    let (mut folders, files): (Vec<_>, Vec<_>) = named.partition(|path| path.is_dir());
    let beside = |file: Option<PathBuf>| Some(file?.parent()?.to_owned());
    folders.extend(beside(std::env::current_exe().ok()));
    folders.extend(beside(this_library()));
    folders.extend(INSTALLED.map(PathBuf::from));
    let mut seen = BTreeSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    (files, folders)
}

/// The file that this code was loaded from: the program, or the C library.
#[cfg(target_os = "linux")]
fn this_library() -> Option<PathBuf> {
    let address = this_library as fn() -> Option<PathBuf> as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        // begin-end flags offset device inode path
        let (range, rest) = line.split_once(' ')?;
        let (begin, end) = range.split_once('-')?;
        let parse = |text| usize::from_str_radix(text, 16).ok();
        let path = rest.find('/').map(|at| PathBuf::from(&rest[at..]));
        (parse(begin)?..parse(end)?)
            .contains(&address)
            .then_some(path)?
    })
}

#[cfg(not(target_os = "linux"))]
fn this_library() -> Option<PathBuf> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_file_of_this_code_is_known() {
        assert_eq!(this_library(), std::env::current_exe().ok());
    }

    #[test]
    fn names_of_files() {
        for (name, device) in [
            ("rwkv_edge_cuda", Some("cuda")),
            ("rwkv_edge_x9", Some("x9")),
            ("rwkv_edge", None),
            ("rwkv_edge_", None),
            ("rwkv_edge_Cuda", None),
            ("rwkv_edge_auto", None),
            ("other_cuda", None),
        ] {
            let path = PathBuf::from(format!("a/{DLL_PREFIX}{name}{DLL_SUFFIX}"));
            assert_eq!(device_name(&path), device, "{name}");
        }
        assert_eq!(device_name(Path::new("librwkv_edge_cuda.txt")), None);
    }
}
