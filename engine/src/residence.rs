//! Where the numbers of a state are when its model has layers on devices.
//!
//! The parts on devices are the truth for their layers, until the host has written newer numbers. What
//! the host wants to see is put together when it is asked for, and forgotten with the next pass: a token
//! costs no copy.

#![forbid(unsafe_code)]

use std::sync::{Arc, OnceLock};

use crate::error::Result;
use crate::plugin;

/// A state's parts on devices.
pub(crate) struct Residence {
    /// One a stage on a device, in order.
    parts: Vec<plugin::State>,
    /// The parts have yet to be written from the host's numbers.
    host_is_newer: bool,
    /// The numbers of all layers, since somebody asked.
    whole: OnceLock<Vec<f32>>,
}

impl Residence {
    /// Parts on these stages, of which nothing is written yet.
    pub(crate) fn new(stages: &[Arc<plugin::Stage>]) -> Result<Self> {
        let parts = stages.iter().map(plugin::State::new);
        Ok(Residence {
            parts: parts.collect::<Result<_>>()?,
            host_is_newer: true,
            whole: OnceLock::new(),
        })
    }

    /// Whether the parts are those of exactly these stages.
    pub(crate) fn is_on(&self, stages: &[Arc<plugin::Stage>]) -> bool {
        let mut pairs = self.parts.iter().zip(stages);
        self.parts.len() == stages.len()
            && pairs.all(|(part, stage)| Arc::ptr_eq(part.stage(), stage))
    }

    /// Writes what is newer on the host, and forgets what will be out of date.
    pub(crate) fn begin_pass(&mut self, data: &[f32], layer_len: usize) -> Result<()> {
        if self.host_is_newer {
            for part in &mut self.parts {
                let numbers = numbers_of(part, layer_len);
                if !numbers.is_empty() {
                    part.write(&data[numbers])?;
                }
            }
        }
        self.host_is_newer = false;
        self.whole.take();
        Ok(())
    }

    pub(crate) fn host_is_newer(&mut self) {
        self.host_is_newer = true;
        self.whole.take();
    }

    pub(crate) fn parts_mut(&mut self) -> &mut [plugin::State] {
        &mut self.parts
    }

    /// The stage of the first part, also while it has yet to be written.
    pub(crate) fn home(&self) -> Option<&Arc<plugin::Stage>> {
        self.parts.first().map(plugin::State::stage)
    }

    /// None while the host's numbers are newer.
    pub(crate) fn parts(&self) -> &[plugin::State] {
        match self.host_is_newer {
            true => &[],
            false => &self.parts,
        }
    }

    /// Writes the parts' numbers over those of their layers.
    pub(crate) fn fetch(&self, data: &mut [f32], layer_len: usize) -> Result<()> {
        for part in self.parts() {
            let numbers = numbers_of(part, layer_len);
            if !numbers.is_empty() {
                part.read(&mut data[numbers])?;
            }
        }
        Ok(())
    }

    /// The numbers of all layers; `data` has those that are on the host.
    pub(crate) fn numbers<'a>(&'a self, data: &'a [f32], layer_len: usize) -> Result<&'a [f32]> {
        if self.host_is_newer {
            return Ok(data);
        }
        if let Some(whole) = self.whole.get() {
            return Ok(whole);
        }
        let mut whole = data.to_vec();
        self.fetch(&mut whole, layer_len)?;
        Ok(self.whole.get_or_init(|| whole))
    }

    /// `None` where there is nothing worth copying on the devices, or no room.
    pub(crate) fn try_clone(&self) -> Option<Self> {
        if self.host_is_newer {
            return None;
        }
        let clone = |part: &plugin::State| {
            let mut copy = plugin::State::new(part.stage()).ok()?;
            copy.copy_from(part).ok()?;
            Some(copy)
        };
        Some(Residence {
            parts: self.parts.iter().map(clone).collect::<Option<_>>()?,
            host_is_newer: false,
            whole: OnceLock::new(),
        })
    }

    /// Copies from device to device where both are on the same stages; whether it did.
    pub(crate) fn copy_from(&mut self, other: &Residence) -> bool {
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
}

/// Where a part's numbers are among those of all layers.
fn numbers_of(part: &plugin::State, layer_len: usize) -> std::ops::Range<usize> {
    let layers = part.stage().layers();
    layers.start * layer_len..layers.end * layer_len
}
