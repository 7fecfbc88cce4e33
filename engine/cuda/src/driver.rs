//! The CUDA driver, as far as it is needed here: owned handles, and errors with the driver's own text.
//!
//! All calls into the driver are in this file. `libcuda.so.1` is opened when the first device is asked
//! for; nothing else of CUDA is needed at run time. Every call makes its context the current one of the
//! calling thread first, so that any thread may use any handle.

use std::collections::BTreeMap;
use std::ffi::{c_void, CStr, CString};
use std::ptr::{null_mut, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys;

use crate::error::{Failure, Result};

/// An address in a device's memory; 0 is none.
pub(crate) type Address = u64;

fn check(what: &str, result: sys::CUresult) -> Result<()> {
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
pub(crate) fn start() -> Result<()> {
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

/// A device's primary context, which all of a process share; kept until the process ends.
pub(crate) struct Context {
    ordinal: u32,
    device: sys::CUdevice,
    context: sys::CUcontext,
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

    fn enter(&self) -> Result<()> {
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

/// How a kernel starts.
#[derive(Clone, Copy)]
pub(crate) enum Launch {
    /// When everything in front of it is done.
    Alone,
    /// Perhaps before the kernel in front of it ends, which it waits for by itself.
    Overlapping,
    /// Alone, and all blocks at once: they wait for each other.
    Together,
}

/// A queue of work on one device.
pub(crate) struct Stream {
    context: Arc<Context>,
    stream: sys::CUstream,
}

// SAFETY: the driver locks; whoever holds a stage's lock uses its stream.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self> {
        context.enter()?;
        let mut stream = null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle.
        check("a stream", unsafe {
            sys::cuStreamCreate(&mut stream, flags)
        })?;
        Ok(Stream {
            context: context.clone(),
            stream,
        })
    }

    /// Waits for all work so far.
    pub(crate) fn wait(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the stream is this one's.
        check("running kernels", unsafe {
            sys::cuStreamSynchronize(self.stream)
        })
    }

    /// Waits on the device, not the host, for what `event` marks.
    pub(crate) fn wait_for(&self, event: &Event) -> Result<()> {
        self.context.enter()?;
        // SAFETY: both handles are alive.
        check("waiting for a stage", unsafe {
            sys::cuStreamWaitEvent(self.stream, event.event, 0)
        })
    }

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
        let mut attributes = match mode {
            Launch::Alone => vec![],
            Launch::Overlapping => vec![overlaps],
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

    /// Records what `work` starts on this stream, instead of running it.
    pub(crate) fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.context.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is this one's, and nothing else uses it meanwhile.
        check("recording a graph", unsafe {
            sys::cuStreamBeginCapture_v2(self.stream, mode)
        })?;
        let outcome = work();
        let (mut graph, mut executable) = (null_mut(), null_mut());
        // SAFETY: ends what was begun; handles are written, used and destroyed.
        unsafe {
            let ended = sys::cuStreamEndCapture(self.stream, &mut graph);
            let made = outcome
                .and_then(|()| check("recording a graph", ended))
                .and_then(|()| {
                    let result = sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
                    check("building a graph", result)
                });
            if !graph.is_null() {
                sys::cuGraphDestroy(graph);
            }
            made?;
        }
        Ok(Graph {
            context: self.context.clone(),
            executable,
        })
    }

    /// Runs what was recorded.
    pub(crate) fn replay(&self, graph: &Graph) -> Result<()> {
        self.context.enter()?;
        // SAFETY: both handles are alive; the addresses in the graph are the stage's own.
        check("running a graph", unsafe {
            sys::cuGraphLaunch(graph.executable, self.stream)
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: this is the only owner; work in the stream is still done.
            unsafe {
                sys::cuStreamSynchronize(self.stream);
                sys::cuStreamDestroy_v2(self.stream)
            };
        }
    }
}

/// Recorded work.
pub(crate) struct Graph {
    context: Arc<Context>,
    executable: sys::CUgraphExec,
}

// SAFETY: used under the lock of the stage that owns it.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: this is the only owner, and its stream has been waited for.
            unsafe { sys::cuGraphExecDestroy(self.executable) };
        }
    }
}

/// A mark in a stream.
pub(crate) struct Event {
    context: Arc<Context>,
    event: sys::CUevent,
}

// SAFETY: the driver locks.
unsafe impl Send for Event {}

impl Event {
    /// One that only orders work, or one that also keeps the time.
    pub(crate) fn new(context: &Arc<Context>, timed: bool) -> Result<Self> {
        let flags = match timed {
            true => sys::CUevent_flags::CU_EVENT_DEFAULT,
            false => sys::CUevent_flags::CU_EVENT_DISABLE_TIMING,
        };
        context.enter()?;
        let mut event = null_mut();
        // SAFETY: writes one handle.
        check("an event", unsafe {
            sys::cuEventCreate(&mut event, flags as u32)
        })?;
        Ok(Event {
            context: context.clone(),
            event,
        })
    }

    pub(crate) fn mark(&self, stream: &Stream) -> Result<()> {
        self.context.enter()?;
        // SAFETY: both handles are alive.
        check("marking a stream", unsafe {
            sys::cuEventRecord(self.event, stream.stream)
        })
    }

    /// Waits on the host until the work before the mark is done.
    pub(crate) fn wait(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the handle is alive.
        check("running kernels", unsafe {
            sys::cuEventSynchronize(self.event)
        })
    }

    /// Seconds from this mark to a later one, both timed and waited for.
    pub(crate) fn seconds_to(&self, later: &Event) -> Result<f64> {
        self.context.enter()?;
        let mut milliseconds = 0.0_f32;
        // SAFETY: both handles are alive; writes one float.
        check("reading an event", unsafe {
            sys::cuEventElapsedTime(&mut milliseconds, self.event, later.event)
        })?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: this is the only owner.
            unsafe { sys::cuEventDestroy_v2(self.event) };
        }
    }
}

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
        Ok((blocks as u32).max(1))
    }
}
