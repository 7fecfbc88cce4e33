//! Answers as they come: the events of all jobs of a request, as pieces of its choices.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::stream::{self, select_all, SelectAll, Stream, StreamExt};
use rwkv_edge::{Error, ErrorKind};
use rwkv_edge_chat::{Reply, Template};
use serde_json::{json, Value};
use tokio::sync::{mpsc, OwnedSemaphorePermit};

use super::backend::Served;
use super::error::{ApiError, Result};
use super::json::BodyShare;
use super::log::Record;
use super::logprobs::{bytes, Positions};
use super::request::Asked;
use super::App;
use crate::constrain::Constraint;
use crate::job::{Chosen, Ending, Event, Job, Owner, Prompt, Remains, Start};
use crate::metrics::ModelMetrics;

/// How much was read and made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) n_prompt: usize,
    pub(super) n_cached: usize,
    pub(super) n_made: usize,
}

impl Usage {
    pub(super) fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.n_prompt,
            "completion_tokens": self.n_made,
            "total_tokens": self.n_prompt + self.n_made,
            "prompt_tokens_details": {"cached_tokens": self.n_cached},
        })
    }
}

/// What is asked of the model, for all prompts of a request.
pub(super) struct Questions {
    pub(super) prompts: Vec<(Start, Prompt)>,
    pub(super) max_new_tokens: usize,
    pub(super) stops: Vec<String>,
    pub(super) top_logprobs: Option<usize>,
    /// Tokens of prompts are told with their log-probabilities, and none of an answer is left out.
    pub(super) prompt_logprobs: bool,
    pub(super) constraint: Option<Constraint>,
    /// The form of the conversation, and what parts its answer from a thought.
    pub(super) reply: Option<(Template, Reply)>,
    /// Whether the space around an answer is part of it.
    pub(super) is_exact: bool,
}

/// Who asks.
pub(super) struct Asker {
    pub(super) owner: Owner,
    pub(super) record: Arc<Record>,
    /// Of the memory for bodies, until all jobs have begun.
    pub(super) share: BodyShare,
}

/// More of one choice.
#[derive(Debug, Default)]
pub(super) struct Piece {
    /// Which one, over all prompts.
    pub(super) index: usize,
    pub(super) thought: String,
    pub(super) text: String,
    /// The tokens of the text, where their log-probabilities are asked for.
    pub(super) chosen: Vec<Chosen>,
    /// Those of the prompt, in front of everything else.
    pub(super) prompt: Option<Vec<Chosen>>,
    /// With the last piece.
    pub(super) ending: Option<Ending>,
}

struct Choice {
    reply: Option<Reply>,
    /// Tokens that were drawn.
    n_made: usize,
    /// Where the text of all tokens ends.
    end: Positions,
    /// Bytes of the text that was given.
    n_given: usize,
    /// Tokens whose text has not been given, with the byte at which each begins.
    pending: VecDeque<(usize, Chosen)>,
    last_token: Option<Instant>,
    is_begun: bool,
}

type Events = Pin<Box<dyn Stream<Item = (usize, Option<Event>)> + Send>>;

/// The answers to a request. When they are dropped, nothing more of them is made.
pub(super) struct Answers {
    events: SelectAll<Events>,
    choices: Vec<Choice>,
    /// Tokens of each prompt, as far as they have come.
    prompts: Vec<Vec<Chosen>>,
    n: usize,
    n_open: usize,
    /// Jobs whose prompts are still to be read, and the memory that holds them.
    n_waiting: usize,
    share: BodyShare,
    ready: VecDeque<Piece>,
    pub(super) usage: Usage,
    prompt_logprobs: bool,
    has_logprobs: bool,
    pub(super) served: Served,
    record: Arc<Record>,
    metrics: ModelMetrics,
    _permit: OwnedSemaphorePermit,
}

