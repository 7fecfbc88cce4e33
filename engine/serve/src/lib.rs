//! An HTTP server for RWKV models on small machines.

pub mod constrain;
mod job;
mod worker;

pub use job::{Chosen, Ending, Event, Job, Kept, Owner, Prompt, Start};
pub use worker::{Limits, SessionInfo, Work, Worker};
