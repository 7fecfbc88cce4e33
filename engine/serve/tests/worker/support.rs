//! A worker on the demo model, and what jobs give.

use std::path::Path;

use rwkv_edge::{Model, Options, Quant, SamplerOptions};
use rwkv_edge_serve::store::DiskOptions;
use rwkv_edge_serve::{Chosen, Ending, Event, Job, Owner, Prompt, Start, Worker, WorkerOptions};
use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver};

pub fn model() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cli/demo");
    let options = Options::new().quant(Quant::Int8).threads(2);
    Model::open(path, &options).expect("the demo model opens")
}

pub fn worker_with(change: impl FnOnce(&mut WorkerOptions)) -> Worker {
    let mut options = WorkerOptions::default();
    change(&mut options);
    Worker::start(model(), &options).expect("it starts")
}

pub fn worker() -> Worker {
    worker_with(|_| {})
}

pub fn in_folder(folder: &Path) -> Worker {
    worker_with(|options| {
        options.disk = Some(DiskOptions {
            folder: folder.into(),
            n_bytes_max: 1 << 30,
        });
    })
}

/// What a job gave.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    pub n_prompt: usize,
    pub n_cached: usize,
    pub prompt: Vec<Chosen>,
    pub tokens: Vec<u32>,
    pub text: String,
    pub ending: Option<Ending>,
}

pub fn job(prompt: &str, change: impl FnOnce(&mut Job)) -> (Job, UnboundedReceiver<Event>) {
    let (events, receiver) = unbounded_channel();
    let mut job = Job {
        owner: Owner::new(""),
        start: Start::Token(0),
        prompt: Prompt::Text(prompt.into()),
        sampling: SamplerOptions::new(),
        bias: Vec::new(),
        n_choices: 1,
        max_new_tokens: Some(12),
        stops: Vec::new(),
        ignore_end_of_text: true,
        begins_with_word: false,
        top_logprobs: None,
        prompt_logprobs: false,
        constraint: None,
        remains: None,
        events,
    };
    change(&mut job);
    (job, receiver)
}

/// All answers of a job, by choice, or its error.
pub fn wait(mut events: UnboundedReceiver<Event>) -> Result<Vec<Answer>, String> {
    let mut answers = vec![Answer::default()];
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Began { n_prompt, n_cached } => {
                answers[0].n_prompt = n_prompt;
                answers[0].n_cached = n_cached;
            }
            Event::Prompt(more) => answers[0].prompt.extend(more),
            Event::Token {
                choice,
                chosen,
                text,
            } => {
                grow(&mut answers, choice);
                answers[choice].tokens.push(chosen.token);
                answers[choice].text += &text;
            }
            Event::Ended {
                choice,
                text,
                ending,
                n_tokens,
            } => {
                grow(&mut answers, choice);
                answers[choice].text += &text;
                answers[choice].ending = Some(ending);
                assert_eq!(answers[choice].tokens.len(), n_tokens);
            }
            Event::NotWritten(error) => panic!("{error}"),
            Event::Done => return Ok(answers),
            Event::Failed(error) => return Err(error.to_string()),
        }
    }
    Err("no last event".into())
}

fn grow(answers: &mut Vec<Answer>, choice: usize) {
    while answers.len() <= choice {
        answers.push(Answer::default());
    }
}

pub fn run(worker: &Worker, prompt: &str, change: impl FnOnce(&mut Job)) -> Answer {
    let (job, events) = job(prompt, change);
    worker.submit(job);
    let mut answers = wait(events).unwrap_or_else(|e| panic!("{e}"));
    answers.swap_remove(0)
}

pub fn fails(worker: &Worker, prompt: &str, change: impl FnOnce(&mut Job)) -> String {
    let (job, events) = job(prompt, change);
    worker.submit(job);
    wait(events).expect_err("it is refused")
}

pub const TEXT: &str = "Ownership is the most distinctive feature of Rust, and it has deep implications for the rest of \
                    the language. It enables Rust to make memory safety guarantees without needing a collector, so it \
                    is important to understand how ownership works. In this chapter we talk about ownership and about \
                    several related features: borrowing, slices, and how Rust lays data out in memory.";
