//! Memory of a device, and memory of the host that devices reach.

use std::ptr::{null_mut, NonNull};
use std::sync::Arc;

use cudarc::driver::sys;

use super::library::check;
use super::{Address, Context, Stream};
use crate::error::{Failure, Result};

/// A piece of a device's memory.
pub(crate) struct Memory {
    context: Arc<Context>,
    address: Address,
    size: u64,
}

impl Memory {
    /// `size` bytes, all 0.
    pub(crate) fn zeroed(stream: &Stream, size: u64) -> Result<Self> {
        let size = size.max(1);
        stream.context.enter()?;
        let mut address = 0;
        // SAFETY: writes one address.
        check(&format!("{size} bytes of device memory"), unsafe {
            sys::cuMemAlloc_v2(&mut address, size as usize)
        })?;
        let memory = Memory {
            context: stream.context.clone(),
            address,
            size,
        };
        // SAFETY: the memory has `size` bytes.
        check("clearing device memory", unsafe {
            sys::cuMemsetD8Async(address, 0, size as usize, stream.stream)
        })?;
        // Copies and kernels that follow may run in other streams.
        stream.wait()?;
        Ok(memory)
    }

    pub(crate) fn address(&self) -> Address {
        self.address
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: this is the only owner; work on it is waited for by the driver.
            unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// Host memory that devices read and write directly.
pub(crate) struct Pinned {
    context: Arc<Context>,
    pointer: NonNull<u8>,
    device: Address,
    size: usize,
}

// SAFETY: plain memory, owned.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(crate) fn new(context: &Arc<Context>, size: usize) -> Result<Self> {
        /// Of every context of the process, and mapped into the device's address space.
        const PORTABLE_AND_MAPPED: u32 = 1 | 2;
        context.enter()?;
        let (mut pointer, mut device) = (null_mut(), 0);
        // SAFETY: writes a pointer to `size` bytes, and their address on the device.
        unsafe {
            let result = sys::cuMemHostAlloc(&mut pointer, size, PORTABLE_AND_MAPPED);
            check(&format!("{size} bytes of pinned memory"), result)?;
            std::ptr::write_bytes(pointer.cast::<u8>(), 0, size);
            let result = sys::cuMemHostGetDevicePointer_v2(&mut device, pointer, 0);
            check("pinned memory", result)?;
        }
        let pointer = NonNull::new(pointer.cast()).ok_or_else(|| Failure::memory("pinned"))?;
        Ok(Pinned {
            context: context.clone(),
            pointer,
            device,
            size,
        })
    }

    /// Where devices find it.
    pub(crate) fn device(&self) -> Address {
        self.device
    }

    /// As the host sees it. What a device writes meanwhile must have been waited for.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `size` bytes, initialised, owned by this.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.size) }
    }

    /// The same, to write.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.size) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: this is the only owner.
            unsafe { sys::cuMemFreeHost(self.pointer.as_ptr().cast()) };
        }
    }
}