impl Answers {
    /// Waits for a place and gives the jobs to the model.
    pub(super) async fn start(
        app: &App,
        asker: Asker,
        served: Served,
        asked: &Asked,
        questions: Questions,
    ) -> Result<Self> {
        let permit = app.admission.enter(&asker.owner).await?;
        let n_choices = questions.prompts.len() * asked.n;
        let choice = || Choice {
            reply: questions
                .reply
                .as_ref()
                .filter(|_| !questions.is_exact)
                .map(|(_, reply)| reply.clone()),
            n_made: 0,
            end: Positions::default(),
            n_given: 0,
            pending: VecDeque::new(),
            last_token: None,
            is_begun: false,
        };
        let choices = (0..n_choices).map(|_| choice()).collect();
        let n_open = questions.prompts.len();
        let mut events = Vec::new();
        for (i, (start, prompt)) in questions.prompts.into_iter().enumerate() {
            let (sender, receiver) = mpsc::unbounded_channel();
            events.push(of_job(i, receiver));
            served.backend.submit(Job {
                owner: asker.owner.clone(),
                start,
                prompt,
                sampling: asked.sampling.clone(),
                bias: asked.bias.clone(),
                n_choices: asked.n,
                max_new_tokens: Some(questions.max_new_tokens),
                stops: questions.stops.clone(),
                ignore_end_of_text: asked.ignore_eos,
                begins_with_word: questions.reply.is_some() && !questions.is_exact,
                top_logprobs: questions.top_logprobs,
                prompt_logprobs: questions.prompt_logprobs,
                constraint: questions.constraint.clone(),
                remains: questions
                    .reply
                    .clone()
                    .map(|(template, reply)| remains(template, reply)),
                events: sender,
            });
        }
        Ok(Answers {
            events: select_all(events),
            choices,
            prompts: vec![Vec::new(); n_open],
            n: asked.n,
            n_open,
            n_waiting: n_open,
            share: asker.share,
            ready: VecDeque::new(),
            usage: Usage::default(),
            prompt_logprobs: questions.prompt_logprobs,
            has_logprobs: questions.top_logprobs.is_some(),
            metrics: app.metrics.model(&served.name),
            served,
            record: asker.record,
            _permit: permit,
        })
    }

    pub(super) fn n_choices(&self) -> usize {
        self.choices.len()
    }

