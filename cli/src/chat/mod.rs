//! `rwkv-edge chat`: a conversation, on a terminal or line by line from a pipe.
//!
//! This file reads lines and prints answers; the conversation itself is the library's. Only answers go to
//! stdout.

mod commands;
mod history;
mod input;
mod interrupt;
#[cfg(unix)]
mod keyboard;
mod saved;
mod settings;
#[cfg(unix)]
mod typed;

use std::fs::File;
use std::io::{self, IsTerminal, Read as _, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use anyhow::{bail, Context, Result};
use rwkv_edge::{Model, OutputFile};
use rwkv_edge_chat::{
    Answer, Conversation, Ending, Event, Options, PromptCache, Template, Think, Undone,
};
use serde_json::json;

use self::commands::Line;
use self::input::{Input, Read, MESSAGE_BYTES_MAX};
use crate::args::ModelArgs;
use crate::generate::per_second;
use crate::numbers::{stop_text, whole};
use crate::progress::Progress;
use crate::sampling::{in_words, SamplingArgs};
use crate::{cache_folder, hub, model, note, paths, tell, text_of, UsageError};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// raven, world, g1, qa, instruct, plain, USER/BOT, model
    ///
    /// How the conversation is written: raven (Bob/Alice), world or g1 (User/Assistant, and System for a system
    /// text), qa (Question/Answer), instruct (a task and its response), plain (the text alone, which the
    /// model goes on with), or any two names. Without it, that of the model's family, known by its
    /// vocabulary. Or model: the chat template that came with the model, in its directory, or in its GGUF or model file. RWKV-7 with the World vocabulary reads token 0 first, as it was trained.
    #[arg(long, value_name = "NAME")]
    template: Option<NamedTemplate>,

    /// What the conversation begins with
    ///
    /// Such as who talks, and how; or a whole dialogue as an example.
    #[arg(long, value_name = "TEXT", conflicts_with = "system_file")]
    system: Option<String>,

    /// File that holds the system text
    #[arg(long, value_name = "FILE")]
    system_file: Option<PathBuf>,

    /// Keep what the system text leaves in a file
    ///
    /// The state behind it, beside the model or, where that cannot be written, in the user's folder for
    /// caches. The next time it is read from there, if model and text are the same.
    #[arg(long)]
    cache_prompt: bool,

    /// Think before answers: off, on, fake, short, long
    ///
    /// As RWKV-7 G1 models have learnt, in the template world: on, as long as the model likes; short and long ask
    /// for less and more of it; fake tells it that it has thought, for an answer at once in the same manner.
    /// Answers then may have blank lines. Thoughts are shown on a terminal, and apart from the answer with
    /// --json; the conversation goes on without them. They count as new tokens, and --stop ends them, too. With
    /// --template model on and fake set its enable_thinking to true and false, if it has that; off leaves it unset.
    #[arg(long, value_name = "HOW", default_value_t = Think::Off, hide_default_value = true)]
    think: Think,

    /// New tokens of an answer at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 512)]
    #[arg(value_parser = whole::<usize>(0..=u64::MAX))]
    max_new_tokens: usize,

    #[command(flatten)]
    sampling: SamplingArgs,

    /// End answers before this text; may be repeated
    ///
    /// Beside the blank line that ends an answer in nearly every template.
    #[arg(long, value_name = "TEXT", value_parser = stop_text)]
    stop: Vec<String>,

    /// Go on from a saved conversation, or begin with a tuned state
    ///
    /// A file written by --save-state or /save, or any saved state of the same model, which already has its system
    /// text. Or a .pth or .safetensors file that holds nothing but blocks.N.att.time_state of each layer, as "state
    /// tuning" of RWKV-7 saves it: the conversation begins with it, in front of a system text, and so does every /reset.
    #[arg(long, value_name = "FILE")]
    load_state: Option<PathBuf>,

    /// Save the conversation at the end
    ///
    /// The state to FILE, as `generate --load-state` reads it, and the text to FILE.json.
    #[arg(long, value_name = "FILE")]
    save_state: Option<PathBuf>,

    /// Neither read nor keep typed lines
    #[arg(long)]
    no_history: bool,

    /// Print one JSON object an answer
    ///
    /// Instead of text as it is made.
    #[arg(long)]
    json: bool,
}

/// What `--template` says.
#[derive(Clone)]
enum NamedTemplate {
    /// That of the model's files.
    Own,
    Known(Template),
}

