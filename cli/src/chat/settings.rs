//! `/set`: how answers are drawn, by the names of the command's options.

use std::num::NonZeroUsize;

use anyhow::{anyhow, bail, Context, Result};
use rwkv_edge_chat::Conversation;

use crate::numbers::not_negative;

/// From here on.
pub(crate) fn set(conversation: &mut Conversation, name: &str, value: &str) -> Result<()> {
    fn parse<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
        let parsed = value.parse().ok();
        parsed.with_context(|| format!("{name} {value}: not such a number"))
    }
    let mut sampling = conversation.sampling().clone();
    match name {
        "temperature" => {
            let number = not_negative(value);
            sampling.temperature = number.map_err(|e| anyhow!("{name} {value}: {e}"))?;
        }
        "top-p" => sampling.top_p = parse(name, value)?,
        "top-k" => sampling.top_k = NonZeroUsize::new(parse(name, value)?),
        "presence-penalty" => sampling.presence_penalty = parse(name, value)?,
        "frequency-penalty" => sampling.frequency_penalty = parse(name, value)?,
        "repetition-penalty" => sampling.repetition_penalty = parse(name, value)?,
        "think" => {
            let think = value.parse();
            let think = think.map_err(|e| anyhow!("{name} {value}: {e}"))?;
            conversation.set_think(think)?;
            return Ok(());
        }
        "seed" => {
            conversation.set_seed(parse(name, value)?);
            return Ok(());
        }
        "max-new-tokens" => {
            conversation.set_max_new_tokens(parse(name, value)?);
            return Ok(());
        }
        _ => bail!(
            "no setting {name}, expected temperature, top-p, top-k, presence-penalty, \
             frequency-penalty, repetition-penalty, seed, max-new-tokens or think"
        ),
    }
    Ok(conversation.set_sampling(sampling)?)
}
