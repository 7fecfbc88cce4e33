//! Progress bars on stderr, with the time left; none where stderr is no terminal, or with `--quiet`.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::verbosity;

/// A bar that appears when the work has lasted long enough to wonder about.
pub(crate) struct Progress {
    label: &'static str,
    visible_from: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn at_once(label: &'static str) -> Self {
        let visible_from = Instant::now();
        Progress {
            label,
            visible_from,
            bar: None,
        }
    }

    pub(crate) fn after_a_second(label: &'static str) -> Self {
        let visible_from = Instant::now() + Duration::from_secs(1);
        Progress {
            label,
            visible_from,
            bar: None,
        }
    }

    pub(crate) fn show(&mut self, done: u64, total: u64) {
        if verbosity::is_quiet() {
            return;
        }
        if self.bar.is_none() && Instant::now() >= self.visible_from {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix} [{wide_bar}] {percent}% {eta} left");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(self.label);
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
