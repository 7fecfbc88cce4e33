//! A model and the threads that run it.

use rwkv_edge::{Error, ErrorKind, Model, Result};

use crate::job::{Job, Owner};

/// What a worker may use.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Sequences that run at once; more wait.
    pub n_sequences: usize,
}

/// What is known of a session.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Its name.
    pub name: String,
    /// Tokens that its state has read.
    pub n_tokens: u64,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When it was used last, in seconds since 1970.
    pub used: u64,
}

/// Runs a model: one thread of its own makes batches of all jobs.
pub struct Worker {
    name: String,
    model: Model,
}

/// Something else that needs the model, in steps between those of the jobs, such as texts to be embedded.
pub trait Work: Send {
    /// Does one step, of at most about as much as a batch; whether it has ended. A step that panics ends it.
    fn step(&mut self, model: &Model) -> bool;
}

impl Worker {
    /// Gives a job to the model. It begins when there is room; until then events say nothing.
    pub fn submit(&self, _job: Job) {}

    /// Gives the model other work.
    pub fn work(&self, _work: Box<dyn Work>) {}

    /// What clients call the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The sessions of an owner, by name.
    pub fn sessions(&self, _owner: &Owner) -> Vec<SessionInfo> {
        Vec::new()
    }

    /// Copies a session under another name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](rwkv_edge::ErrorKind::Argument) when there is none of the first name, or one of the second.
    pub fn fork_session(&self, _owner: &Owner, from: &str, _to: &str) -> Result<SessionInfo> {
        Err(Error::new(
            ErrorKind::Argument,
            format!("no session \"{from}\""),
        ))
    }

    /// Forgets a session; whether there was one.
    ///
    /// # Errors
    ///
    /// When its file cannot be removed.
    pub fn delete_session(&self, _owner: &Owner, _name: &str) -> Result<bool> {
        Ok(false)
    }

    /// A session's state as bytes that any machine with the same model can go on from; `None` without such a session.
    ///
    /// # Errors
    ///
    /// When the state cannot be read.
    pub fn export_session(&self, _owner: &Owner, _name: &str) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// Makes a session of such bytes, or replaces it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::State`](rwkv_edge::ErrorKind::State) when they are damaged, of another model, or not finite.
    pub fn import_session(
        &self,
        _owner: &Owner,
        _name: &str,
        _bytes: &[u8],
    ) -> Result<SessionInfo> {
        Err(Error::new(ErrorKind::Argument, "not yet"))
    }
}
