//! Options that several subcommands take.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::ValueEnum;

use crate::byte_size::ByteSize;
use crate::devices::DeviceArgs;
use crate::environment;
use crate::lora::LoraArgs;
use crate::numbers::{whole, THREADS_MAX};

/// Which model, and how to run it.
#[derive(clap::Args, Clone)]
pub(crate) struct ModelArgs {
    /// Directory, file or hub name
    ///
    /// A Hugging Face directory, a .pth, .safetensors, .gguf or rwkv.cpp .bin file, a file made by `quantize`,
    /// or the name of a model on the Hugging Face hub, such as RWKV/rwkv-4-169m-pile. Without it, a small
    /// demo model that is part of the program.
    #[arg(short, long, value_name = "MODEL", env = environment::MODEL, hide_env_values = true)]
    pub(crate) model: Option<PathBuf>,

    /// Tokenizer file, if not the model's own
    ///
    /// Without it, the one inside the model file or beside the checkpoint.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,

    /// f32, f16, int8, q6, q5 or q4 [default: as stored]
    ///
    /// What the weight matrices are turned into while loading; quantised GGUF and rwkv.cpp files become f16. A
    /// model file of integers can only stay as it is: f16 and f32 would make it no more exact, and are refused.
    #[arg(short, long, hide_possible_values = true)]
    pub(crate) quant: Option<Quant>,

    /// Threads; 0: one a core
    ///
    /// Threads that work on one model, at most 1024; 0, the default: one for each physical core.
    #[arg(
        short,
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        value_parser = whole::<usize>(0..=THREADS_MAX)
    )]
    #[arg(env = environment::THREADS, hide_env_values = true)]
    pub(crate) threads: usize,

    /// Read the model into memory instead of mapping its file
    #[arg(long)]
    pub(crate) no_mmap: bool,

    /// Copy weights into memory in huge pages
    ///
    /// Faster, but not shared with other processes. It is for a model file, or a directory of files, whose weights are
    /// used as they are stored, on the CPU; not for those that --quant converts while loading. With --no-mmap the files
    /// are not mapped to be copied, either.
    #[arg(long)]
    pub(crate) huge_pages: bool,

    /// Memory that this program may use, such as 96M
    ///
    /// In bytes, or with a unit: K, M, G and KiB, MiB, GiB are powers of 1024, KB, MB, GB of 1000. Of a model
    /// file that does not fit, as much as fits stays in memory, and the rest is read again for every token:
    /// the same text, slower. What does not even fit so is refused, with the size that would do.
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_memory: Option<ByteSize>,
    #[command(flatten)]
    pub(crate) lora: LoraArgs,
    #[command(flatten)]
    pub(crate) devices: DeviceArgs,
}

impl ModelArgs {
    /// The same for this program when it starts again, but for adapters, which are merged in a file that it is given.
    pub(crate) fn to_arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> =
            vec!["--threads".into(), self.threads.to_string().into()];
        let mut add = |name: &str, value: &OsStr| arguments.extend([name.into(), value.to_owned()]);
        if let Some(quant) = self.quant.and_then(|quant| quant.to_possible_value()) {
            add("--quant", quant.get_name().as_ref());
        }
        if let Some(path) = &self.model {
            add("--model", path.as_os_str());
        }
        if let Some(path) = &self.tokenizer {
            add("--tokenizer", path.as_os_str());
        }
        if let Some(ByteSize(bytes)) = self.max_memory {
            add("--max-memory", bytes.to_string().as_ref());
        }
        arguments.extend(self.devices.to_options().into_iter().map(Into::into));
        arguments.extend(self.no_mmap.then(|| "--no-mmap".into()));
        arguments.extend(self.huge_pages.then(|| "--huge-pages".into()));
        arguments
    }
}

/// What every sequence of a model begins with.
#[derive(clap::Args, Clone)]
pub(crate) struct InitialStateArgs {
    /// Begin with a tuned initial state
    ///
    /// A .pth or .safetensors file that holds nothing but blocks.N.att.time_state of each layer, as "state tuning" of
    /// RWKV-7 saves it. Whatever begins with the empty state begins with this one. A model that was merged with its
    /// state needs no such file.
    #[arg(long = "load-state", value_name = "FILE")]
    pub(crate) initial: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Quant {
    F32,
    F16,
    Int8,
    Q6,
    Q5,
    Q4,
}

impl From<Quant> for rwkv_edge::Quant {
    fn from(quant: Quant) -> Self {
        match quant {
            Quant::F32 => rwkv_edge::Quant::F32,
            Quant::F16 => rwkv_edge::Quant::F16,
            Quant::Int8 => rwkv_edge::Quant::Int8,
            Quant::Q6 => rwkv_edge::Quant::Q6,
            Quant::Q5 => rwkv_edge::Quant::Q5,
            Quant::Q4 => rwkv_edge::Quant::Q4,
        }
    }
}

/// What `--bos` puts in front of texts: the token that ends one, and so stands in front of the next in training.
pub(crate) const BEGIN_OF_TEXT: u32 = 0;

/// Token ids on the command line, at least one.
pub(crate) fn some_tokens(text: &str) -> Result<TokenList, String> {
    let list: TokenList = text.parse()?;
    match list.0.is_empty() {
        true => Err("expected at least one token id, such as 1,2,3".to_owned()),
        false => Ok(list),
    }
}

/// Token ids of a text, between commas, white space or both, however many of them there are.
pub(crate) fn token_ids(text: &str) -> Result<Vec<u32>, String> {
    let parts = text.split(|c: char| c == ',' || c.is_whitespace());
    parts
        .filter(|part| !part.is_empty())
        .map(token_id)
        .collect()
}

fn token_id(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| format!("`{text}` is not a token id"))
}

/// Token ids on the command line: separated by commas, spaces or both.
#[derive(Clone)]
pub(crate) struct TokenList(pub(crate) Vec<u32>);

impl std::str::FromStr for TokenList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut ids = Vec::new();
        for (at, part) in text.split(',').enumerate() {
            let before = ids.len();
            for id in part.split_whitespace() {
                ids.push(token_id(id)?);
            }
            // Something is missing beside a comma.
            if ids.len() == before && text.contains(',') {
                return Err(format!("no token id at place {} of the list", at + 1));
            }
        }
        Ok(TokenList(ids))
    }
}
