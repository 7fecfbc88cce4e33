//! A model as a list of stages, on the CPU and on devices of plugins, and the rows that pass between them.
//!
//! Input: a plan and a source of weights. Output: a [`Pipeline`], which feeds batches of spans through its
//! stages. Neighbouring stages of one plugin are a chain, which the plugin runs in one call and within which
//! it moves the rows itself; everywhere else they pass through the host's memory.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use super::upload::Upload;
use crate::devices::plan::{Plan, PlannedStage, Target, MIXED_ROWS_MAX};
use crate::devices::plugin::{self, BatchScratch, Input, SpanInput, StageOptions};
use crate::devices::{device_state, not_finite};
use crate::error::{Error, Result};
use crate::math::exp::argmax;
use crate::math::threads::Pool;
use crate::math::{reserve, resized};
use crate::networks::batch::{Cutter, Segment, Span};
use crate::networks::config::{Config, Sizes};
use crate::networks::source::RowsSource;
use crate::networks::state::StateLayout;
use crate::networks::table::StageRange;
use crate::networks::tensor_info::TensorInfo;
use crate::networks::{Buffers, Machine, Network, BUFFERS};
use crate::quant::Quant;

/// The whole network, stage after stage.
pub(crate) struct Pipeline {
    sizes: Sizes,
    links: Vec<Link>,
    /// All stages on devices, in order: what a state needs parts for.
    placed: Vec<Arc<plugin::Stage>>,
    /// Largest batch that its stages take.
    rows_max: usize,
}

enum Link {
    Cpu(Box<Network>),
    /// Stages of one plugin: these of `placed`.
    Chain(Range<usize>),
}

/// A model's weights, wherever they are.
pub(crate) struct Stages {
    /// One, or several that each have the whole model.
    pub(crate) pipelines: Vec<Pipeline>,
    /// As many as pipelines, the caller's own included.
    pub(crate) threads: Pool,
    /// Facts about each stage of a pipeline.
    pub(crate) facts: Vec<StageFacts>,
}

/// What is known of a stage after its weights are where they belong.
pub(crate) struct StageFacts {
    pub(crate) planned: PlannedStage,
    /// Of a stage on a device, whose weights are not here.
    pub(crate) tensors: Vec<TensorInfo>,
    /// Of a stage on a device: what its plugin said that it would take.
    pub(crate) estimate: plugin::Memory,
}

/// Memory of one caller's passes through one pipeline.
pub(crate) struct Lane {
    /// What it was made for.
    sizes: Sizes,
    n_threads: usize,
    pub(crate) rows_max: usize,
    /// Where the CPU has a stage.
    pub(crate) buffers: Option<Buffers>,
    segments: Vec<Segment>,
    rows: Vec<usize>,
    /// Tokens of a batch side by side, as plugins want them.
    tokens: Vec<u32>,
    batch: BatchScratch,
    /// Logits whose largest is all that is asked for; grows with the first such call.
    logits: Vec<f32>,
}