impl FromStr for NamedTemplate {
    type Err = rwkv_edge::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "model" => Ok(NamedTemplate::Own),
            _ => text.parse().map(NamedTemplate::Known),
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(path) = &args.save_state {
        saved::check(path)?;
        // Not only at the end, when a conversation would be lost.
        drop(OutputFile::create(path)?);
    }
    let tuned = args.load_state.as_deref();
    let tuned = tuned.filter(|path| Model::is_initial_state(path));
    let saved = args.load_state.as_ref().filter(|_| tuned.is_none());
    if saved.is_some() && (args.system.is_some() || args.system_file.is_some()) {
        let text = "--load-state goes on from a conversation, which has its system text: --system and --system-file \
                    are for new ones, also with a tuned initial state";
        return Err(UsageError(text.to_owned()).into());
    }
    let model = model::open(&args.model)?;
    let model = model::begin_with(model, tuned)?;
    model.tokenizer()?;
    let template = match &args.template {
        None => Template::of(&model),
        Some(NamedTemplate::Known(template)) => template.clone(),
        Some(NamedTemplate::Own) => own_template(args, &model)?,
    };
    if saved.is_none() {
        note_template(args, &template, &model);
    }
    let system = match (&args.system, &args.system_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => {
            read_system(path).with_context(|| format!("{}: cannot read", path.display()))?
        }
        (None, None) => String::new(),
    };
    if args.cache_prompt && matches!(args.template, Some(NamedTemplate::Own)) {
        note!(
            "--cache-prompt changes nothing here: the model's own template writes the system text with the first \
             message"
        );
    }
    let interrupted = interrupt::flag();
    // Not by what was typed in the conversation before this one.
    interrupted.store(false, Ordering::Relaxed);
    let shows_thoughts = !args.json && io::stdout().is_terminal();
    let thought_shown = Arc::new(AtomicBool::new(false));
    let options = Options::new()
        .sampling(args.sampling.options(&model)?)
        .max_new_tokens(args.max_new_tokens)
        .stop(&args.stop)
        .think(args.think)
        .cache(args.cache_prompt.then(|| prompt_cache(args)))
        .interrupted(interrupted.clone())
        .on_event(on_event(shows_thoughts, thought_shown.clone()));
    let mut conversation = Conversation::new(&model, template, &system, options)?;
    let input = Input::new(!args.no_history)?;
    if let Some(path) = tuned {
        note!("{}: {}", path.display(), saved::INITIAL);
    }
    if let Some(path) = saved {
        let loaded = saved::load(&mut conversation, path)?;
        if !loaded.has_text {
            // A conversation with its text brings its template along.
            note_template(args, &conversation.transcript().template, &model);
        }
        note!("{}", loaded.words);
    }
    if input.is_terminal() {
        // Until here Ctrl-C ends the program; from a pipe it always does.
        interrupt::catch()?;
    }
    let mut chat = Chat {
        conversation,
        interrupted,
        labels: input.is_terminal() && io::stdout().is_terminal(),
        thought_shown,
        interactive: input.is_terminal(),
        json: args.json,
        last: None,
    };
    let ended = chat.run(input);
    // Whatever ended it, what was said is kept; where nothing could be said, what an older file has.
    let is_empty = chat.conversation.transcript().turns.is_empty();
    let save_state = args.save_state.as_ref();
    if let Some(path) = save_state.filter(|_| ended.is_ok() || !is_empty) {
        let saved = saved::save(&chat.conversation, path)?;
        note!("{saved}");
    }
    ended
}

/// That of the files that the model was opened from, or which it was quantised from.
fn own_template(args: &Args, model: &Model) -> Result<Template> {
    let place = match &args.model.model {
        None => bail!("--template model: the demo model has no chat template"),
        Some(name) => hub::locate(name)?.path,
    };
    paths::check_template(&place)?;
    match Model::chat_template(&place)? {
        Some(found) => Ok(Template::of_files(found, model)?),
        None => bail!(
            "{}: no chat template: looked for chat_template.jinja and tokenizer_config.json in its directory, and \
             within a GGUF or model file",
            place.display()
        ),
    }
}

/// A system text, of no more bytes than a message.
fn read_system(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = File::open(path)?;
    file.take(MESSAGE_BYTES_MAX as u64 + 1)
        .read_to_string(&mut text)?;
    match text.len() <= MESSAGE_BYTES_MAX {
        true => Ok(text),
        false => Err(io::Error::other(format!(
            "more than {MESSAGE_BYTES_MAX} bytes, expected at most so many of a system text"
        ))),
    }
}

fn prompt_cache(args: &Args) -> PromptCache {
    let folder = cache_folder::of_program().ok();
    let folder = folder.map(|folder| folder.join("prompts"));
    PromptCache::new(args.model.model.as_deref(), folder)
}

