//! Texts in the making, all of them moved by one forward pass a step.

use std::vec::IntoIter;

use engine::{Error, ErrorKind, Output, Result, Sampler, Span, State, StopTexts, TextStream};
use rwkv_edge_chat::{first_word, Reply};
use rwkv_edge_scoring::{likeliest_n, log_sum_exp, rows_that_fit};

use crate::passes::Buffers;
use crate::sampling::Wish;
use crate::texts::check_ids;

/// What is gone on from.
pub(crate) struct Prompt {
    pub(crate) tokens: Vec<u32>,
    /// What takes the text behind it apart, where that is an answer in a conversation.
    pub(crate) reply: Option<Reply>,
}

impl From<Vec<u32>> for Prompt {
    fn from(tokens: Vec<u32>) -> Self {
        Prompt {
            tokens,
            reply: None,
        }
    }
}

/// Prompts that wait, texts under way, and those that have ended.
pub(crate) struct Lanes<'m> {
    model: &'m engine::Model,
    sampler: engine::SamplerOptions,
    ending: engine::GenerateOptions,
    /// How many alternatives are told of each token, if its probability is.
    logprobs: Option<usize>,
    /// Whether each prompt is behind a state of the caller's.
    has_given_states: bool,
    /// Of each prompt, where they do not count on from the sampler's.
    seeds: Option<Vec<u64>>,
    waiting: std::iter::Enumerate<IntoIter<Prompt>>,
    active: Vec<Lane<'m>>,
    /// In the order of the prompts.
    outcomes: Vec<Outcome>,
    lanes_max: usize,
    rows_max: usize,
    /// Whether nothing but the likeliest token of each row matters.
    is_greedy: bool,
    /// (rows, n_vocab) of a step, or more
    logits: Vec<f32>,
    /// (rows) of a step, or more
    likeliest: Vec<u32>,
}

/// What a pass gives for a text.
enum Next<'a> {
    /// The likeliest token.
    Token(u32),
    /// (n_vocab) logits to draw by
    Drawn(&'a mut [f32]),
}

/// What came of a prompt.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Without the end of text.
    pub(crate) tokens: Vec<u32>,
    /// One for each token, where they are asked for.
    pub(crate) logprobs: Vec<Logprobs>,
    /// Empty without a tokenizer.
    pub(crate) text: String,
    /// What the model thought before it answered.
    pub(crate) thought: String,
    /// Why there is no more of it; `None` as long as there will be.
    pub(crate) finish_reason: Option<&'static str>,
}

/// How likely a token was, and which were the likeliest in its place: in nats, before temperature, penalties and cuts.
#[derive(Clone)]
pub(crate) struct Logprobs {
    pub(crate) token: u32,
    pub(crate) logprob: f64,
    /// The likeliest first.
    pub(crate) top: Vec<(u32, f64)>,
}

/// A text under way.
struct Lane<'m> {
    number: usize,
    /// `None`: that of the caller.
    state: Option<State>,
    sampler: Sampler,
    text: Option<TextStream<'m>>,
    stops: StopTexts,
    reply: Option<Reply>,
    /// Whether anything but space was written.
    has_word: bool,
    /// Tokens that the state is to read: the prompt, then always the one that was drawn last.
    unread: Vec<u32>,
    n_read: usize,
}

impl<'m> Lanes<'m> {
    pub(crate) fn new(model: &'m engine::Model, prompts: Vec<Prompt>, wish: &Wish) -> Result<Self> {
        for (number, prompt) in prompts.iter().enumerate() {
            if prompt.tokens.is_empty() {
                let which = match prompts.len() {
                    1 => "the prompt".to_owned(),
                    _ => format!("prompt {number}"),
                };
                let text = format!("{which} is empty, expected at least one token");
                return Err(Error::new(ErrorKind::Argument, text));
            }
        }
        let tokens = prompts.iter().map(|prompt| &prompt.tokens[..]);
        check_ids(model, "prompt", tokens)?;
        let rows_max = model.prefill_rows();
        // With its logits, and what a sampler has for each token of the vocabulary.
        let lane_bytes = model.info().state_bytes + 20 * model.n_vocab();
        let mut lanes = Lanes {
            model,
            sampler: wish.sampler.clone(),
            ending: wish.ending.clone(),
            logprobs: wish.logprobs,
            has_given_states: wish.states.is_some(),
            seeds: wish.seeds.clone(),
            outcomes: prompts.iter().map(|_| Outcome::default()).collect(),
            waiting: prompts.into_iter().enumerate(),
            active: Vec::new(),
            lanes_max: rows_that_fit(model, lane_bytes, rows_max),
            rows_max,
            is_greedy: is_greedy(&wish.sampler) && wish.logprobs.is_none(),
            logits: Vec::new(),
            likeliest: Vec::new(),
        };
        // Options that make no sense are told here, and not by the first step.
        lanes.begin_lanes()?;
        Ok(lanes)
    }