/// What is asked of a pass, and where it goes: a row for each that the spans ask for.
pub(crate) enum Wanted<'a> {
    /// (rows, n_vocab)
    Logits(&'a mut [f32]),
    /// (rows, n_embd)
    Hidden(&'a mut [f32]),
    /// (rows) the tokens with the largest logits
    Tokens(&'a mut [u32]),
}

impl Wanted<'_> {
    /// Numbers of one row, and what they are called.
    pub(crate) fn width(&self, sizes: &Sizes) -> (usize, &'static str) {
        match self {
            Wanted::Logits(_) => (sizes.n_vocab, "logits"),
            Wanted::Hidden(_) => (sizes.n_embd, "hidden values"),
            Wanted::Tokens(_) => (1, "tokens"),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Wanted::Logits(out) | Wanted::Hidden(out) => out.len(),
            Wanted::Tokens(out) => out.len(),
        }
    }
}

impl<'a> Wanted<'a> {
    /// The first `n_rows` rows, and the others.
    pub(crate) fn split(self, n_rows: usize, sizes: &Sizes) -> (Self, Self) {
        let at = n_rows * self.width(sizes).0;
        match self {
            Wanted::Logits(out) => {
                let (first, rest) = out.split_at_mut(at);
                (Wanted::Logits(first), Wanted::Logits(rest))
            }
            Wanted::Hidden(out) => {
                let (first, rest) = out.split_at_mut(at);
                (Wanted::Hidden(first), Wanted::Hidden(rest))
            }
            Wanted::Tokens(out) => {
                let (first, rest) = out.split_at_mut(at);
                (Wanted::Tokens(first), Wanted::Tokens(rest))
            }
        }
    }
}

impl StageOptions {
    pub(crate) fn new(
        config: &Config,
        part: &StageRange,
        quant: Quant,
        device: u32,
        rows_max: usize,
    ) -> Self {
        let (sizes, architecture) = (&config.sizes, config.sizes.architecture);
        let numbers = architecture.numbers.iter();
        StageOptions {
            device,
            architecture: architecture.name,
            quant,
            sizes: sizes.named().map(|(name, n)| (name, n as u64)).collect(),
            numbers: numbers
                .map(|&(name, get)| (name, f64::from(get(config))))
                .collect(),
            layers: part.layers.clone(),
            has_embedding: part.has_embedding,
            has_head: part.has_head,
            rows_max,
            row_width: architecture.row_width(sizes),
            state_len: part.layers.len() * StateLayout::of_sizes(sizes).layer_len(),
        }
    }
}

impl Stages {
    /// Takes all weights from `source`, in the order in which a token needs them, and brings them where
    /// the plan wants them: tensor by tensor, and to devices in pieces of tensors.
    pub(crate) fn build(
        source: &mut impl RowsSource,
        config: &Config,
        plan: &Plan,
    ) -> Result<Self> {
        let mut facts = Vec::with_capacity(plan.stages.len());
        let n_pipelines = 1 + plan.replicas.len();
        let threads = start_threads(n_pipelines)?;
        let rows_max = plan.rows_max.unwrap_or(usize::MAX);
        let mut pipelines: Vec<Pipeline> = (0..n_pipelines)
            .map(|_| Pipeline::new(config.sizes, rows_max))
            .collect();
        for planned in &plan.stages {
            source.set_quant(planned.quant)?;
            let Target::Device(..) = planned.target else {
                let network = Network::build(source, config, &planned.part)?;
                pipelines[0].links.push(Link::Cpu(Box::new(network)));
                facts.push(StageFacts {
                    planned: planned.clone(),
                    tensors: Vec::new(),
                    estimate: plugin::Memory::default(),
                });
                continue;
            };
            let rows_max = plan.rows_max.unwrap_or(MIXED_ROWS_MAX);
            let targets = std::iter::once(&planned.target).chain(&plan.replicas);
            let mut upload = Upload::new(source, targets, planned, (config, rows_max))?;
            // The network that this gives is all placeholders.
            Network::build(&mut upload, config, &planned.part)?;
            let (stages, fact) = upload.finish(planned)?;
            for (pipeline, stage) in pipelines.iter_mut().zip(stages) {
                pipeline.push_device(stage);
            }
            facts.push(fact);
        }
        Ok(Stages {
            pipelines,
            threads,
            facts,
        })
    }

    /// The one network of a model that the CPU runs as a whole.
    pub(crate) fn of_network(network: Network, quant: Quant) -> Self {
        let planned = PlannedStage {
            target: Target::Cpu,
            quant,
            part: network.part(),
        };
        let mut pipeline = Pipeline::new(network.config.sizes, usize::MAX);
        pipeline.links.push(Link::Cpu(Box::new(network)));
        Stages {
            pipelines: vec![pipeline],
            threads: Pool::new(1),
            facts: vec![StageFacts {
                planned,
                tensors: Vec::new(),
                estimate: plugin::Memory::default(),
            }],
        }
    }

    /// The networks that the CPU runs.
    pub(crate) fn networks(&self) -> impl Iterator<Item = &Network> {
        let links = self.pipelines.iter().flat_map(|pipeline| &pipeline.links);
        links.filter_map(|link| match link {
            Link::Cpu(network) => Some(&**network),
            Link::Chain(_) => None,
        })
    }

    /// All networks, of a model of which no part is on a device; `what` is what they are needed for.
    pub(crate) fn only_networks(&self, what: &str) -> Result<Vec<&Network>> {
        match self.pipelines[0].placed.first() {
            None => Ok(self.networks().collect()),
            Some(stage) => Err(Error::unsupported(format!(
                "weights on {} cannot be {what}: open the model with the device cpu",
                stage.place()
            ))),
        }
    }

    /// The network of a model that the CPU runs in one stage.
    pub(crate) fn one_network(&self) -> Result<&Network> {
        match self.only_networks("exchanged")?[..] {
            [network] => Ok(network),
            _ => Err(Error::unsupported(
                "matrices of a model of several stages cannot be exchanged",
            )),
        }
    }
}

impl Pipeline {
    fn new(sizes: Sizes, rows_max: usize) -> Self {
        Pipeline {
            sizes,
            links: Vec::new(),
            placed: Vec::new(),
            rows_max,
        }
    }

    fn push_device(&mut self, stage: plugin::Stage) {
        let at = self.placed.len();
        match self.links.last_mut() {
            Some(Link::Chain(chain)) if same_plugin(&self.placed[at - 1], &stage) => {
                chain.end = at + 1;
            }
            _ => self.links.push(Link::Chain(at..at + 1)),
        }
        self.placed.push(Arc::new(stage));
    }

    /// Stages on devices, in order.
    pub(crate) fn placed(&self) -> &[Arc<plugin::Stage>] {
        &self.placed
    }

    /// Rows of its largest batch.
    pub(crate) fn rows_max(&self) -> usize {
        self.rows_max
    }

    /// Whether the head is on a device.
    pub(crate) fn ends_on_device(&self) -> bool {
        matches!(self.links.last(), Some(Link::Chain(_)))
    }

    fn has_network(&self) -> bool {
        self.links.iter().any(|link| matches!(link, Link::Cpu(_)))
    }

    /// Memory for batches of at most `rows_max` rows.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(crate) fn lane(
        &self,
        rows_max: usize,
        n_threads: usize,
        no_sparsity: bool,
    ) -> Result<Lane> {
        let rows_max = rows_max.clamp(1, self.rows_max);
        let room = if self.placed.is_empty() { 0 } else { rows_max };
        let buffers = || Buffers::new(&self.sizes, rows_max, n_threads, no_sparsity);
        Ok(Lane {
            sizes: self.sizes,
            n_threads,
            rows_max,
            segments: reserve(rows_max, BUFFERS)?,
            rows: reserve(rows_max, BUFFERS)?,
            tokens: reserve(room, BUFFERS)?,
            buffers: self.has_network().then(buffers).transpose()?,
            batch: BatchScratch::default(),
            logits: Vec::new(),
        })
    }

    /// Whether a lane has the memory for passes through this pipeline on so many threads: whoever mixes up
    /// the workspaces of two models must hear of it.
    pub(crate) fn fits(&self, lane: &Lane, n_threads: usize) -> bool {
        lane.sizes == self.sizes
            && lane.n_threads >= n_threads
            && lane.rows_max <= self.rows_max
            && lane.buffers.is_some() == self.has_network()
    }

    /// Feeds spans, cut into batches, and writes what is wanted of their rows in order. The lane fits. The
    /// spans' states are in a pass from here on, which the caller ends if everything went well.
    pub(crate) fn forward(
        &self,
        machine: Machine<'_>,
        lane: &mut Lane,
        spans: &mut [Span<'_>],
        wanted: Wanted<'_>,
    ) -> Result<()> {
        let fed = spans.iter_mut().filter(|span| !span.tokens.is_empty());
        fed.for_each(|span| span.state.begin_pass());
        let mut left = wanted;
        let mut cutter = Cutter::new();
        while cutter.next(spans, lane.rows_max, &mut lane.segments, &mut lane.rows) {
            let (now, rest) = left.split(lane.rows.len(), &self.sizes);
            left = rest;
            self.batch(machine, lane, spans, now)?;
            for segment in &lane.segments {
                spans[segment.span].state.advance(segment.n_rows);
            }
        }
        Ok(())
    }

    fn batch(
        &self,
        machine: Machine<'_>,
        lane: &mut Lane,
        spans: &mut [Span<'_>],
        wanted: Wanted<'_>,
    ) -> Result<()> {
        let (last, before) = match self.links.split_last() {
            Some(split) => split,
            None => return Ok(()),
        };
        let n_rows = lane.segments.iter().map(|segment| segment.n_rows).sum();
        for link in before {
            match (link, &mut lane.buffers) {
                (Link::Cpu(network), Some(buffers)) => {
                    network.forward(machine, buffers, &lane.segments, spans);
                    let rows = buffers.rows_mut(n_rows).0;
                    not_finite::check(rows, network, (&lane.segments, spans), machine)?;
                }
                (Link::Cpu(_), None) => {}
                (Link::Chain(chain), _) => self.chain(chain, lane, spans, None)?,
            }
        }
        match (last, &mut lane.buffers) {
            (Link::Cpu(network), Some(buffers)) => {
                network.forward(machine, buffers, &lane.segments, spans);
                let rows = buffers.rows_mut(n_rows).0;
                let fed = (&lane.segments[..], &*spans);
                not_finite::check(rows, network, fed, machine)?;
                let given = output(
                    network,
                    machine,
                    buffers,
                    &lane.rows,
                    &mut lane.logits,
                    wanted,
                )?;
                not_finite::check(given, network, fed, machine)
            }
            (Link::Cpu(_), None) => Ok(()),
            (Link::Chain(chain), _) => self.chain(chain, lane, spans, Some(wanted)),
        }
    }

    /// Feeds a batch to neighbouring stages of one plugin. Without something wanted, which is that of the
    /// last link, they give the rows for the next one.
    fn chain(
        &self,
        chain: &Range<usize>,
        lane: &mut Lane,
        spans: &mut [Span<'_>],
        wanted: Option<Wanted<'_>>,
    ) -> Result<()> {
        let Lane {
            buffers,
            segments,
            rows,
            tokens,
            batch,
            ..
        } = lane;
        let has_embedding = chain.start == 0 && matches!(self.links.first(), Some(Link::Chain(_)));
        let n_rows = segments.iter().map(|segment| segment.n_rows).sum();
        tokens.clear();
        if has_embedding {
            for segment in &*segments {
                let fed = &spans[segment.span].tokens[segment.first_token..][..segment.n_rows];
                tokens.extend_from_slice(fed);
            }
        }
        let (residual, next): (&[f32], &mut [f32]) = match buffers {
            Some(buffers) => buffers.rows_mut(n_rows),
            None => (&[], &mut []),
        };
        let input = match has_embedding {
            true => Input::Tokens(tokens),
            false => Input::Rows(residual),
        };
        let passes_on = wanted.is_none();
        let output = match wanted {
            None => plugin::Output::Rows(next),
            Some(_) if rows.is_empty() => plugin::Output::Nothing,
            Some(Wanted::Logits(out)) => plugin::Output::Logits(out),
            Some(Wanted::Hidden(out)) => plugin::Output::Hidden(out),
            Some(Wanted::Tokens(out)) => plugin::Output::Tokens(out),
        };
        let first_span = segments.first().map_or(0, |segment| segment.span);
        let mut of_spans = segments.iter().peekable();
        let inputs = spans.iter_mut().enumerate().skip(first_span);
        let inputs = inputs.map_while(|(index, span)| {
            of_spans.peek()?;
            let segment = of_spans.next_if(|segment| segment.span == index);
            Some(segment.map(|segment| SpanInput {
                states: &mut device_state::parts_mut(span.state)[chain.clone()],
                n_rows: segment.n_rows,
                rows: segment.output,
            }))
        });
        let stages = &self.placed[chain.clone()];
        plugin::forward(stages, batch, inputs.flatten(), input, output)?;
        if let (true, Some(buffers)) = (passes_on, buffers) {
            buffers.swap_rows();
        }
        Ok(())
    }
}

/// What is wanted of rows of the CPU's last pass; gives the numbers that it was made of.
///
/// # Errors
/// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
fn output<'a>(
    network: &Network,
    machine: Machine<'_>,
    buffers: &mut Buffers,
    rows: &[usize],
    logits: &'a mut Vec<f32>,
    wanted: Wanted<'a>,
) -> Result<&'a [f32]> {
    if network.head.is_none() || rows.is_empty() {
        return Ok(&[]);
    }
    Ok(match wanted {
        Wanted::Logits(out) => {
            network.logits(machine, buffers, rows, out);
            out
        }
        Wanted::Hidden(out) => {
            network.hidden(machine, buffers, rows, out);
            out
        }
        Wanted::Tokens(out) => {
            let n_vocab = network.config.sizes.n_vocab;
            resized(logits, rows.len() * n_vocab, 0.0, "rows of logits")?;
            network.logits(machine, buffers, rows, logits);
            for (token, row) in out.iter_mut().zip(logits.chunks_exact(n_vocab)) {
                *token = argmax(row);
            }
            logits
        }
    })
}

/// Threads to feed all pipelines at the same time: refused now, and not in the middle of a pass.
fn start_threads(n_pipelines: usize) -> Result<Pool> {
    let threads = Pool::new(n_pipelines);
    match threads.n_threads() {
        n if n < n_pipelines => {
            let text = format!("the system gives {n} of {n_pipelines} threads, one a device");
            Err(Error::memory(text).at("data-parallel"))
        }
        _ => Ok(threads),
    }
}

fn same_plugin(a: &plugin::Stage, b: &plugin::Stage) -> bool {
    std::ptr::eq(a.plugin(), b.plugin())
}