/// A bar while a long text is read, notes on stderr, and thoughts where they are shown.
fn on_event(shows_thoughts: bool, shown: Arc<AtomicBool>) -> impl FnMut(Event<'_>) + Send {
    let mut bar: Option<Progress> = None;
    move |event| match event {
        Event::Thought(piece) if shows_thoughts => {
            let piece = match shown.load(Ordering::Relaxed) {
                true => piece,
                false => piece.trim_start(),
            };
            if !piece.is_empty() {
                shown.store(true, Ordering::Relaxed);
                print_dimmed(piece);
            }
        }
        Event::Thought(_) => {}
        Event::Reading(progress) => bar
            .get_or_insert_with(|| Progress::after_a_second("reading"))
            .show(progress.done, progress.total),
        Event::Note(text) => note!("{text}"),
        _ => {
            bar = None;
            shown.store(false, Ordering::Relaxed);
        }
    }
}

/// A terminal that is gone is noticed with the answer.
fn print_dimmed(piece: &str) {
    let mut stdout = io::stdout().lock();
    let _ = write!(stdout, "\x1b[2m{piece}\x1b[0m").and_then(|()| stdout.flush());
}

/// A form that was not asked for is told where it is a mere guess, and to people always.
fn note_template(args: &Args, template: &Template, model: &Model) {
    if args.template.is_some() {
        return;
    }
    if template.is_plain() {
        note!(
            "template plain, because a vocabulary of {} is of no family that is known; --template \
             chooses another",
            model.n_vocab()
        );
    } else if io::stdin().is_terminal() {
        note!("template {template}, by the model's vocabulary");
    }
}

struct Chat {
    conversation: Conversation,
    interrupted: Arc<AtomicBool>,
    interactive: bool,
    /// Whether names stand before the answers.
    labels: bool,
    /// Whether there was a thought in front of the answer that is being given, on the terminal.
    thought_shown: Arc<AtomicBool>,
    json: bool,
    last: Option<Answer>,
}

impl Chat {
    fn run(&mut self, mut input: Input) -> Result<()> {
        if self.interactive {
            note!("/help lists commands, Ctrl-D ends");
            if self.conversation.sampling().temperature <= 0.0 {
                note!(
                    "always the likeliest token; /set preset chat, or a temperature, is livelier"
                );
            }
        }
        loop {
            let label = self.conversation.transcript().template.user_label();
            let line = match input.read(&label)? {
                Read::Line(line) => line,
                Read::Interrupted => {
                    tell!("Ctrl-D or /quit ends");
                    continue;
                }
                Read::End => return Ok(()),
            };
            self.interrupted.store(false, Ordering::Relaxed);
            let done = match Line::parse(&line) {
                Ok(Line::Quit) => return Ok(()),
                Ok(line) => self.act(line),
                // Nothing was done, and what follows is as it was meant.
                Err(error) => {
                    tell!("{error}");
                    continue;
                }
            };
            match done {
                Err(error) if self.interactive && !crate::is_closed_pipe(&error) => {
                    tell!("{}", text_of(&error));
                }
                done => done?,
            }
        }
    }

    fn act(&mut self, line: Line) -> Result<()> {
        match line {
            Line::Nothing | Line::Quit => {}
            Line::Message(message) => self.say(&message)?,
            Line::Reset => {
                let done = self.conversation.reset()?;
                self.tell_done(done, "a new conversation");
            }
            Line::Undo => match self.conversation.undo()? {
                Some(Undone::Turn(turn)) => tell!("taken back: {}", turn.user),
                Some(_) => tell!("the conversation before is back"),
                None => bail!("nothing to undo"),
            },
            Line::Retry => {
                if self.conversation.transcript().turns.is_empty() {
                    bail!("nothing to retry");
                }
                match self.conversation.undo()? {
                    Some(Undone::Turn(turn)) => self.say(&turn.user)?,
                    _ => bail!("the last turn cannot be taken back"),
                }
            }
            Line::Save(path) => tell!("{}", saved::save(&self.conversation, &path)?),
            Line::Load(path) => tell!("{}", saved::load(&mut self.conversation, &path)?.words),
            Line::System(None) => match self.conversation.transcript().system.as_str() {
                "" => tell!("no system text"),
                system => tell!("{system}"),
            },
            Line::System(Some(system)) => {
                let done = self.conversation.start_over(&system)?;
                self.tell_done(done, "a new conversation with this system text");
            }
            Line::Set(name, value) => settings::set(&mut self.conversation, &name, &value)?,
            Line::Show => self.show(),
            Line::Stats => self.stats(),
            Line::Help => tell!("{}", commands::help()),
        }
        Ok(())
    }

    fn tell_done(&self, done: bool, what: &str) {
        match done {
            true if self.interactive => tell!("{what}; /undo brings the old one back"),
            true => {}
            false => tell!("interrupted: nothing has changed"),
        }
    }

