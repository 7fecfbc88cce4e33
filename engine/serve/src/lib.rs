//! An HTTP server for RWKV models on small machines.

pub mod constrain;
mod job;
mod logprobs;
mod metrics;
mod scheduler;
pub mod store;
mod worker;

pub use job::{Chosen, Ending, Event, Job, Owner, Prompt, Remains, Start};
pub use metrics::Counters;
pub use worker::{SessionInfo, Work, Worker, WorkerOptions};
