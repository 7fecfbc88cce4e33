//! An HTTP server for RWKV models on small machines.

pub mod constrain;
pub mod http;
mod job;
pub mod metrics;
mod worker;

pub use job::{Chosen, Ending, Event, Job, Kept, Owner, Prompt, Start};
pub use worker::{Limits, SessionInfo, Work, Worker};
