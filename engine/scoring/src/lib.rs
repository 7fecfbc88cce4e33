//! Many texts through RWKV models at once.
//!
//! [`feed`] takes any number of sequences, each from the empty state on, through one or several models side by
//! side, in batches that are full whether the sequences are short or long, and shows what the models predicted.
//! [`measure`] judges it: perplexity, and how far a model is from another one. An [`Embedder`] turns texts
//! into vectors. Memory does not depend on the length of the texts, and a model with a memory limit is given
//! smaller batches.
//!
//! ```
//! use rwkv_edge::{Model, Options};
//! use rwkv_edge_scoring::{measure, Windows};
//!
//! # fn main() -> rwkv_edge::Result<()> {
//! let model = Model::open("../../cli/demo", &Options::default())?;
//! let tokens = model.tokenizer()?.encode("Ownership is what makes a program safe.")?;
//! let measured = measure(&[model][..], Windows::WHOLE.sequences(&tokens), |_n_fed| ())?;
//! assert!(measured.outcomes[0].likelihood.perplexity() > 1.0);
//! # Ok(())
//! # }
//! ```
//!
//! Conventions are those of docs/EVALUATION.md and docs/EMBEDDINGS.md of the repository. Nothing is printed;
//! errors are those of the engine.

#![forbid(unsafe_code)]

mod divergence;
mod embed;
mod feed;
mod likelihood;
mod measure;

use rwkv_edge::{Error, ErrorKind, Info, Model};

pub use divergence::{kl_divergence, Divergence, Summary};
pub use embed::{Embedder, Pooling};
pub use feed::{feed, Fed, Models, Predictions, Sequence, Target};
pub use likelihood::{likeliest, likeliest_n, log_sum_exp, negative_log_likelihood, Likelihood};
pub use measure::{measure, Measured, Outcome, Windows};

/// Rows of `row_bytes` each, from 1 to `rows_max`, that a caller's buffers may have within the model's memory
/// limit: half of what is left is for them.
pub fn rows_that_fit(model: &Model, row_bytes: usize, rows_max: usize) -> usize {
    let Some(left) = model.memory_left() else {
        return rows_max;
    };
    let rows = left / 2 / row_bytes.max(1) as u64;
    usize::try_from(rows)
        .unwrap_or(rows_max)
        .clamp(1, rows_max.max(1))
}

fn not_enough_memory(what: &str) -> Error {
    Error::new(ErrorKind::Memory, format!("not enough memory for {what}"))
}

/// Whether a device of a plugin has a part of the model.
fn is_on_device(info: &Info) -> bool {
    info.stages.iter().any(|stage| stage.device != "cpu")
}
