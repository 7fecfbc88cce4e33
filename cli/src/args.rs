//! Options that several subcommands take.

use std::path::PathBuf;

use clap::ValueEnum;

/// Which model, and how to run it.
#[derive(clap::Args, Clone)]
pub(crate) struct ModelArgs {
    /// Model: a Hugging Face directory, a .pth or .safetensors checkpoint, a file made by `quantize`, or the
    /// name of a model on the Hugging Face hub, such as RWKV/rwkv-4-169m-pile
    #[arg(short, long, value_name = "MODEL")]
    pub(crate) model: Option<PathBuf>,

    /// Tokenizer file, instead of the one in or beside the model
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,

    /// What to turn the weight matrices into while loading [default: as stored]
    #[arg(short, long)]
    pub(crate) quant: Option<Quant>,

    /// Threads to use; 0: one for each physical core
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub(crate) threads: usize,

    /// Read the model into memory instead of mapping its file
    #[arg(long)]
    pub(crate) no_mmap: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Quant {
    F32,
    F16,
    Int8,
}

impl From<Quant> for rwkv_edge::Quant {
    fn from(quant: Quant) -> Self {
        match quant {
            Quant::F32 => rwkv_edge::Quant::F32,
            Quant::F16 => rwkv_edge::Quant::F16,
            Quant::Int8 => rwkv_edge::Quant::Int8,
        }
    }
}

/// Token ids on the command line: separated by commas, spaces or both.
#[derive(Clone)]
pub(crate) struct TokenList(pub(crate) Vec<u32>);

impl std::str::FromStr for TokenList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text
            .split([',', ' ', '\t', '\n'])
            .filter(|part| !part.is_empty());
        let parse = |part: &str| {
            part.parse()
                .map_err(|_| format!("`{part}` is not a token id"))
        };
        parts.map(parse).collect::<Result<_, _>>().map(TokenList)
    }
}
