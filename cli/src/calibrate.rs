//! `rwkv-edge quantize --calibrate`: quantising by what a text does to the model.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{bail, Context, Result};
use rwkv_edge::Tokenizer;

use crate::args::ModelArgs;
use crate::input::Input;
use crate::{model, numbers};

/// Bytes of a text that are read for each token that is wanted: in tables and in languages that the vocabulary is not made
/// for, a token is shorter, never so much longer.
const BYTES_OF_TOKEN: u64 = 64;

/// The text to calibrate with.
#[derive(clap::Args)]
pub(crate) struct CalibrateArgs {
    /// Round weights so that their errors cancel on this text; - is stdin
    ///
    /// A few thousand tokens of what the model will read. Formats of 4 to 6 bits err a fifth to a third less, and the file is as
    /// large and as fast. Takes as long as reading the text several times.
    #[arg(long, value_name = "FILE", requires = "model")]
    calibrate: Option<PathBuf>,

    /// Use so many tokens of --calibrate at most
    #[arg(
        long, value_name = "N", default_value_t = 4096, requires = "calibrate",
        value_parser = numbers::whole::<u32>(1..=1 << 20),
    )]
    calibrate_tokens: u32,
}

impl CalibrateArgs {
    /// The tokens, where there is a text.
    pub(crate) fn tokens(&self, args: &ModelArgs) -> Result<Option<Vec<u32>>> {
        let Some(file) = &self.calibrate else {
            return Ok(None);
        };
        let tokenizer = model::open_tokenizer_of(args)?;
        let mut input = Input::open(file)?;
        let n_max = self.calibrate_tokens as usize;
        let tokens = first_tokens(&mut input, &tokenizer, n_max)
            .with_context(|| format!("{}: cannot read", file.display()))?;
        if tokens.is_empty() {
            bail!("{}: no tokens, expected some thousands", file.display());
        }
        Ok(Some(tokens))
    }
}

fn first_tokens(input: &mut Input, tokenizer: &Tokenizer, n_max: usize) -> Result<Vec<u32>> {
    let mut text = Vec::new();
    let bytes = (n_max as u64).saturating_mul(BYTES_OF_TOKEN);
    input.reader().take(bytes).read_to_end(&mut text)?;
    let mut tokens = tokenizer.encode_bytes(&text)?;
    tokens.truncate(n_max);
    Ok(tokens)
}
