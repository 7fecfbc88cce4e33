//! Conversations with RWKV models.
//!
//! A [`Template`] says how a conversation is written down for a model. A [`Conversation`] holds what was said
//! and the state behind it, gives answers as they come, and can go back: all that a model remembers is a state
//! of fixed size, so that keeping the states of earlier turns costs little. Conversations are
//! [saved](Conversation::save) as a state and a text, and a [`PromptCache`] keeps what a long system text
//! leaves.
//!
//! ```
//! use std::ops::ControlFlow;
//! use rwkv_edge::Model;
//! use rwkv_edge_chat::{Conversation, Options, Template};
//!
//! # fn main() -> rwkv_edge::Result<()> {
//! let model = Model::open("../../cli/demo", &rwkv_edge::Options::new())?;
//! let options = Options::new().max_new_tokens(16);
//! let mut conversation = Conversation::new(&model, Template::of(&model), "", options)?;
//! let answer = conversation.say("Ownership is", &mut |text| {
//!     print!("{text}");
//!     ControlFlow::Continue(())
//! })?;
//! assert!(answer.is_some_and(|answer| !answer.text.is_empty()));
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here touches a terminal or prints: [`Options::on_event`] is told what goes on. Errors are those of
//! the engine.

#![forbid(unsafe_code)]

mod conversation;
mod first_word;
mod messages;
mod options;
mod own;
mod prompt_cache;
mod said;
mod saved;
mod template;
mod think;
pub mod tools;

pub use conversation::{Conversation, Undone};
pub use first_word::first_word;
pub use messages::{Message, Reply, Role};
pub use options::{Event, Options};
pub use prompt_cache::PromptCache;
pub use said::{Answer, Ending, Transcript, Turn};
pub use saved::{text_path, Loaded, Saved};
pub use template::{Template, TURN_END};
pub use think::Think;
