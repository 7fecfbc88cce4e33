//! An HTTP server for RWKV models on small machines.

pub mod constrain;
pub mod http;
mod job;
mod logprobs;
pub mod metrics;
mod scheduler;
mod session_errors;
pub mod store;
mod worker;

pub use job::{Chosen, Ending, Event, Job, Owner, Prompt, Remains, Start};
pub use scheduler::Turn;
pub use worker::{SessionInfo, Work, Worker, WorkerOptions};
