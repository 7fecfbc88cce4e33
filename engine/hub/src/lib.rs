//! Models by their names on the Hugging Face hub: `RWKV/rwkv-4-169m-pile` becomes the path of a folder.
//!
//! Files are downloaded once into the cache that Python's `huggingface_hub` uses too, and found there
//! without a network. A file has its name only when it is complete and verified. Nothing here knows what is
//! in a model; what was downloaded, the engine opens by its path. Requests block, and any number of threads
//! and processes may make them.
//!
//! ```no_run
//! use std::path::Path;
//! use rwkv_edge_hub::{Event, Hub, ModelId};
//!
//! # fn main() -> rwkv_edge_hub::Result<()> {
//! let model = Path::new("RWKV/rwkv-4-169m-pile");
//! let path = match ModelId::of_missing(model) {
//!     // Nothing of this name is here, and it looks like one of the hub's.
//!     Some(id) => Hub::from_env()?.with_observer(|event| println!("{event:?}")).fetch(&id)?,
//!     None => model.to_owned(),
//! };
//! # Ok(())
//! # }
//! ```
//!
//! Only [`Settings::from_env`] reads environment variables, and nothing is printed: [`Hub::with_observer`]
//! takes whoever wants to know what goes on. The cargo feature `network` (on by default) is for what asks
//! the hub; without it names are understood, and that is all.

#![forbid(unsafe_code)]

mod address;
#[cfg(feature = "network")]
mod cache;
#[cfg(feature = "network")]
mod client;
#[cfg(feature = "network")]
mod download;
mod error;
#[cfg(feature = "network")]
mod event;
#[cfg(feature = "network")]
mod explain;
pub mod folders;
#[cfg(feature = "network")]
mod hub;
mod id;
#[cfg(feature = "network")]
mod lfs;
#[cfg(feature = "network")]
mod proxy;
#[cfg(feature = "network")]
mod push;
#[cfg(feature = "network")]
mod repository;
#[cfg(feature = "network")]
mod retry;
#[cfg(feature = "network")]
mod secrets;
#[cfg(feature = "network")]
mod settings;

pub use address::{without_secrets, Address};
#[cfg(feature = "network")]
pub use download::content_is_right;
pub use error::{Error, ErrorKind, Result};
#[cfg(feature = "network")]
pub use event::{Event, Work};
#[cfg(feature = "network")]
pub use hub::{Hub, RemoteTokenizer};
pub use id::{content_hash, ModelId};
#[cfg(feature = "network")]
pub use settings::{Settings, Token};
