//! `/set`: how answers are drawn, by the names of the command's options.

use std::num::NonZeroUsize;

use anyhow::{anyhow, bail, Context, Result};
use clap::ValueEnum;
use rwkv_edge::{Model, SamplerOptions};
use rwkv_edge_chat::Conversation;

use crate::args::some_tokens;
use crate::numbers::not_negative;
use crate::sampling::Preset;

/// From here on.
pub(crate) fn set(conversation: &mut Conversation, name: &str, value: &str) -> Result<()> {
    match name {
        "seed" => conversation.set_seed(number(name, value)?),
        "max-new-tokens" => conversation.set_max_new_tokens(number(name, value)?),
        "think" => {
            let think = value.parse();
            conversation.set_think(think.map_err(|e| anyhow!("{name} {value}: {e}"))?)?;
        }
        _ => {
            let model = conversation.session().model();
            let sampling = changed(conversation.sampling().clone(), model, name, value)?;
            conversation.set_sampling(sampling)?;
        }
    }
    Ok(())
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
    let parsed = value.parse().ok();
    parsed.with_context(|| format!("{name} {value}: not such a number"))
}

/// What the sampler itself looks at is not looked at here.
fn changed(
    mut sampling: SamplerOptions,
    model: &Model,
    name: &str,
    value: &str,
) -> Result<SamplerOptions> {
    match name {
        "preset" => {
            let preset = Preset::from_str(value, false).map_err(|_| {
                anyhow!("preset {value}: expected pip, chat, creative, precise or maths")
            })?;
            // Seed and bans are of no preset.
            let old = sampling;
            sampling = preset.options().seed(old.seed);
            sampling.banned_tokens = old.banned_tokens;
            sampling.uncounted_tokens = preset.uncounted_tokens(model)?;
        }
        "temperature" => {
            let number = not_negative(value);
            sampling.temperature = number.map_err(|e| anyhow!("{name} {value}: {e}"))?;
        }
        "temperature-last" => {
            let is_last = value.parse().ok();
            sampling.temperature_last =
                is_last.with_context(|| format!("{name} {value}: expected true or false"))?;
        }
        "top-p" => sampling.top_p = number(name, value)?,
        "top-k" => sampling.top_k = NonZeroUsize::new(number(name, value)?),
        "min-p" => sampling.min_p = number(name, value)?,
        "typical-p" => sampling.typical_p = number(name, value)?,
        "mirostat-tau" => sampling = sampling.mirostat_tau(number(name, value)?),
        "mirostat-eta" => sampling.mirostat_eta = number(name, value)?,
        "presence-penalty" => sampling.presence_penalty = number(name, value)?,
        "frequency-penalty" => sampling.frequency_penalty = number(name, value)?,
        "penalty-decay" => sampling.penalty_decay = number(name, value)?,
        "repetition-penalty" => sampling.repetition_penalty = number(name, value)?,
        "ban-token" if value == "none" => sampling.banned_tokens.clear(),
        "ban-token" => {
            let tokens = some_tokens(value);
            let tokens = tokens.map_err(|e| anyhow!("{name} {value}: {e}, or none"))?;
            sampling.banned_tokens = tokens.0;
        }
        _ => bail!(
            "no setting {name}, expected temperature, preset, temperature-last, top-p, top-k, min-p, \
             typical-p, mirostat-tau, mirostat-eta, presence-penalty, frequency-penalty, penalty-decay, \
             repetition-penalty, ban-token, seed, max-new-tokens or think"
        ),
    }
    Ok(sampling)
}