    fn say(&mut self, message: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        // Printed with the first word: until then a bar may say how much of a long message is read.
        let mut label = match self.labels {
            true => self.conversation.transcript().template.answer_label(),
            false => String::new(),
        };
        let json = self.json;
        let mut begun = false;
        let mut printed = Ok(());
        let shown = self.thought_shown.clone();
        let mut print = |piece: &str| {
            // A thought stands on lines of its own.
            if shown.swap(false, Ordering::Relaxed) {
                stdout.write_all(b"\n")?;
            }
            stdout.write_all(std::mem::take(&mut label).as_bytes())?;
            stdout.write_all(piece.as_bytes())?;
            stdout.flush()
        };
        let answer = self.conversation.say(message, &mut |piece| {
            // The space or line before the first word belongs to the template.
            let piece = if begun { piece } else { piece.trim_start() };
            begun |= !piece.is_empty();
            if json || piece.is_empty() {
                return ControlFlow::Continue(());
            }
            printed = print(piece);
            match printed {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
        printed?;
        match &answer {
            Some(answer) if json => writeln!(stdout, "{}", to_json(message, answer))?,
            // From a pipe there is a line for every message, even if there is nothing on it.
            _ if begun || shown.load(Ordering::Relaxed) || !self.interactive => writeln!(stdout)?,
            _ => {}
        }
        stdout.flush()?;
        self.tell_ending(answer.as_ref());
        if answer.is_some() {
            self.last = answer;
        }
        Ok(())
    }

    /// Says why there is no more of an answer; of those that a script reads only where there is nothing of it.
    fn tell_ending(&self, answer: Option<&Answer>) {
        let Some(answer) = answer else {
            if self.interactive {
                tell!("(interrupted before the answer: nothing was said)");
            }
            return;
        };
        let has_thought = answer.thought.as_ref().is_some_and(|text| !text.is_empty());
        let is_empty = answer.text.is_empty();
        let thinking = match (is_empty, has_thought) {
            (true, true) => " while it was still thought about",
            _ => "",
        };
        let text = match answer.ending {
            Ending::Interrupted => {
                format!("(interrupted{thinking}; /undo takes the turn back)")
            }
            Ending::Length if is_empty && has_thought => format!(
                "(no answer: all {} tokens went into the thought; see --max-new-tokens)",
                answer.n_tokens
            ),
            Ending::Length => "(cut: see --max-new-tokens)".into(),
            _ if is_empty => format!("(an empty answer{thinking}; /retry asks again)"),
            _ => return,
        };
        match self.interactive {
            true => tell!("{text}"),
            false if is_empty && !self.json => note!("{text}"),
            false => {}
        }
    }

    fn show(&self) {
        let transcript = self.conversation.transcript();
        let template = &transcript.template;
        if !transcript.system.is_empty() {
            tell!("{}\n", transcript.system.trim_end());
        }
        for turn in &transcript.turns {
            tell!("{}{}", template.user_label(), turn.user);
            tell!("{}{}\n", template.answer_label(), turn.answer);
        }
    }

    fn stats(&self) {
        let session = self.conversation.session();
        let info = session.model().info();
        let state = session.state();
        let turns = self.conversation.transcript().turns.len();
        tell!(
            "conversation  {turns} turns, {} tokens; template {}",
            state.n_tokens(),
            self.conversation.transcript().template
        );
        if let Some(answer) = &self.last {
            let speed = |n, time| per_second(n, time).unwrap_or(0.0);
            tell!(
                "last answer   read {} tokens at {:.1}/s, wrote {} at {:.1}/s",
                answer.n_prompt_tokens,
                speed(answer.n_prompt_tokens, answer.prefill_time),
                answer.n_tokens,
                speed(answer.n_tokens, answer.decode_time)
            );
        }
        let (n_steps, bytes) = self.conversation.undo_steps();
        let kib = |bytes: usize| bytes.div_ceil(1024);
        tell!(
            "state         {} KiB; {n_steps} more to go back to, {} KiB",
            kib(state.size_bytes()),
            kib(bytes)
        );
        let sampling = self.conversation.sampling();
        tell!("thoughts      {}", self.conversation.think());
        tell!(
            "sampling      {}; seed {}",
            in_words(sampling),
            sampling.seed
        );
        tell!(
            "model         {}, {}, {:.1} MB; {} threads, {} kernels",
            info.place,
            info.quant,
            info.weight_bytes as f64 / 1e6,
            info.threads,
            info.kernels
        );
    }
}

fn to_json(message: &str, answer: &Answer) -> serde_json::Value {
    json!({
        "user": message,
        "text": answer.text,
        "thought": answer.thought,
        "ending": answer.ending.name(),
        "prompt_tokens": answer.n_prompt_tokens,
        "tokens": answer.n_tokens,
        "prefill_tokens_per_s": per_second(answer.n_prompt_tokens, answer.prefill_time),
        "decode_tokens_per_s": per_second(answer.n_tokens, answer.decode_time),
    })
}
