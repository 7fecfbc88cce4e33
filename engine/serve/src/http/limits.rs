//! How many requests of one owner are worked on at once, and how many wait.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ending;
use super::error::{ApiError, Result};
use crate::job::Owner;

/// When to ask again.
pub(super) const RETRY_AFTER_SECONDS: u64 = 2;

/// Places of all owners.
pub(super) struct Admission {
    running_max: usize,
    waiting_max: usize,
    owners: Mutex<HashMap<Owner, Arc<Places>>>,
}

struct Places {
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// One that waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    pub(super) fn new(running_max: usize, waiting_max: usize) -> Self {
        Admission {
            running_max: running_max.clamp(1, Semaphore::MAX_PERMITS),
            waiting_max,
            owners: Mutex::default(),
        }
    }

    /// A place for a request, which it has until the permit is dropped.
    ///
    /// # Errors
    ///
    /// 429 when as many wait as may.
    pub(super) async fn enter(&self, owner: &Owner) -> Result<OwnedSemaphorePermit> {
        let places = self.places(owner);
        if let Ok(permit) = places.running.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let n_waiting = places.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&places.waiting);
        if n_waiting >= self.waiting_max {
            let (running, waiting) = (self.running_max, self.waiting_max);
            let text =
                format!("{running} requests are worked on and {waiting} wait: ask again later");
            let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, text);
            return Err(error
                .code("rate_limit_exceeded")
                .retry_after(RETRY_AFTER_SECONDS));
        }
        let permit = places.running.clone().acquire_owned().await;
        permit.map_err(|_| ending::error())
    }

    fn places(&self, owner: &Owner) -> Arc<Places> {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        let places = owners.entry(owner.clone()).or_insert_with(|| {
            Arc::new(Places {
                running: Arc::new(Semaphore::new(self.running_max)),
                waiting: AtomicUsize::new(0),
            })
        });
        places.clone()
    }
}

/// Lets this process have as many files and sockets open as it may ask for.
pub(super) fn raise_open_files() {
    #[cfg(unix)]
    {
        use rustix::process::{getrlimit, setrlimit, Resource};
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        // Where the system refuses, the limit stays.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}
