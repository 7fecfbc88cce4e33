//! Queues of work on a device, and marks in them.

use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys;

use super::library::check;
use super::Context;
use crate::error::Result;

/// A queue of work on one device.
pub(crate) struct Stream {
    pub(super) context: Arc<Context>,
    pub(super) stream: sys::CUstream,
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
