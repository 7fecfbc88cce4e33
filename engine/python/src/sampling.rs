//! How a text is to be generated, as keyword arguments say it.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::num::NonZeroUsize;

use engine::{GenerateOptions, SamplerOptions};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyString};

use rwkv_edge_cli::parts;

use crate::error::{Failed, Result};
use crate::keywords::{read, unexpected};
use crate::passes::Shared;
use crate::state::State;
use crate::texts::ids;

/// What `generate` and `stream` are told beside the prompt.
pub(crate) struct Wish {
    pub(crate) sampler: SamplerOptions,
    pub(crate) ending: GenerateOptions,
    /// How many alternatives are told of each token, if its probability is.
    pub(crate) logprobs: Option<usize>,
    /// Whether token 0 stands in front of the prompt.
    pub(crate) bos: bool,
    /// The states that are gone on from, and moved: one for each prompt.
    pub(crate) states: Option<Vec<Py<State>>>,
    /// A seed for each prompt, in place of those that count on from the sampler's.
    pub(crate) seeds: Option<Vec<u64>>,
}

impl Wish {
    /// Reads the keyword arguments of a function; None is the default of each.
    pub(crate) fn of(
        py: Python<'_>,
        shared: &Shared,
        function: &str,
        given: Option<&Bound<'_, PyDict>>,
        max_new_tokens: usize,
    ) -> Result<Self> {
        let preset = given.map(|given| given.get_item("preset")).transpose()?;
        let preset = preset.flatten().filter(|preset| !preset.is_none());
        let sampler = match preset {
            Some(name) => preset_of(py, shared, &read::<String>("preset", &name)?)?,
            None => SamplerOptions::new(),
        };
        let mut wish = Wish {
            sampler: sampler.seed(random_seed()),
            ending: GenerateOptions::new().max_new_tokens(max_new_tokens),
            logprobs: None,
            bos: false,
            states: None,
            seeds: None,
        };
        for (name, value) in given.into_iter().flatten() {
            let name: String = name.extract()?;
            if !wish.set(&name, &value)? {
                return Err(unexpected(function, &name));
            }
        }
        Ok(wish)
    }

    /// What is given for each prompt is given for all of them.
    pub(crate) fn check_numbers(&self, n_prompts: usize) -> Result<()> {
        let n_states = self.states.as_ref().map(Vec::len);
        let n_seeds = self.seeds.as_ref().map(Vec::len);
        for (name, number) in [("state", n_states), ("seed", n_seeds)] {
            let Some(n) = number.filter(|&n| n != n_prompts) else {
                continue;
            };
            return Err(Failed::argument(format!(
                "{name}: found {n}, expected one for each prompt ({n_prompts})"
            )));
        }
        Ok(())
    }

    /// Whether there is an argument of this name.
    fn set(&mut self, name: &str, value: &Bound<'_, PyAny>) -> Result<bool> {
        let sampler = &mut self.sampler;
        let float = match name {
            "temperature" => Some(&mut sampler.temperature),
            "top_p" => Some(&mut sampler.top_p),
            "min_p" => Some(&mut sampler.min_p),
            "typical_p" => Some(&mut sampler.typical_p),
            "mirostat_eta" => Some(&mut sampler.mirostat_eta),
            "presence_penalty" => Some(&mut sampler.presence_penalty),
            "frequency_penalty" => Some(&mut sampler.frequency_penalty),
            "penalty_decay" => Some(&mut sampler.penalty_decay),
            "repetition_penalty" => Some(&mut sampler.repetition_penalty),
            _ => None,
        };
        if let Some(field) = float {
            if !value.is_none() {
                *field = read(name, value)?;
            }
            return Ok(true);
        }
        match name {
            // It is the beginning of all others.
            "preset" => {}
            "logprobs" | "max_new_tokens" | "temperature_last" | "top_k" | "mirostat_tau"
            | "banned_tokens" | "uncounted_tokens" | "seed" | "ignore_eos" | "stop" | "bos"
            | "state"
                if value.is_none() => {}
            "max_new_tokens" => self.ending.max_new_tokens = read(name, value)?,
            "logprobs" if value.is_instance_of::<PyBool>() && !value.is_truthy()? => {}
            "logprobs" => self.logprobs = Some(read(name, value)?),
            "ignore_eos" => self.ending.ignore_end_of_text = read(name, value)?,
            "stop" => self.ending.stop = stop_texts(value)?,
            "temperature_last" => sampler.temperature_last = read(name, value)?,
            "top_k" => sampler.top_k = NonZeroUsize::new(read(name, value)?),
            "mirostat_tau" => {
                let tau: f32 = read(name, value)?;
                sampler.mirostat_tau = (tau != 0.0).then_some(tau);
            }
            "banned_tokens" => sampler.banned_tokens = ids(value)?,
            "uncounted_tokens" => sampler.uncounted_tokens = ids(value)?,
            "seed" if is_list(value)? => self.seeds = Some(read(name, value)?),
            "seed" => sampler.seed = read(name, value)?,
            "bos" => self.bos = read(name, value)?,
            "state" if is_list(value)? => self.states = Some(read(name, value)?),
            "state" => self.states = Some(vec![read(name, value)?]),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Whether an option has a value for each prompt.
fn is_list(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    value.hasattr("__len__")
}

/// Settings for a purpose, as the command has them.
fn preset_of(py: Python<'_>, shared: &Shared, name: &str) -> Result<SamplerOptions> {
    let Some(sampler) = parts::preset(name) else {
        let expected = parts::preset_names().join(", ");
        return Err(Failed::argument(format!(
            "preset: {name:?}, expected one of {expected}"
        )));
    };
    let uncounted = shared.work(py, |model, _| parts::uncounted_tokens(name, model))?;
    Ok(sampler.uncounted_tokens(uncounted))
}

/// One text, or several.
fn stop_texts(value: &Bound<'_, PyAny>) -> Result<Vec<String>> {
    match value.is_instance_of::<PyString>() {
        true => Ok(vec![read("stop", value)?]),
        false => read("stop", value),
    }
}

/// Differs from call to call: the standard library seeds its hash maps from the system's randomness.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
