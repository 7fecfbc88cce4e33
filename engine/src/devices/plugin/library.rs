//! Opens a plugin's file and checks its table, before anything in it is called but the one entry.
//!
//! This module holds `unsafe` code: it loads foreign code, and reads the table that it gives. A plugin
//! stays loaded until the process ends: its devices may have threads, and drivers do not expect to go.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rwkv_edge_plugin as abi;

use crate::error::{Error, Result};

/// A loaded plugin with a checked table.
pub(crate) struct Plugin {
    table: &'static abi::Table,
    name: String,
    build: String,
    architectures: Vec<String>,
    path: PathBuf,
}

// SAFETY: the header lets the functions of a table be called from any thread, and nothing changes the
// table.
unsafe impl Send for Plugin {}
// SAFETY: as above.
unsafe impl Sync for Plugin {}

static OPENED: Mutex<Vec<&'static Plugin>> = Mutex::new(Vec::new());

/// Opens a plugin, or gives the one that was opened from this file before.
///
/// # Errors
/// [`ErrorKind::Backend`](crate::ErrorKind::Backend), naming the file: it cannot be loaded, is no plugin,
/// or is one of another version.
pub(crate) fn open(path: &Path) -> Result<&'static Plugin> {
    let failed = |text: String| Error::backend(text).at(format_args!("plugin {}", path.display()));
    let path = std::fs::canonicalize(path).map_err(|e| failed(e.to_string()))?;
    let mut opened = OPENED
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(plugin) = opened.iter().copied().find(|plugin| plugin.path == path) {
        return Ok(plugin);
    }
    let table = load(&path).map_err(&failed)?;
    // SAFETY: `check_table` saw that none is NULL; the header says NUL-terminated, and of lists NULL-terminated.
    let ([name, build], architectures) = unsafe {
        let names = [text(table.name), text(table.build)];
        (names, texts(table.architectures))
    };
    if !is_device_name(&name) {
        return Err(failed(format!(
            "calls its devices `{name}`, expected lower-case letters and digits, and not cpu or auto"
        )));
    }
    let plugin: &'static Plugin = Box::leak(Box::new(Plugin {
        table,
        name,
        build,
        architectures,
        path,
    }));
    opened.push(plugin);
    Ok(plugin)
}

/// Whether a plugin's devices may be called so.
pub(crate) fn is_device_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    !name.is_empty() && name.chars().all(is_allowed) && !["cpu", "auto"].contains(&name)
}

impl Plugin {
    pub(super) fn table(&self) -> &'static abi::Table {
        self.table
    }

    /// How its devices are called: `cuda` gives `cuda:0`, `cuda:1`, ...
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its own version.
    pub(crate) fn build(&self) -> &str {
        &self.build
    }

    /// What its devices can run.
    pub(super) fn architectures(&self) -> &[String] {
        &self.architectures
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut f = f.debug_struct("Plugin");
        f.field("name", &self.name)
            .field("path", &self.path)
            .finish()
    }
}

/// # Safety
/// The pointer is to a NUL-terminated string.
unsafe fn text(pointer: *const std::ffi::c_char) -> String {
    // SAFETY: the caller's promise is the same.
    let text = unsafe { std::ffi::CStr::from_ptr(pointer) };
    text.to_string_lossy().into_owned()
}

/// The texts of a list of names.
///
/// # Safety
/// The pointer is NULL, or to pointers to NUL-terminated strings of which the last is NULL.
pub(super) unsafe fn texts(list: *const *const std::ffi::c_char) -> Vec<String> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller's promise: nothing behind the first NULL is read.
    let pointers = (0..).map(|i| unsafe { *list.add(i) });
    let pointers = pointers.take_while(|pointer| !pointer.is_null());
    // SAFETY: the caller's promise is the same.
    pointers.map(|pointer| unsafe { text(pointer) }).collect()
}

#[cfg(all(feature = "plugins", not(target_feature = "crt-static")))]
fn load(path: &Path) -> Result<&'static abi::Table, String> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    super::loadable::check(path)?;
    // SAFETY: loading runs the file's own initialisers. Whoever put a plugin where plugins are looked for,
    // or named it, trusts it as a part of this program, as with any library that a program is linked to.
    let library = unsafe { libloading::Library::new(path) }.map_err(|e| {
        let mut text = format!("cannot be loaded: {e}");
        // The cause is what the loader says: a missing library, or another architecture.
        if let Some(cause) = std::error::Error::source(&e) {
            text = format!("cannot be loaded: {cause}");
        }
        text
    })?;
    // SAFETY: the symbol's name holds the version of the type that it has.
    let entry = *unsafe { library.get::<abi::Entry>(abi::SYMBOL.as_bytes()) }
        .map_err(|_| without_entry(&library))?;
    // Whatever the entry gives: once it was called, there may be threads in the library, and drivers know it. And a table
    // lives as long as the library: for ever.
    std::mem::forget(library);
    // SAFETY: the function of that name has that type, may be called with any version, and stays loaded.
    let table = unsafe { entry(abi::VERSION) };
    // SAFETY: the pointer is what the entry gave, and the library is loaded.
    unsafe { check_table(table) }
}

