//! A device's context, which every call makes the current one of its thread first.

use std::ffi::CStr;
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys;

use super::library::{check, device_count};
use crate::error::{Failure, Result};

/// A device's primary context, which all of a process share; kept until the process ends.
pub(crate) struct Context {
    ordinal: u32,
    device: sys::CUdevice,
    pub(super) context: sys::CUcontext,
}

// SAFETY: a context handle may be used by any thread that makes it current, which every call here does.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks.
unsafe impl Sync for Context {}

impl Context {
    pub(crate) fn new(ordinal: u32) -> Result<Arc<Self>> {
        let count = device_count()?;
        if ordinal >= count {
            let text = format!("no device {ordinal}: the driver has {count}");
            return Err(Failure::device(text));
        }
        let (mut device, mut context) = (0, null_mut());
        // SAFETY: the ordinal is one of the driver's; both write one handle.
        unsafe {
            check(
                "opening the device",
                sys::cuDeviceGet(&mut device, ordinal as i32),
            )?;
            check(
                "opening the device",
                sys::cuDevicePrimaryCtxRetain(&mut context, device),
            )?;
        }
        Ok(Arc::new(Context {
            ordinal,
            device,
            context,
        }))
    }

    pub(crate) fn ordinal(&self) -> u32 {
        self.ordinal
    }

    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained for as long as the process runs.
        check("entering the device", unsafe {
            sys::cuCtxSetCurrent(self.context)
        })
    }

    pub(crate) fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<u32> {
        let mut value = 0;
        // SAFETY: writes one integer.
        check("asking the device", unsafe {
            sys::cuDeviceGetAttribute(&mut value, attribute, self.device)
        })?;
        Ok(value as u32)
    }

    pub(crate) fn name(&self) -> Result<String> {
        let mut text = [0; 96];
        // SAFETY: writes at most 96 bytes, with a NUL.
        unsafe {
            check(
                "asking the device's name",
                sys::cuDeviceGetName(text.as_mut_ptr(), 96, self.device),
            )?;
            Ok(CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned())
        }
    }

    /// Free and total bytes of the device's memory.
    pub(crate) fn memory(&self) -> Result<(u64, u64)> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two integers.
        check("asking for free memory", unsafe {
            sys::cuMemGetInfo_v2(&mut free, &mut total)
        })?;
        Ok((free as u64, total as u64))
    }

    /// Lets this device's kernels and copies reach the other's memory directly. False where they cannot:
    /// the driver then copies through host memory by itself.
    pub(crate) fn reach(&self, other: &Context) -> Result<bool> {
        let mut can = 0;
        // SAFETY: writes one integer.
        check("asking for peer access", unsafe {
            sys::cuDeviceCanAccessPeer(&mut can, self.device, other.device)
        })?;
        if can == 0 {
            return Ok(false);
        }
        self.enter()?;
        // SAFETY: both contexts live until the process ends.
        let result = unsafe { sys::cuCtxEnablePeerAccess(other.context, 0) };
        if result == sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED {
            return Ok(true);
        }
        check("peer access", result).map(|()| true)
    }
}
