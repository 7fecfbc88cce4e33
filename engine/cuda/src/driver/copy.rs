//! Copies in the order of a stream: to a device, back, inside it and between two.

use std::ptr::null_mut;

use cudarc::driver::sys;

use super::library::check;
use super::{Address, Context, Pinned, Stream};
use crate::error::Result;

/// A copy of whole rows, with neither side named yet.
fn rows_of(n_floats: usize, width: u32) -> sys::CUDA_MEMCPY2D {
    sys::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        srcHost: std::ptr::null(),
        srcDevice: 0,
        srcArray: null_mut(),
        srcPitch: 0,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        dstHost: null_mut(),
        dstDevice: 0,
        dstArray: null_mut(),
        dstPitch: 0,
        WidthInBytes: 4 * width as usize,
        Height: n_floats / width.max(1) as usize,
    }
}

impl Stream {
    /// Copies bytes from pinned memory; it must not be written before the stream has been waited for.
    pub(crate) fn upload(
        &self,
        to: Address,
        from: &Pinned,
        range: std::ops::Range<usize>,
    ) -> Result<()> {
        let bytes = &from.bytes()[range];
        self.context.enter()?;
        // SAFETY: `to` is an address of the caller's with room for the bytes; pinned memory outlives the
        // stage whose stream this is.
        check("copying to the device", unsafe {
            sys::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), self.stream)
        })
    }

    /// Copies numbers from any host memory, and waits.
    pub(crate) fn upload_slice<T: Copy>(&self, to: Address, from: &[T]) -> Result<()> {
        self.context.enter()?;
        let size = size_of_val(from);
        // SAFETY: as above; the slice is borrowed until the copy has been waited for.
        check("copying to the device", unsafe {
            sys::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), size, self.stream)
        })?;
        self.wait()
    }

    /// Copies into any host memory, and waits.
    pub(crate) fn download_slice(&self, to: &mut [f32], from: Address) -> Result<()> {
        self.context.enter()?;
        let size = size_of_val(to);
        // SAFETY: any bits are floats; the slice is borrowed until the copy has been waited for.
        check("copying from the device", unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, size, self.stream)
        })?;
        self.wait()
    }

    /// Copies into pinned memory, to be waited for.
    pub(crate) fn download(
        &self,
        to: &mut Pinned,
        at: usize,
        from: Address,
        size: usize,
    ) -> Result<()> {
        let bytes = &mut to.bytes_mut()[at..at + size];
        self.context.enter()?;
        // SAFETY: the range was just checked; pinned memory outlives the stage whose stream this is.
        check("copying from the device", unsafe {
            sys::cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast(), from, size, self.stream)
        })
    }

    /// Copies `n_rows` rows of `width` floats to the device, where they lie `stride` floats apart, and waits.
    pub(crate) fn upload_rows(
        &self,
        to: Address,
        stride: u32,
        from: &[f32],
        width: u32,
    ) -> Result<()> {
        let copy = sys::CUDA_MEMCPY2D {
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
            srcHost: from.as_ptr().cast(),
            srcPitch: 4 * width as usize,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstDevice: to,
            dstPitch: 4 * stride as usize,
            ..rows_of(from.len(), width)
        };
        self.copy_rows(&copy)
    }

    /// The way back.
    pub(crate) fn download_rows(
        &self,
        to: &mut [f32],
        width: u32,
        from: Address,
        stride: u32,
    ) -> Result<()> {
        let copy = sys::CUDA_MEMCPY2D {
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcDevice: from,
            srcPitch: 4 * stride as usize,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
            dstHost: to.as_mut_ptr().cast(),
            dstPitch: 4 * width as usize,
            ..rows_of(to.len(), width)
        };
        self.copy_rows(&copy)
    }

    fn copy_rows(&self, copy: &sys::CUDA_MEMCPY2D) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the host side is a slice of whole rows, borrowed until the copy has been waited for; the
        // device side is the caller's and has room for as many.
        check("copying rows", unsafe {
            sys::cuMemcpy2DAsync_v2(copy, self.stream)
        })?;
        self.wait()
    }

    /// Makes memory 0, and waits.
    pub(crate) fn clear(&self, at: Address, size: u64) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the memory is the caller's and has `size` bytes.
        check("clearing device memory", unsafe {
            sys::cuMemsetD8Async(at, 0, size as usize, self.stream)
        })?;
        self.wait()
    }

    /// Copies inside the device.
    pub(crate) fn copy(&self, to: Address, from: Address, size: u64) -> Result<()> {
        self.context.enter()?;
        // SAFETY: both are addresses of the caller's with room for `size` bytes.
        check("copying on the device", unsafe {
            sys::cuMemcpyDtoDAsync_v2(to, from, size as usize, self.stream)
        })
    }

    /// Copies from another device: directly where [`Context::reach`] says so, else through host memory.
    pub(crate) fn copy_from(
        &self,
        to: Address,
        other: &Context,
        from: Address,
        size: u64,
    ) -> Result<()> {
        self.context.enter()?;
        // SAFETY: as above, each in its own context.
        check("copying between devices", unsafe {
            sys::cuMemcpyPeerAsync(
                to,
                self.context.context,
                from,
                other.context,
                size as usize,
                self.stream,
            )
        })
    }
}
