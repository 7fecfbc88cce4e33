//! Compiled kernels, and how a stream starts them.

use std::collections::BTreeMap;
use std::ffi::{c_void, CStr, CString};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys;

use super::library::check;
use super::{Context, Stream};
use crate::error::{Failure, Result};

/// Compiled kernels; kept until the process ends.
pub(crate) struct Module {
    context: Arc<Context>,
    module: sys::CUmodule,
}

// SAFETY: the driver locks.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Lets the driver compile PTX for this device; it keeps the result on disk for the next process.
    pub(crate) fn compile(context: &Arc<Context>, ptx: &CStr) -> Result<Self> {
        context.enter()?;
        let mut module = null_mut();
        // SAFETY: the text ends with NUL; writes one handle.
        check("compiling the kernels", unsafe {
            sys::cuModuleLoadData(&mut module, ptx.as_ptr().cast())
        })?;
        Ok(Module {
            context: context.clone(),
            module,
        })
    }

    pub(crate) fn kernel(&self, name: &str) -> Result<Kernel> {
        self.context.enter()?;
        let mut function = null_mut();
        let text = CString::new(name).map_err(|_| Failure::argument("a kernel's name"))?;
        // SAFETY: the name ends with NUL; writes one handle.
        check(name, unsafe {
            sys::cuModuleGetFunction(&mut function, self.module, text.as_ptr())
        })?;
        let carveout =
            sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        // SAFETY: the function is this module's. All kernels want the same share of the first cache as shared
        // memory: only then can one begin while another still runs.
        check(name, unsafe {
            sys::cuFuncSetAttribute(function, carveout, 100)
        })?;
        Ok(Kernel {
            context: self.context.clone(),
            function,
            name: name.to_owned(),
        })
    }
}

/// One kernel of a module that lives until the process ends.
pub(crate) struct Kernel {
    context: Arc<Context>,
    function: sys::CUfunction,
    name: String,
}

// SAFETY: a handle that is only passed to the driver.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Lets a block have `bytes` of shared memory. What was allowed before is never taken back: other stages
    /// launch the same kernel.
    pub(crate) fn allow_shared(&self, bytes: u32) -> Result<()> {
        static ALLOWED: Mutex<BTreeMap<usize, u32>> = Mutex::new(BTreeMap::new());
        let mut allowed = ALLOWED.lock().unwrap_or_else(PoisonError::into_inner);
        let allowed = allowed.entry(self.function as usize).or_default();
        if bytes <= *allowed {
            return Ok(());
        }
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        self.context.enter()?;
        // SAFETY: the kernel's module lives until the process ends.
        check(&self.name, unsafe {
            sys::cuFuncSetAttribute(self.function, attribute, bytes as i32)
        })?;
        *allowed = bytes;
        Ok(())
    }

    /// Blocks of so many threads that a multiprocessor runs at once.
    pub(crate) fn blocks_at_once(&self, threads: u32, shared: u32) -> Result<u32> {
        self.context.enter()?;
        let mut blocks = 0;
        // SAFETY: writes one integer.
        check(&self.name, unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                self.function,
                threads as i32,
                shared as usize,
            )
        })?;
        Ok(blocks as u32)
    }
}

/// How a kernel starts.
#[derive(Clone, Copy)]
pub(crate) enum Launch {
    /// When everything in front of it is done.
    Alone,
    /// Perhaps before the kernel in front of it ends, which it waits for by itself.
    Overlapping,
    /// The same, and so many blocks that follow each other in the grid's third dimension are a cluster.
    OverlappingClusters(u32),
    /// Alone, and all blocks at once: they wait for each other.
    Together,
}

impl Stream {
    /// Starts a kernel. `parameters` is the one struct that every kernel of a pass takes.
    ///
    /// # Safety
    ///
    /// `P` must be the struct that the kernel was compiled with, its addresses must have room for what the
    /// kernel reads and writes, and nothing else may be at work on what it writes.
    pub(crate) unsafe fn launch<P>(
        &self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        mode: Launch,
        parameters: &P,
    ) -> Result<()> {
        let pointer: *const P = parameters;
        let mut pointers = [pointer.cast_mut().cast()];
        // SAFETY: the driver copies the struct before this returns; the rest is the caller's promise.
        unsafe { self.launch_with(kernel, grid, block, shared, mode, &mut pointers) }
    }

    /// [`launch`](Self::launch) for kernels of several parameters.
    ///
    /// # Safety
    ///
    /// As there, for every pointer.
    pub(crate) unsafe fn launch_raw(
        &self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        parameters: &mut [*mut c_void],
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_with(kernel, grid, block, shared, Launch::Alone, parameters) }
    }

    /// # Safety
    ///
    /// As [`launch`](Self::launch).
    unsafe fn launch_with(
        &self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: u32,
        shared: u32,
        mode: Launch,
        parameters: &mut [*mut c_void],
    ) -> Result<()> {
        use sys::CUlaunchAttributeID as Id;
        self.context.enter()?;
        let overlaps = sys::CUlaunchAttribute {
            id: Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let together = sys::CUlaunchAttribute {
            id: Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { cooperative: 1 },
        };
        let clusters = |n| sys::CUlaunchAttribute {
            id: Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: 1, y: 1, z: n },
            },
        };
        let mut attributes = match mode {
            Launch::Alone => vec![],
            Launch::Overlapping => vec![overlaps],
            Launch::OverlappingClusters(n) => vec![overlaps, clusters(n)],
            Launch::Together => vec![together],
        };
        let config = sys::CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: self.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: the caller's promise; the attributes live until the call returns.
        let result = unsafe {
            sys::cuLaunchKernelEx(
                &config,
                kernel.function,
                parameters.as_mut_ptr(),
                null_mut(),
            )
        };
        check(&kernel.name, result)
    }
}
