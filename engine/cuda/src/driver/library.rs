//! The driver's library: opened when the first device is asked for, and results as errors with its own text.

use std::ffi::CStr;

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

/// Loads the driver. Cheap when it is loaded.
fn start() -> Result<()> {
    // SAFETY: looks for a shared library by name, runs its constructors, which NVIDIA's driver has written
    // for any process.
    let is_there = std::panic::catch_unwind(|| unsafe { sys::is_culib_present() });
    match is_there {
        Ok(true) => {}
        Ok(false) => {
            return Err(Failure::device(
                "no NVIDIA driver: libcuda.so.1 was not found",
            ))
        }
        // Functions of CUDA 12.0 are missing.
        Err(_) => {
            return Err(Failure::device(
                "the NVIDIA driver is older than 525, the first of CUDA 12.0",
            ))
        }
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