    /// What came of the prompts so far, in their order.
    pub(crate) fn outcomes(&mut self) -> &mut [Outcome] {
        &mut self.outcomes
    }

    /// One forward pass over what is to be read, and a token for each text whose turn it is. False when there is
    /// nothing more to do. `given` are the caller's states, if the prompts are behind such.
    pub(crate) fn step(&mut self, buffers: &mut Buffers, given: &mut [&mut State]) -> Result<bool> {
        self.begin_lanes()?;
        let begins_answer = |lane: &Lane| lane.reply.is_some() && !lane.has_word;
        let likeliest = self.is_greedy && !self.active.iter().any(begins_answer);
        // Those of the lanes are in the order of the prompts, and so are the lanes.
        let mut given = given.iter_mut().enumerate();
        let (mut spans, mut room) = (Vec::new(), self.rows_max);
        // Tokens that a lane reads in this pass, and whether it then draws one.
        let mut plan = Vec::with_capacity(self.active.len());
        for lane in &mut self.active {
            let n = (lane.unread.len() - lane.n_read).min(room);
            let is_last = n > 0 && lane.n_read + n == lane.unread.len();
            let draws = is_last && self.outcomes[lane.number].finish_reason.is_none();
            plan.push((n, draws));
            room -= n;
            if n == 0 {
                continue;
            }
            let output = match draws {
                true => Output::Last,
                false => Output::None,
            };
            let state = match &mut lane.state {
                Some(state) => Some(state),
                None => given
                    .find(|(number, _)| *number == lane.number)
                    .map(|(_, state)| &mut **state),
            };
            let state =
                state.ok_or_else(|| Error::new(ErrorKind::State, "no state to go on from"))?;
            let tokens = &lane.unread[lane.n_read..lane.n_read + n];
            spans.push(Span::new(state, tokens, output));
        }
        if spans.is_empty() {
            return Ok(false);
        }
        let n_drawn = spans.iter().map(Span::n_logit_rows).sum();
        let workspace = buffers.of_rows(self.model, self.rows_max - room)?;
        let mut next: Box<dyn Iterator<Item = Next<'_>>> = match likeliest {
            // No logits leave the engine: 64 rows of 65,536 are 16 MB.
            true => {
                self.likeliest.resize(n_drawn, 0);
                let tokens = &mut self.likeliest[..n_drawn];
                self.model.forward_tokens(workspace, &mut spans, tokens)?;
                Box::new(tokens.iter().copied().map(Next::Token))
            }
            false => {
                let n_vocab = self.model.n_vocab();
                let rows = room_for(&mut self.logits, n_drawn * n_vocab)?;
                self.model.forward(workspace, &mut spans, rows)?;
                Box::new(rows.chunks_exact_mut(n_vocab).map(Next::Drawn))
            }
        };
        for (lane, (n, draws)) in self.active.iter_mut().zip(plan) {
            lane.n_read += n;
            if !draws {
                continue;
            }
            if let Some(next) = next.next() {
                let outcome = &mut self.outcomes[lane.number];
                lane.go_on(next, self.model, &self.ending, self.logprobs, outcome)?;
            }
        }
        drop(next);
        let outcomes = &self.outcomes;
        self.active.retain(|lane| {
            let is_read = lane.n_read == lane.unread.len();
            let has_ended = outcomes[lane.number].finish_reason.is_some();
            // Of the caller's state all tokens are to be read; nobody will see any other.
            !has_ended || lane.state.is_none() && !is_read
        });
        Ok(!self.active.is_empty() || self.waiting.len() > 0)
    }

    /// Takes up prompts that wait, as far as there is room.
    fn begin_lanes(&mut self) -> Result<()> {
        while self.active.len() < self.lanes_max {
            let Some((number, prompt)) = self.waiting.next() else {
                break;
            };
            let outcome = &mut self.outcomes[number];
            if self.ending.max_new_tokens == 0 {
                outcome.finish_reason = Some("length");
                if !self.has_given_states {
                    continue;
                }
            }
            let mut options = self.sampler.clone();
            let seed = self.seeds.as_ref().and_then(|seeds| seeds.get(number));
            let counted = options.seed.wrapping_add(number as u64);
            options.seed = seed.copied().unwrap_or(counted);
            let text = match self.model.tokenizer() {
                Ok(tokenizer) => Some(TextStream::new(tokenizer)),
                Err(error) if self.model.has_tokenizer() || !self.ending.stop.is_empty() => {
                    return Err(error)
                }
                Err(_) => None,
            };
            self.active.push(Lane {
                number,
                state: match self.has_given_states {
                    true => None,
                    false => Some(self.model.try_new_state()?),
                },
                sampler: Sampler::new(options, self.model.n_vocab())?,
                text,
                stops: StopTexts::new(self.ending.stop.clone())?,
                reply: prompt.reply,
                has_word: false,
                unread: prompt.tokens,
                n_read: 0,
            });
        }
        Ok(())
    }
}

