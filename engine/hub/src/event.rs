//! What goes on while the hub is asked: told to whoever asks, by one callback.

#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use crate::address::without_secrets;
use crate::secrets::Secrets;

/// What goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// One line for people about what was decided, such as that the cache is used since the hub does not
    /// answer. May come between two steps of a work.
    Note(&'a str),
    /// A work goes on, or begins: one at a time, and each is ended by an [`Event::End`].
    #[non_exhaustive]
    Progress {
        /// What is done.
        work: Work<'a>,
        /// Bytes so far. A download that goes on from an earlier one does not begin with 0, and one that
        /// has to start over goes back.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The work is over, whether it was done or failed.
    End,
}

/// Something that takes its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Work<'a> {
    /// A file of this name comes from the hub.
    Download(&'a str),
    /// Files of a folder are read to see which of them the hub has already.
    Hash,
    /// Large files go to the hub.
    Upload,
}

/// Whoever is told.
#[derive(Clone)]
pub(crate) struct Observer(Arc<dyn Fn(Event<'_>) + Send + Sync>);

impl Observer {
    pub(crate) fn new(observer: impl Fn(Event<'_>) + Send + Sync + 'static) -> Self {
        Observer(Arc::new(observer))
    }

    /// Tells nothing that is secret: a note may repeat what a server has said.
    pub(crate) fn without(self, secrets: Secrets) -> Self {
        Self::new(move |event| match event {
            Event::Note(text) => (self.0)(Event::Note(&secrets.hide(text))),
            Event::Progress {
                work: Work::Download(name),
                done,
                total,
            } => {
                let work = Work::Download(&secrets.hide(name));
                (self.0)(Event::Progress { work, done, total });
            }
            event => (self.0)(event),
        })
    }

    pub(crate) fn note(&self, text: fmt::Arguments<'_>) {
        (self.0)(Event::Note(&without_secrets(&text.to_string())));
    }

    pub(crate) fn begin<'a>(&'a self, work: Work<'a>) -> Progress<'a> {
        Progress {
            observer: self,
            work,
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

impl Default for Observer {
    fn default() -> Self {
        Self::new(|_| ())
    }
}

/// A work that goes on until this is dropped.
pub(crate) struct Progress<'a> {
    observer: &'a Observer,
    work: Work<'a>,
}

impl Progress<'_> {
    pub(crate) fn show(&self, done: u64, total: u64) {
        let work = self.work;
        (self.observer.0)(Event::Progress { work, done, total });
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        (self.observer.0)(Event::End);
    }
}