    /// Waits until reading begins, but not long, so that what is wrong with a job is an error and no stream that has
    /// begun well.
    pub(super) async fn begin(&mut self) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(1);
        let until = tokio::time::Instant::now() + PATIENCE;
        while self.n_waiting == self.prompts.len() {
            let Ok(event) = tokio::time::timeout_at(until, self.events.next()).await else {
                break;
            };
            if let Some(piece) = self.take(event)? {
                self.ready.push_back(piece);
            }
            if self.n_open == 0 {
                break;
            }
        }
        Ok(())
    }

    /// The next piece of any choice; `None` when all have ended.
    pub(super) async fn next(&mut self) -> Result<Option<Piece>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            if self.n_open == 0 {
                return Ok(None);
            }
            let event = self.events.next().await;
            if let Some(piece) = self.take(event)? {
                return Ok(Some(piece));
            }
        }
    }

    fn take(&mut self, event: Option<(usize, Option<Event>)>) -> Result<Option<Piece>> {
        let Some((job, Some(event))) = event else {
            return Err(ApiError::internal("the model does not answer any more"));
        };
        match event {
            Event::Began { n_prompt, n_cached } => {
                self.n_waiting = self.n_waiting.saturating_sub(1);
                if self.n_waiting == 0 {
                    self.share = None;
                }
                self.usage.n_prompt += n_prompt;
                self.usage.n_cached += n_cached;
                self.record.set_usage(self.usage);
            }
            Event::Prompt(chosen) => self.prompts[job].extend(chosen),
            Event::Token {
                choice,
                chosen,
                text,
            } => {
                self.usage.n_made += 1;
                self.record.set_usage(self.usage);
                return self.token(job, choice, chosen, &text);
            }
            Event::Ended {
                choice,
                text,
                ending,
                n_tokens,
            } => {
                let index = self.index(job, choice)?;
                self.usage.n_made += n_tokens.saturating_sub(self.choices[index].n_made);
                self.record.set_usage(self.usage);
                let piece = self.piece(job, choice, &text, Some(ending))?;
                return Ok(Some(piece));
            }
            Event::NotWritten(error) => self.record.set_warning(&error),
            Event::Done => self.n_open -= 1,
            Event::Failed(error) => return Err(error.into()),
        }
        Ok(None)
    }

    fn token(
        &mut self,
        job: usize,
        choice: usize,
        chosen: Chosen,
        text: &str,
    ) -> Result<Option<Piece>> {
        if let Some(time) = self.record.set_first_token() {
            self.metrics.first_token_seconds.observe(time.as_secs_f64());
        }
        let index = self.index(job, choice)?;
        self.choices[index].n_made += 1;
        let now = Instant::now();
        if let Some(last) = self.choices[index].last_token.replace(now) {
            let time = now.duration_since(last);
            self.metrics
                .between_tokens_seconds
                .observe(time.as_secs_f64());
        }
        if self.has_logprobs {
            let bytes = bytes(self.served.model().tokenizer()?, chosen.token)?;
            let one = &mut self.choices[index];
            one.pending.push_back((one.end.n_bytes, chosen));
            one.end.push(&bytes);
        }
        if text.is_empty() {
            return Ok(None);
        }
        let piece = self.piece(job, choice, text, None)?;
        let is_silent = piece.text.is_empty()
            && piece.thought.is_empty()
            && piece.chosen.is_empty()
            && piece.prompt.is_none();
        Ok((!is_silent).then_some(piece))
    }

    fn piece(
        &mut self,
        job: usize,
        choice: usize,
        text: &str,
        ending: Option<Ending>,
    ) -> Result<Piece> {
        let index = self.index(job, choice)?;
        let one = &mut self.choices[index];
        one.n_given += text.len();
        let is_whole = ending.is_some() && self.prompt_logprobs;
        let mut chosen = Vec::new();
        // Tokens that begin behind the text are those of the stop text, or the one that ended it.
        while one
            .pending
            .front()
            .is_some_and(|(at, _)| is_whole || *at < one.n_given)
        {
            chosen.extend(one.pending.pop_front().map(|(_, chosen)| chosen));
        }
        let (mut thought, mut text) = match &mut one.reply {
            Some(reply) => reply.push(text),
            None => (String::new(), text.to_owned()),
        };
        if let (Some(reply), true) = (&mut one.reply, ending.is_some()) {
            let rest = reply.finish();
            thought += &rest.0;
            text += &rest.1;
        }
        let is_first = !std::mem::replace(&mut one.is_begun, true);
        Ok(Piece {
            index,
            thought,
            text,
            chosen,
            prompt: (is_first && self.prompt_logprobs).then(|| self.prompts[job].clone()),
            ending,
        })
    }

    /// What failed behind the beginning of a stream is told in the log, too.
    pub(super) fn log(&self, error: &ApiError) {
        if let Some(detail) = error.detail() {
            self.record.set_failure(detail);
        }
    }

    fn index(&self, job: usize, choice: usize) -> Result<usize> {
        match choice < self.n {
            true => Ok(job * self.n + choice),
            false => Err(ApiError::internal("an answer that nobody asked for")),
        }
    }
}

/// Events of a job that wait for a client which takes its answer slowly.
const UNREAD_MAX: usize = 1 << 16;

/// The events of a job up to the last one; where that is missing, that there are no more. A job whose events pile up
/// fails instead.
fn of_job(job: usize, mut receiver: mpsc::UnboundedReceiver<Event>) -> Events {
    let mut is_over = false;
    Box::pin(stream::poll_fn(move |cx| {
        if is_over {
            return Poll::Ready(None);
        }
        if receiver.len() > UNREAD_MAX {
            is_over = true;
            let text = format!("the answer is taken too slowly: {UNREAD_MAX} pieces of it wait");
            let error = Error::new(ErrorKind::Argument, text);
            return Poll::Ready(Some((job, Some(Event::Failed(error)))));
        }
        receiver.poll_recv(cx).map(|event| {
            is_over = matches!(event, None | Some(Event::Done));
            Some((job, event))
        })
    }))
}

/// An answer as it stands in the history: without the thought, and with the end of its turn.
fn remains(template: Template, reply: Reply) -> Remains {
    Box::new(move |text| {
        let mut reply = reply.clone();
        let answer = reply.push(text).1 + &reply.finish().1;
        let remains = template.answer(&answer);
        (remains != text).then_some(remains)
    })
}

pub(super) fn finish_reason(ending: Option<Ending>) -> Option<&'static str> {
    ending.map(|ending| match ending {
        Ending::Stop | Ending::StopText(_) | Ending::Complete => "stop",
        Ending::Length => "length",
    })
}
