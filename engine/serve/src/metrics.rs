//! What Prometheus is told, in the text form that it reads.
//!
//! All names begin with `rwkv_edge_`. Handles are cheap to clone and to update from any thread.

use std::sync::Mutex;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{exponential_buckets, Histogram};
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    path: &'static str,
    status: u16,
}

type Counters = Family<ModelLabel, Counter>;
type Gauges = Family<ModelLabel, Gauge>;
type Histograms = Family<ModelLabel, Histogram, fn() -> Histogram>;

/// All metrics of a server.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    /// Open connections; the HTTP layer keeps it.
    pub connections: Gauge,
    tokens_read: Counters,
    tokens_reused: Counters,
    tokens_made: Counters,
    first_token_seconds: Histograms,
    between_tokens_seconds: Histograms,
    rows_per_step: Histograms,
    sequences_waiting: Gauges,
    sequences_running: Gauges,
    states_memory: Gauges,
    states_memory_bytes: Gauges,
    states_disk: Gauges,
    states_disk_bytes: Gauges,
}

/// Those of one model, with the label `model`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ModelMetrics {
    /// `tokens_read_total`: tokens of prompts that went through the model. The scheduler counts them; those of texts
    /// that are embedded the HTTP layer.
    pub tokens_read: Counter,
    /// `tokens_reused_total`: tokens of prompts that a kept state knew. The scheduler counts them.
    pub tokens_reused: Counter,
    /// `tokens_made_total`: tokens that were drawn. The scheduler counts them.
    pub tokens_made: Counter,
    /// `first_token_seconds`: from a request to its first token, waiting included. The HTTP layer observes it.
    pub first_token_seconds: Histogram,
    /// `between_tokens_seconds`: from one token of an answer to the next. The HTTP layer observes it.
    pub between_tokens_seconds: Histogram,
    /// `rows_per_step`: rows of a batch, a row a token. The scheduler observes it once a step.
    pub rows_per_step: Histogram,
    /// `sequences_waiting`: sequences that have no place yet. The scheduler sets it.
    pub sequences_waiting: Gauge,
    /// `sequences_running`: sequences whose prompts are read or whose answers are drawn. The scheduler sets it.
    pub sequences_running: Gauge,
    /// `states_memory`: states that are kept in memory. The store sets it.
    pub states_memory: Gauge,
    /// `states_memory_bytes`: bytes that they take. The store sets it.
    pub states_memory_bytes: Gauge,
    /// `states_disk`: states that are kept on disk. The store sets it.
    pub states_disk: Gauge,
    /// `states_disk_bytes`: bytes that they take. The store sets it.
    pub states_disk_bytes: Gauge,
}

/// From a millisecond to about half a minute, or a hundredth of it.
fn first_token_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

fn between_tokens_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 14))
}

fn rows_buckets() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 11))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let metrics = Metrics {
            registry: Mutex::new(Registry::with_prefix("rwkv_edge")),
            requests: Family::default(),
            connections: Gauge::default(),
            tokens_read: Family::default(),
            tokens_reused: Family::default(),
            tokens_made: Family::default(),
            first_token_seconds: Family::new_with_constructor(first_token_buckets),
            between_tokens_seconds: Family::new_with_constructor(between_tokens_buckets),
            rows_per_step: Family::new_with_constructor(rows_buckets),
            sequences_waiting: Family::default(),
            sequences_running: Family::default(),
            states_memory: Family::default(),
            states_memory_bytes: Family::default(),
            states_disk: Family::default(),
            states_disk_bytes: Family::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let Ok(mut registry) = self.registry.lock() else {
            return;
        };
        registry.register(
            "requests",
            "Requests that were answered",
            self.requests.clone(),
        );
        registry.register("connections", "Open connections", self.connections.clone());
        for (name, help, counters) in [
            (
                "tokens_read",
                "Tokens of prompts that the model read",
                &self.tokens_read,
            ),
            (
                "tokens_reused",
                "Tokens of prompts that a kept state knew",
                &self.tokens_reused,
            ),
            ("tokens_made", "Tokens that were drawn", &self.tokens_made),
        ] {
            registry.register(name, help, counters.clone());
        }
        for (name, help, histograms) in [
            (
                "first_token_seconds",
                "From a request to its first token",
                &self.first_token_seconds,
            ),
            (
                "between_tokens_seconds",
                "From one token to the next",
                &self.between_tokens_seconds,
            ),
            (
                "rows_per_step",
                "Rows of a batch, a row a token",
                &self.rows_per_step,
            ),
        ] {
            registry.register(name, help, histograms.clone());
        }
        for (name, help, gauges) in [
            (
                "sequences_waiting",
                "Sequences that have no place yet",
                &self.sequences_waiting,
            ),
            (
                "sequences_running",
                "Sequences that are read or drawn",
                &self.sequences_running,
            ),
            (
                "states_memory",
                "States that are kept in memory",
                &self.states_memory,
            ),
            (
                "states_memory_bytes",
                "Bytes of states in memory",
                &self.states_memory_bytes,
            ),
            (
                "states_disk",
                "States that are kept on disk",
                &self.states_disk,
            ),
            (
                "states_disk_bytes",
                "Bytes of states on disk",
                &self.states_disk_bytes,
            ),
        ] {
            registry.register(name, help, gauges.clone());
        }
    }

    /// The handles of one model, which are at zero at first; the same ones for the same name.
    pub fn model(&self, name: &str) -> ModelMetrics {
        let label = ModelLabel {
            model: name.to_owned(),
        };
        ModelMetrics {
            tokens_read: self.tokens_read.get_or_create_owned(&label),
            tokens_reused: self.tokens_reused.get_or_create_owned(&label),
            tokens_made: self.tokens_made.get_or_create_owned(&label),
            first_token_seconds: self.first_token_seconds.get_or_create_owned(&label),
            between_tokens_seconds: self.between_tokens_seconds.get_or_create_owned(&label),
            rows_per_step: self.rows_per_step.get_or_create_owned(&label),
            sequences_waiting: self.sequences_waiting.get_or_create_owned(&label),
            sequences_running: self.sequences_running.get_or_create_owned(&label),
            states_memory: self.states_memory.get_or_create_owned(&label),
            states_memory_bytes: self.states_memory_bytes.get_or_create_owned(&label),
            states_disk: self.states_disk.get_or_create_owned(&label),
            states_disk_bytes: self.states_disk_bytes.get_or_create_owned(&label),
        }
    }

    /// A request to a path of the server, by its pattern, was answered.
    pub(crate) fn answered(&self, path: &'static str, status: u16) {
        let labels = RequestLabels { path, status };
        self.requests.get_or_create(&labels).inc();
    }

    /// All of them in Prometheus' text form.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Ok(registry) = self.registry.lock() {
            // Writing to a string does not fail.
            let _ = encode(&mut text, &registry);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_begin_with_the_programs() {
        let metrics = Metrics::new();
        let model = metrics.model("demo");
        model.tokens_read.inc_by(7);
        model.sequences_running.set(2);
        model.first_token_seconds.observe(0.01);
        metrics.answered("/health", 200);
        let text = metrics.text();
        for line in [
            "rwkv_edge_tokens_read_total{model=\"demo\"} 7",
            "rwkv_edge_sequences_running{model=\"demo\"} 2",
            "rwkv_edge_first_token_seconds_count{model=\"demo\"} 1",
            "rwkv_edge_requests_total{path=\"/health\",status=\"200\"} 1",
            "rwkv_edge_states_disk_bytes{model=\"demo\"} 0",
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
    }
}