/// What a library is that does not have the entry of this version.
#[cfg(all(feature = "plugins", not(target_feature = "crt-static")))]
fn without_entry(library: &libloading::Library) -> String {
    let expected = abi::VERSION;
    for version in 1..expected {
        let symbol = format!("rwkv_edge_plugin_v{version}");
        // SAFETY: it is only looked for, and never called.
        if unsafe { library.get::<unsafe extern "C" fn()>(symbol.as_bytes()) }.is_ok() {
            return format!(
                "is a plugin of table version {version}, expected {expected}: update it"
            );
        }
    }
    format!(
        "no {}: not a plugin of this program, or one made for another version of it",
        abi::SYMBOL
    )
}

#[allow(dead_code)] // only some systems have such programs
pub(super) const STATIC: &str =
    "a static program cannot load plugins: use the dynamically linked build";

#[cfg(all(feature = "plugins", target_feature = "crt-static"))]
fn load(_path: &Path) -> Result<&'static abi::Table, String> {
    Err(STATIC.into())
}

#[cfg(not(feature = "plugins"))]
fn load(_path: &Path) -> Result<&'static abi::Table, String> {
    Err("this program was built without plugins (cargo feature `plugins`)".into())
}

/// The table behind a pointer, once it can be one.
///
/// # Safety
/// The pointer is what a plugin's entry gave: NULL, or to a table that begins with its version and size,
/// and that lives for ever.
#[allow(dead_code)] // programs without plugins have no tables
unsafe fn check_table(table: *const abi::Table) -> Result<&'static abi::Table, String> {
    let version = abi::VERSION;
    if table.is_null() {
        return Err(format!(
            "made for another version of this program, whose plugins are of version {version}"
        ));
    }
    if !table.is_aligned() {
        return Err("its table is not aligned".into());
    }
    // SAFETY: not NULL and aligned; tables of every version begin with these two numbers.
    let [found, size] = unsafe { table.cast::<[u32; 2]>().read() };
    if found != version {
        return Err(format!(
            "is a plugin of table version {found}, expected {version}"
        ));
    }
    let expected = size_of::<abi::Table>();
    if (size as usize) < expected {
        return Err(format!("its table has {size} bytes, expected {expected}"));
    }
    // A function pointer in Rust is never NULL, so this is looked at before there is a reference.
    const POINTER: usize = size_of::<*const ()>();
    const FIRST: usize = std::mem::offset_of!(abi::Table, name) / POINTER;
    const END: usize = std::mem::offset_of!(abi::Table, reserved) / POINTER;
    // SAFETY: the table is as large as its size says, and all of it from `name` on is pointers.
    let pointers = unsafe { std::slice::from_raw_parts(table.cast::<usize>(), END) };
    if let Some(at) = pointers[FIRST..].iter().position(|&pointer| pointer == 0) {
        return Err(format!("entry {at} of its table is NULL"));
    }
    // SAFETY: version and size are right, no pointer is NULL, and it lives for ever.
    Ok(unsafe { &*table })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tables that would be undefined behaviour if they were believed.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn tables_are_checked_before_they_are_believed() {
        const WORDS: usize = size_of::<abi::Table>() / size_of::<u64>();
        let check = |words: &[u64; WORDS]| {
            // SAFETY: as large and as aligned as a table, and only looked at while it lives.
            let result = unsafe { check_table(words.as_ptr().cast()) };
            result.err().expect("not a table")
        };
        let head = |version: u64, size: usize| version | (size as u64) << 32;
        let mut words = [1_u64; WORDS];
        words[0] = head(1, size_of::<abi::Table>());
        assert_eq!(check(&words), "is a plugin of table version 1, expected 2");
        words[0] = head(2, 100);
        assert!(check(&words).contains("100 bytes"));
        words[0] = head(2, size_of::<abi::Table>());
        words[9] = 0;
        assert_eq!(check(&words), "entry 8 of its table is NULL");
        // SAFETY: NULL is allowed.
        let error = unsafe { check_table(std::ptr::null()) };
        let error = error.err().expect("no table");
        assert!(error.contains("another version"), "{error}");
    }

    #[test]
    fn what_is_no_plugin_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        let error = open(file.path()).expect_err("empty");
        assert_eq!(error.kind(), crate::ErrorKind::Backend);
        assert!(error.to_string().contains("plugin /"), "{error}");
        open(Path::new("no/such/file")).expect_err("missing");
    }
}
