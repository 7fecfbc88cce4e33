//! The driver's library: opened when the first device is asked for, and results as errors with its own text.

use std::ffi::CStr;
use std::sync::OnceLock;

use cudarc::driver::sys;

use crate::error::{Failure, Result};

pub(super) fn check(what: &str, result: sys::CUresult) -> Result<()> {
    if result == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = std::ptr::null();
    // SAFETY: the driver is loaded, or there would be no result; it gives a static string or null.
    let text = unsafe {
        sys::cuGetErrorString(result, &mut text);
        match text.is_null() {
            true => format!("error {}", result as u32),
            false => CStr::from_ptr(text).to_string_lossy().into_owned(),
        }
    };
    Err(match result {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Failure::memory(format!("{what}: {text}")),
        _ => Failure::device(format!("{what}: {text}")),
    })
}

/// How the driver's library may be called; cudarc takes the first that loads, too.
#[cfg(not(windows))]
const FILES: [&str; 2] = ["libcuda.so", "libcuda.so.1"];
#[cfg(windows)]
const FILES: [&str; 1] = ["nvcuda.dll"];
/// Whose functions are called, as [`driver_version`] counts, and the first driver that has them.
const OLDEST: i32 = 12_000;
const OLDEST_DRIVER: &str = "525";

fn open() -> Result<libloading::Library> {
    let mut cause = String::new();
    for file in FILES {
        // SAFETY: loads a shared library by name and runs its constructors, which NVIDIA's driver has written for any
        // process.
        match unsafe { libloading::Library::new(file) } {
            Ok(library) => return Ok(library),
            Err(error) => {
                let text = std::error::Error::source(&error).map(ToString::to_string);
                cause = text.unwrap_or_else(|| error.to_string());
            }
        }
    }
    Err(Failure::device(format!("no NVIDIA driver: {cause}")))
}

/// Loads the driver for ever, if it will do.
fn load() -> Result<()> {
    const SUCCESS: u32 = sys::CUresult::CUDA_SUCCESS as u32;
    const STUB_LIBRARY: u32 = 34;
    let failed = |text: String| Err(Failure::device(text));
    let library = open()?;
    // A number, and not an enum: drivers may be newer than what this was made with.
    type Version = unsafe extern "C" fn(*mut i32) -> u32;
    let mut version = 0;
    // SAFETY: every driver has this function, which writes one integer, before anything is started, too.
    let result = unsafe {
        match library.get::<Version>(b"cuDriverGetVersion") {
            Ok(driver_version) => driver_version(&mut version),
            Err(_) => return failed("no NVIDIA driver: libcuda has no cuDriverGetVersion".into()),
        }
    };
    match result {
        SUCCESS => {}
        STUB_LIBRARY => {
            return failed(
                "no NVIDIA driver: libcuda is the one that programs are linked with: take `stubs` out of \
                 LD_LIBRARY_PATH"
                    .into(),
            )
        }
        code => return failed(format!("the NVIDIA driver does not say its version: error {code}")),
    }
    if version < OLDEST {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return failed(format!(
            "the NVIDIA driver is one of CUDA {major}.{minor}, expected {OLDEST_DRIVER} or later, of CUDA {}.0",
            OLDEST / 1000
        ));
    }
    std::mem::forget(library);
    // cudarc looks for all functions of CUDA 12.0 at once. A missing one is a panic, which would be printed: so it only
    // gets to see drivers that must have them.
    // SAFETY: looks for the same shared library by its names.
    match std::panic::catch_unwind(|| unsafe { sys::is_culib_present() }) {
        Ok(true) => Ok(()),
        Ok(false) => failed("no NVIDIA driver: it is not where it was".into()),
        Err(_) => failed("the NVIDIA driver lacks functions of its own version".into()),
    }
}

/// Starts the driver. Cheap when it has started.
fn start() -> Result<()> {
    static LOADED: OnceLock<()> = OnceLock::new();
    if LOADED.get().is_none() {
        load()?;
        LOADED.get_or_init(|| ());
    }
    // SAFETY: the library is there; cuInit may be called any number of times.
    check("the NVIDIA driver does not start", unsafe {
        sys::cuInit(0)
    })
}

pub(crate) fn device_count() -> Result<u32> {
    start()?;
    let mut count = 0;
    // SAFETY: writes one integer.
    check("counting devices", unsafe {
        sys::cuDeviceGetCount(&mut count)
    })?;
    Ok(u32::try_from(count).unwrap_or(0))
}

/// Version of the driver's interface, such as 13000.
pub(crate) fn driver_version() -> Result<u32> {
    let mut version = 0;
    // SAFETY: writes one integer.
    check("driver version", unsafe {
        sys::cuDriverGetVersion(&mut version)
    })?;
    Ok(version as u32)
}