impl Lane<'_> {
    /// Draws a token, and says how likely it was where `logprobs` alternatives are asked for.
    fn draw(
        &mut self,
        logits: &mut [f32],
        model: &engine::Model,
        logprobs: Option<usize>,
    ) -> Result<(u32, Option<Logprobs>)> {
        // Before anything is left out of the row.
        let likely: Option<(f64, Vec<(u32, f64)>)> = logprobs.map(|n| {
            let sum = log_sum_exp(logits);
            let logprob = |token: u32| f64::from(logits[token as usize]) - sum;
            let top = likeliest_n(logits, n).into_iter();
            (sum, top.map(|token| (token, logprob(token))).collect())
        });
        let token = match self.reply.is_some() && !self.has_word {
            true => first_word(&mut self.sampler, logits, model)?,
            false => self.sampler.sample(logits),
        };
        let logprobs = likely.map(|(sum, top)| Logprobs {
            token,
            logprob: f64::from(logits[token as usize]) - sum,
            top,
        });
        Ok((token, logprobs))
    }

    /// Takes the next token, and sees whether the text ends: in the order in which [`engine::Session::generate`] does.
    fn go_on(
        &mut self,
        next: Next<'_>,
        model: &engine::Model,
        ending: &engine::GenerateOptions,
        logprobs: Option<usize>,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let (token, logprobs) = match next {
            Next::Token(token) => (token, None),
            Next::Drawn(logits) => self.draw(logits, model, logprobs)?,
        };
        if model.ends_text(token) && !ending.ignore_end_of_text {
            return self.end("end_of_text", outcome);
        }
        self.sampler.accept(token);
        outcome.tokens.push(token);
        outcome.logprobs.extend(logprobs);
        (self.n_read, self.unread) = (0, vec![token]);
        if let Some(text) = &mut self.text {
            let piece = text.push(token)?;
            self.has_word |= !piece.trim().is_empty();
            let piece = self.stops.push(piece);
            give(&mut self.reply, piece, outcome);
        }
        if self.stops.hit().is_some() || outcome.tokens.len() == ending.max_new_tokens {
            self.end("length", outcome)?;
        }
        Ok(())
    }

    /// Gives out what was held back; a stop text may end in it.
    fn end(&mut self, reason: &'static str, outcome: &mut Outcome) -> Result<()> {
        if let (Some(text), None) = (&mut self.text, self.stops.hit()) {
            let rest = self.stops.push(text.finish()?).to_owned();
            give(&mut self.reply, &rest, outcome);
            give(&mut self.reply, self.stops.flush(), outcome);
        }
        if let Some(reply) = &mut self.reply {
            let (thought, answer) = reply.finish();
            outcome.thought += &thought;
            outcome.text += &answer;
        }
        outcome.finish_reason = Some(match self.stops.hit() {
            Some(_) => "stop",
            None => reason,
        });
        Ok(())
    }
}

/// More of a text, or of a thought and an answer.
fn give(reply: &mut Option<Reply>, piece: &str, outcome: &mut Outcome) {
    match reply {
        None => outcome.text += piece,
        Some(reply) => {
            let (thought, answer) = reply.push(piece);
            outcome.thought += &thought;
            outcome.text += &answer;
        }
    }
}

/// Whether the likeliest token is taken each time, whatever came before.
fn is_greedy(options: &engine::SamplerOptions) -> bool {
    let penalties = [options.presence_penalty, options.frequency_penalty];
    let has_penalties = options.repetition_penalty != 1.0 || penalties.iter().any(|&p| p != 0.0);
    options.temperature <= 0.0 && !has_penalties && options.banned_tokens.is_empty()
}

/// So many numbers of a buffer, which grows where it has not as many.
fn room_for(buffer: &mut Vec<f32>, n: usize) -> Result<&mut [f32]> {
    let no_memory = |_| Error::new(ErrorKind::Memory, "not enough memory for rows of logits");
    let more = n.saturating_sub(buffer.len());
    buffer.try_reserve_exact(more).map_err(no_memory)?;
    buffer.resize(n.max(buffer.len()), 0.0);
    Ok(&mut buffer[..n])
}
