//! RWKV language models on small machines: int8 and f16 inference on the CPU, from files used in place.
//!
//! RWKV is a recurrent network of the quality of a transformer of its size. All it remembers is a
//! [`State`] of fixed size, for one token or a million: memory never grows, and keeping a conversation is
//! copying a few hundred kilobytes. This crate runs RWKV-4 models: Hugging Face directories, raw `.pth`
//! and `.safetensors` checkpoints, `.bin` files of rwkv.cpp, and the model files it writes itself.
//!
//! # Text from a model
//!
//! ```
//! use std::ops::ControlFlow;
//! use rwkv_edge::{GenerateOptions, Model, Options, Quant, Sampler, SamplerOptions};
//!
//! # fn main() -> rwkv_edge::Result<()> {
//! let options = Options { quant: Some(Quant::Int8), ..Options::default() };
//! let model = Model::open("../cli/demo", &options)?;
//! let mut session = model.session();
//! session.eval(&model.tokenizer()?.encode("Ownership is")?)?;
//! let mut sampler = Sampler::new(SamplerOptions::default(), model.n_vocab())?;
//! session.generate(&mut sampler, &GenerateOptions::default(), |text| {
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
//! let model = Model::open("../cli/demo", &Options::default())?;
//! let options = SamplerOptions { temperature: 0.7, top_p: 0.9, seed: 1, ..Default::default() };
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

#[cfg(not(target_endian = "little"))]
compile_error!("weights are used as they lie in files, which are little-endian");

mod aligned;
mod batch;
mod budget;
mod checkpoint;
mod convert;
mod decay;
mod device;
mod error;
mod file;
mod fit;
mod format;
mod info;
mod kernels;
mod limits;
mod load;
mod math;
mod matrix;
mod mix;
mod model;
mod outline;
mod output;
mod paging;
mod plan;
mod plugin;
mod product;
mod quant;
mod residence;
mod sampler;
mod session;
mod spread;
mod stage;
mod state;
mod synthetic;
mod text;
mod threads;
mod tokenizer;
mod v4;

pub use batch::{Output, Span};
pub use budget::Reservation;
pub use convert::{CheckpointSource, ConvertOptions, Converted, FloatType};
pub use device::{found_plugins, Device, DeviceMap, FoundPlugin, StageMap};
pub use error::{Error, ErrorKind, Result};
pub use info::{Info, StageInfo, TensorInfo};
pub use limits::Yardstick;
pub use matrix::Quant;
pub use model::{Model, Options, Workspace};
pub use outline::Outline;
pub use output::OutputFile;
pub use plugin::{DeviceInfo, DeviceLimits};
pub use sampler::{Sampler, SamplerOptions};
pub use session::{Ending, GenerateOptions, Generated, Session};
pub use state::State;
pub use synthetic::SyntheticSize;
pub use text::{StopTexts, TextStream};
pub use tokenizer::Tokenizer;

/// For the benchmarks of this repository; not part of the interface.
#[doc(hidden)]
pub mod internals {
    pub use crate::aligned::Aligned;
    #[cfg(feature = "gemm")]
    pub use crate::kernels::gemm::multiply_f32 as gemm_f32;
    pub use crate::kernels::{KernelSet, Rows, WkvChannels, PANEL_WIDTH};
}
