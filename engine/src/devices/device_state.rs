//! Where the numbers of a state are when its model has layers on devices.
//!
//! The parts on devices are the truth for their layers, until the host has written newer numbers. What
//! the host wants to see is put together when it is asked for, and forgotten with the next pass: a token
//! costs no copy.

#![forbid(unsafe_code)]

use std::any::Any;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::devices::plugin;
use crate::error::Result;
use crate::math::copied;
use crate::networks::state::{Elsewhere, State};

/// A state's parts on devices.
pub(crate) struct DeviceState {
    /// One a stage on a device, in order.
    parts: Vec<plugin::State>,
    /// Numbers of one layer.
    layer_len: usize,
    /// The parts have yet to be written from the host's numbers.
    host_is_newer: bool,
    /// The numbers of all layers, since somebody asked.
    whole: OnceLock<Vec<f32>>,
}

/// Makes the numbers of a state be where a pass through these stages needs them: each of them gets its part, the
/// other layers' are on the host. Nothing but a few comparisons if they are there already.
///
/// # Errors
/// Those of the devices; the state is as it was then.
pub(crate) fn place(state: &mut State, stages: &[Arc<plugin::Stage>]) -> Result<()> {
    let (elsewhere, host) = state.elsewhere_mut();
    match elsewhere.and_then(|there| there.as_any_mut().downcast_mut::<DeviceState>()) {
        None if stages.is_empty() => return Ok(()),
        Some(device) if device.is_on(stages) => return device.begin_pass(host),
        _ => {}
    }
    state.move_to(None)?;
    if stages.is_empty() {
        return Ok(());
    }
    let mut device = DeviceState::new(stages, state.layout().layer_len())?;
    device.begin_pass(state.elsewhere_mut().1)?;
    state.move_to(Some(Box::new(device)))
}

/// The parts of a state on the stages that it was [placed](place) on.
pub(crate) fn parts_mut(state: &mut State) -> &mut [plugin::State] {
    let device = state.elsewhere_mut().0;
    let device = device.and_then(|there| there.as_any_mut().downcast_mut::<DeviceState>());
    device.map_or(&mut [], |device| &mut device.parts)
}

/// The parts of a state on devices, if what they hold is this state.
pub(crate) fn parts(state: &State) -> &[plugin::State] {
    of(state).map_or(&[], DeviceState::newest)
}

/// The first stage on a device that a state was [placed](place) on, also while its part has yet to be written.
pub(crate) fn home(state: &State) -> Option<&Arc<plugin::Stage>> {
    of(state)?.parts.first().map(plugin::State::stage)
}

fn of(state: &State) -> Option<&DeviceState> {
    state.elsewhere()?.as_any().downcast_ref()
}

impl DeviceState {
    /// Parts on these stages, of which nothing is written yet.
    fn new(stages: &[Arc<plugin::Stage>], layer_len: usize) -> Result<Self> {
        let parts = stages.iter().map(plugin::State::new);
        Ok(DeviceState {
            parts: parts.collect::<Result<_>>()?,
            layer_len,
            host_is_newer: true,
            whole: OnceLock::new(),
        })
    }

    /// Whether the parts are those of exactly these stages.
    fn is_on(&self, stages: &[Arc<plugin::Stage>]) -> bool {
        let mut pairs = self.parts.iter().zip(stages);
        self.parts.len() == stages.len()
            && pairs.all(|(part, stage)| Arc::ptr_eq(part.stage(), stage))
    }

    /// Writes what is newer on the host, and forgets what will be out of date.
    fn begin_pass(&mut self, host: &[f32]) -> Result<()> {
        if self.host_is_newer {
            for part in &mut self.parts {
                let numbers = numbers_of(part, self.layer_len);
                if !numbers.is_empty() {
                    part.write(&host[numbers])?;
                }
            }
        }
        self.host_is_newer = false;
        self.whole.take();
        Ok(())
    }

    /// None while the host's numbers are newer.
    fn newest(&self) -> &[plugin::State] {
        match self.host_is_newer {
            true => &[],
            false => &self.parts,
        }
    }
}

impl Elsewhere for DeviceState {
    fn numbers<'a>(&'a self, host: &'a [f32]) -> Result<&'a [f32]> {
        if self.host_is_newer {
            return Ok(host);
        }
        if let Some(whole) = self.whole.get() {
            return Ok(whole);
        }
        let mut whole = copied(host, "a state")?;
        for part in &self.parts {
            let numbers = numbers_of(part, self.layer_len);
            if !numbers.is_empty() {
                part.read(&mut whole[numbers])?;
            }
        }
        Ok(self.whole.get_or_init(|| whole))
    }

    fn host_is_newer(&mut self) {
        self.host_is_newer = true;
        self.whole.take();
    }

    fn try_clone(&self) -> Option<Box<dyn Elsewhere>> {
        if self.host_is_newer {
            return None;
        }
        let clone = |part: &plugin::State| {
            let mut copy = plugin::State::new(part.stage()).ok()?;
            copy.copy_from(part).ok()?;
            Some(copy)
        };
        Some(Box::new(DeviceState {
            parts: self.parts.iter().map(clone).collect::<Option<_>>()?,
            layer_len: self.layer_len,
            host_is_newer: false,
            whole: OnceLock::new(),
        }))
    }

    /// Copies from device to device where both are on the same stages.
    fn copy_from(&mut self, other: &dyn Elsewhere) -> bool {
        let Some(other) = other.as_any().downcast_ref::<DeviceState>() else {
            return false;
        };
        let mut pairs = self.parts.iter().zip(&other.parts);
        let same = self.parts.len() == other.parts.len()
            && pairs.all(|(to, from)| Arc::ptr_eq(to.stage(), from.stage()));
        if !same || other.host_is_newer {
            return false;
        }
        let mut pairs = self.parts.iter_mut().zip(&other.parts);
        if pairs.any(|(to, from)| to.copy_from(from).is_err()) {
            return false;
        }
        self.host_is_newer = false;
        self.whole.take();
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// Where a part's numbers are among those of all layers.
fn numbers_of(part: &plugin::State, layer_len: usize) -> Range<usize> {
    let layers = part.stage().layers();
    layers.start * layer_len..layers.end * layer_len
}
