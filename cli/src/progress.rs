//! Progress bars on stderr, with the time left; none where stderr is no terminal, or with `--quiet`. And lines
//! that say what is going on.

use std::borrow::Cow;
use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rwkv_edge::printable;

use crate::{note, verbosity};

/// Called at every step of a work that tells how far it is.
static ON_STEP: OnceLock<fn()> = OnceLock::new();

/// From now on `look` is called at every step of every work that tells how far it is, shown or not, on the thread that
/// does the work; the first one counts. It may end the work by unwinding.
pub fn on_step(look: fn()) {
    let _ = ON_STEP.set(look);
}

/// Tells on stderr what was decided or goes on, in one line.
pub(crate) fn notice(text: fmt::Arguments<'_>) {
    note!("rwkv-edge: {text}");
}

/// A bar that appears when the work has lasted long enough to wonder about.
pub struct Progress {
    label: Cow<'static, str>,
    template: &'static str,
    visible_from: Instant,
    bar: Option<ProgressBar>,
}

const OF_WORK: &str = "{prefix} [{wide_bar}] {percent}% {eta} left";
#[cfg(feature = "hub")]
const OF_BYTES: &str =
    "{prefix} [{wide_bar}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left";

impl Progress {
    /// A bar that appears at once, with this in front of it.
    pub fn at_once(label: &'static str) -> Self {
        Self::new(label.into(), OF_WORK, Duration::ZERO)
    }

    /// A bar that appears when the work has lasted a second.
    pub fn after_a_second(label: &'static str) -> Self {
        Self::new(label.into(), OF_WORK, Duration::from_secs(1))
    }

    /// Of bytes that are transferred, with their speed; the label is the name of a file.
    #[cfg(feature = "hub")]
    pub(crate) fn of_bytes(label: String) -> Self {
        Self::new(label.into(), OF_BYTES, Duration::ZERO)
    }

    fn new(label: Cow<'static, str>, template: &'static str, wait: Duration) -> Self {
        Progress {
            label,
            template,
            visible_from: Instant::now() + wait,
            bar: None,
        }
    }

    /// A [`notice`] that does not tear the bar.
    #[cfg(feature = "hub")]
    pub(crate) fn notice(&self, text: fmt::Arguments<'_>) {
        match &self.bar {
            Some(bar) => bar.suspend(|| notice(text)),
            None => notice(text),
        }
    }

    /// So much is done of so much.
    pub fn show(&mut self, done: u64, total: u64) {
        if let Some(look) = ON_STEP.get() {
            look();
        }
        if verbosity::is_quiet() {
            return;
        }
        if self.bar.is_none() && Instant::now() >= self.visible_from {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template(self.template);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(printable(&self.label).into_owned());
            // Of a transfer that goes on from the middle only what is new counts for the speed.
            bar.set_position(done);
            bar.reset_eta();
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
