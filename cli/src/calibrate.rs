//! `rwkv-edge quantize --calibrate`: quantising by what a text does to the model.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{bail, Context, Result};

use crate::args::ModelArgs;
use crate::input::Input;
use crate::{model, note, numbers};

/// Bytes of a text that are read for each token that is wanted: few vocabularies have longer tokens, and of these a text
/// is not made.
const BYTES_OF_TOKEN: u64 = 64;
/// Fewer say little of a model.
const FEW_TOKENS: usize = 1000;

/// The text to calibrate with.
#[derive(clap::Args)]
pub(crate) struct CalibrateArgs {
    /// Round weights so that their errors cancel on this text (--quant q4, q5 or q6); - is stdin
    ///
    /// A few thousand tokens like those that the model will read, and others than those that it is judged by. Predictions
    /// are about a tenth closer to those of the unrounded model; the file is as large and as fast. Takes as long as reading
    /// the text a few times.
    #[arg(
        long,
        value_name = "FILE",
        requires = "model",
        conflicts_with = "max_memory"
    )]
    calibrate: Option<PathBuf>,

    /// Use so many tokens of --calibrate at most
    #[arg(
        long, value_name = "N", default_value_t = 4096, requires = "calibrate",
        value_parser = numbers::whole::<u32>(1..=1 << 20),
    )]
    calibrate_tokens: u32,
}

impl CalibrateArgs {
    /// Whether the text is stdin.
    pub(crate) fn reads_stdin(&self) -> bool {
        self.calibrate
            .as_ref()
            .is_some_and(|file| file.as_os_str() == "-")
    }

    /// The tokens, where there is a text.
    pub(crate) fn tokens(&self, args: &ModelArgs) -> Result<Option<Vec<u32>>> {
        let Some(file) = &self.calibrate else {
            return Ok(None);
        };
        // Before a model is looked for, which may take minutes.
        let mut input = Input::open(file)?;
        args.lora.checked()?;
        let tokenizer = model::open_tokenizer(args)?;
        let n_max = self.calibrate_tokens as usize;
        let mut text = Vec::new();
        let bytes = (n_max as u64).saturating_mul(BYTES_OF_TOKEN);
        let read = input.reader().take(bytes).read_to_end(&mut text);
        read.with_context(|| format!("{}: cannot read", input.name()))?;
        let mut tokens = tokenizer.encode_bytes(&text)?;
        tokens.truncate(n_max);
        match tokens.len() {
            0 => bail!("{}: no tokens, expected some thousands", input.name()),
            n if n < FEW_TOKENS.min(n_max) => {
                note!(
                    "{}: {n} tokens to calibrate with, some thousands would say more",
                    input.name()
                );
            }
            _ => {}
        }
        Ok(Some(tokens))
    }
}
