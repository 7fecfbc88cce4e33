//! Work that is recorded once and run again.

use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys;

use super::library::check;
use super::{Context, Stream};
use crate::error::Result;

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

impl Stream {
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
