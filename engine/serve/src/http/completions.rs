//! `POST /v1/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use axum::Json;
use serde_json::{json, Value};

use super::answers::{finish_reason, Answers, Asker, Piece, Questions, Usage};
use super::backend::Served;
use super::error::{ApiError, Result};
use super::fields::COMPLETIONS;
use super::logprobs::Lists;
use super::request::{
    log_prompt, max_tokens, new_id, text_of, Asked, Envelope, Head, TOP_LOGPROBS_MAX,
};
use super::sse::{self, Chunks};
use super::{prompt, App};
use crate::job::{Prompt, Start};

const MAX_TOKENS_DEFAULT: usize = 16;

pub(super) async fn answer(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response> {
    let mut envelope = Envelope::read(&app, request, &COMPLETIONS).await?;
    let fields = &mut envelope.fields;
    let served = envelope.served;
    let asked = Asked::read(&app, fields, &served)?;
    let value = fields.take("prompt").unwrap_or_default();
    let prompts = prompt::inputs("prompt", value, &served, app.config.choices_max / asked.n)?;
    if prompts.len() > 1 && asked.session.is_some() {
        let text = format!(
            "prompt: {} of them, expected one in a session",
            prompts.len()
        );
        return Err(ApiError::bad(text).param("prompt"));
    }
    let top_logprobs = fields.whole("logprobs", 0, TOP_LOGPROBS_MAX)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let asked_tokens = fields.whole("max_tokens", 0, usize::MAX)?;
    let max_new_tokens = max_tokens(&app, "max_tokens", asked_tokens, MAX_TOKENS_DEFAULT)?;
    for prompt in &prompts {
        log_prompt(&app, &envelope.record, &served, prompt);
    }
    let echoes = match echo {
        true => echoed(&served, &prompts)?,
        false => vec![String::new(); prompts.len()],
    };
    let constraint = asked.constraint(&app, &served).await?;
    let begin = |prompt| begin(&served, prompt, asked.session.clone());
    let questions = Questions {
        prompts: prompts.into_iter().map(begin).collect(),
        max_new_tokens,
        stops: asked.stops.clone(),
        top_logprobs,
        prompt_logprobs: echo && top_logprobs.is_some(),
        constraint,
        reply: None,
        is_exact: true,
    };
    let asker = Asker {
        owner: envelope.owner,
        record: envelope.record,
        share: envelope.share,
    };
    let answers = Answers::start(&app, asker, served, &asked, questions).await?;
    let choices = echoes
        .iter()
        .flat_map(|echo| std::iter::repeat_n(echo, asked.n));
    let choices = choices.map(|echo| Choice {
        echo: echo.clone(),
        lists: top_logprobs.map(|_| Lists::default()),
        ..Choice::default()
    });
    let texts = Texts {
        head: Head::new(new_id("cmpl-"), &answers.served.name),
        choices: choices.collect(),
        include_usage: asked.include_usage,
    };
    match asked.stream {
        true => sse::respond(&app, answers, texts).await,
        false => texts.whole(answers).await,
    }
}

/// Where there is nothing to read, something stands for the beginning of a text.
fn begin(served: &Served, prompt: Prompt, session: Option<String>) -> (Start, Prompt) {
    let is_empty = match &prompt {
        Prompt::Text(text) => text.is_empty(),
        Prompt::Tokens(tokens) => tokens.is_empty(),
    };
    let first = is_empty.then(|| served.model().end_of_text());
    (prompt::start(first, session), prompt)
}

fn echoed(served: &Served, prompts: &[Prompt]) -> Result<Vec<String>> {
    let texts = prompts.iter().map(|prompt| match prompt {
        Prompt::Text(text) => Ok(text.clone()),
        Prompt::Tokens(tokens) => text_of(served, tokens),
    });
    texts.collect()
}

#[derive(Default)]
struct Choice {
    /// What stands in front of the answer.
    echo: String,
    text: String,
    lists: Option<Lists>,
    finish_reason: Option<&'static str>,
}

/// All answers, in one piece or as they come.
struct Texts {
    head: Head,
    choices: Vec<Choice>,
    include_usage: bool,
}

impl Texts {
    fn take(&mut self, piece: Piece, answers: &Answers) -> Result<()> {
        let choice = &mut self.choices[piece.index];
        choice.text += &std::mem::take(&mut choice.echo);
        choice.text += &piece.text;
        choice.finish_reason = finish_reason(piece.ending);
        if let Some(lists) = &mut choice.lists {
            let tokenizer = answers.served.model().tokenizer()?;
            if let Some(prompt) = &piece.prompt {
                lists.push_prompt(tokenizer, prompt)?;
            }
            lists.push(tokenizer, &piece.chosen)?;
        }
        Ok(())
    }

    /// What has come of a choice since the last time.
    fn choice(&mut self, index: usize) -> Value {
        let choice = &mut self.choices[index];
        json!({
            "index": index,
            "text": std::mem::take(&mut choice.text),
            "logprobs": choice.lists.as_mut().map(Lists::take),
            "finish_reason": choice.finish_reason,
        })
    }

    async fn whole(mut self, mut answers: Answers) -> Result<Response> {
        while let Some(piece) = answers.next().await? {
            self.take(piece, &answers)?;
        }
        let choices = (0..self.choices.len())
            .map(|index| self.choice(index))
            .collect();
        let mut response = self.head.json("text_completion", choices);
        response["usage"] = answers.usage.to_json();
        Ok(Json(response).into_response())
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        let mut chunk = self.head.json("text_completion", choices);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

impl Chunks for Texts {
    fn begin(&mut self, _: Usage) -> Vec<Value> {
        Vec::new()
    }

    fn piece(&mut self, piece: Piece, answers: &Answers) -> Result<Vec<Value>> {
        let index = piece.index;
        self.take(piece, answers)?;
        let choice = self.choice(index);
        Ok(vec![self.chunk(vec![choice])])
    }

    fn end(&mut self, usage: Usage) -> Vec<Value> {
        let mut chunk = self.chunk(Vec::new());
        chunk["usage"] = usage.to_json();
        Vec::from_iter(self.include_usage.then_some(chunk))
    }
}
