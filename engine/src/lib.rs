//! RWKV language models on small machines: int8 and f16 inference on the CPU, from files used in place.
//!
//! RWKV is a recurrent network of the quality of a transformer of its size. All it remembers is a
//! [`State`] of fixed size, for one token or a million: memory never grows, and keeping a conversation is
//! copying a few hundred kilobytes. This crate runs RWKV-4 models: Hugging Face directories, raw `.pth`
//! and `.safetensors` checkpoints, GGUF files of llama.cpp, `.bin` files of rwkv.cpp, and the model files it writes
//! itself.
//!
//! # Text from a model
//!
//! ```
//! use std::ops::ControlFlow;
//! use rwkv_edge::{GenerateOptions, Model, Options, Quant, Sampler, SamplerOptions};
//!
//! # fn main() -> rwkv_edge::Result<()> {
//! let options = Options::new().quant(Quant::Int8);
//! let model = Model::open("../cli/demo", &options)?;
//! let mut session = model.session();
//! session.eval(&model.tokenizer()?.encode("Ownership is")?)?;
//! let mut sampler = Sampler::new(SamplerOptions::new(), model.n_vocab())?;
//! session.generate(&mut sampler, &GenerateOptions::new(), |text| {
//!     print!("{text}");
//!     ControlFlow::Continue(())
//! })?;
//! # Ok(())
//! # }
//! ```
//!
//! # One token at a time
//!
//! [`Session::eval`] gives the logits of what follows; what to do with them is the caller's. A state can
//! be cloned at any point, and gone back to.
//!
//! ```
//! use rwkv_edge::{Model, Options, Sampler, SamplerOptions, TextStream};
//!
//! # fn main() -> rwkv_edge::Result<()> {
//! let model = Model::open("../cli/demo", &Options::new())?;
//! let options = SamplerOptions::new().temperature(0.7).top_p(0.9).seed(1);
//! let mut sampler = Sampler::new(options, model.n_vocab())?;
//! let mut stream = TextStream::new(model.tokenizer()?);
//! let mut session = model.session();
//! let mut logits = session.eval(&model.tokenizer()?.encode("A trait is")?)?;
//! for _ in 0..32 {
//!     let token = sampler.sample(logits);
//!     print!("{}", stream.push(token)?); // whole characters only
//!     logits = session.eval(&[token])?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Many sequences at once, each with its own state: [`Model::forward`]. From one form of checkpoint to
//! another: [`CheckpointSource`]. Cargo features: `tokenizer` (on by default) reads `tokenizer.json`; without
//! it only the vocabularies of RWKV World models are, and token ids. `threads` (on by default) lets several
//! threads work on one forward pass; without it the caller's own does it alone.
//!
//! # Options, reports and later versions
//!
//! Options are made by `new`, which is their [`Default`], and changed by methods that have the names of their fields; fields
//! can be read and assigned too. Where a number has a special case, such as no limit, the field is an [`Option`], in which
//! `None` is that case, and its method takes 0 for it. `quant` and `dtype` take a value or an `Option`.
//!
//! ```
//! use rwkv_edge::{Options, Quant};
//!
//! let options = Options::new().quant(Quant::F16).threads(2).memory_max(64 << 20);
//! let mut same = Options::default();
//! same.quant = Some(Quant::F16);
//! same.threads = std::num::NonZeroUsize::new(2);
//! same.memory_max = std::num::NonZeroU64::new(64 << 20);
//! assert_eq!(options, same);
//! ```
//!
//! Later versions add fields and variants without breaking programs: structs and enums with public ones are
//! `#[non_exhaustive]`, each of them. A `match` has a `_` for what this version does not know.

#[cfg(not(target_endian = "little"))]
compile_error!("weights are used as they lie in files, which are little-endian");

mod checkpoint;
mod convert;
mod devices;
mod error;
mod files;
mod math;
mod measure;
mod memory;
mod model;
mod networks;
mod products;
mod progress;
mod quant;
mod text;

pub use checkpoint::{ChatTemplate, Lora};
pub use convert::{CheckpointSource, ConvertOptions, Converted, FloatType};
pub use devices::names::{found_plugins, Device, DeviceMap, FoundPlugin, StageMap};
pub use devices::plugin::{DeviceInfo, DeviceLimits};
pub use error::{printable, Error, ErrorKind, Result};
pub use files::output::OutputFile;
pub use files::{ignore_file_size_signal, install_sigbus_handler};
pub use measure::synthetic::SyntheticSize;
pub use measure::yardstick::Yardstick;
pub use memory::budget::Reservation;
pub use model::info::{Info, StageInfo};
pub use model::outline::Outline;
pub use model::session::{Ending, GenerateOptions, Generated, Session};
pub use model::tokens::Tokens;
pub use model::{Model, Options, Sparsity, Workspace};
pub use networks::batch::{Output, Span};
pub use networks::known::model_types;
pub use networks::mix::Target;
pub use networks::state::State;
pub use networks::tensor_info::TensorInfo;
pub use progress::{Progress, ProgressUnit};
pub use quant::Quant;
pub use text::sampler::{Sampler, SamplerOptions};
pub use text::stream::{StopTexts, TextStream};
pub use text::token_stream::TokenStream;
pub use text::tokenizer::Tokenizer;

/// For the benchmarks and the C library of this repository; not part of the interface.
#[doc(hidden)]
pub mod internals {
    pub use crate::math::aligned::Aligned;
    #[cfg(feature = "gemm")]
    pub use crate::math::kernels::gemm::multiply_f32 as gemm_f32;
    pub use crate::math::kernels::{
        ActivationBounds, KernelSet, PackedRows, Rows, WkvChannels, PANEL_WIDTH,
    };
    pub use crate::math::threads::THREAD_NAME;
}
