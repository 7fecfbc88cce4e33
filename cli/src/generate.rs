//! `rwkv-edge generate`: continues a prompt.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{bail, Result};
use rwkv_edge::{Ending, GenerateOptions, Generated, Model, OutputFile, Sampler, Session, Tokens};
use serde_json::json;

use crate::args::{some_tokens, ModelArgs, TokenList, BEGIN_OF_TEXT};
use crate::input::{Kept, TextArgs};
use crate::numbers::{stop_text, whole};
use crate::sampling::{draws_or_penalises, SamplingArgs};
use crate::verbosity::{is_verbose, print};
use crate::{devices, memory, model, note, paths};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    prompt: TextArgs,

    /// The prompt as token ids, such as 1,2,3
    ///
    /// Needs no tokenizer; without one the new tokens are printed as ids, too.
    #[arg(long, value_name = "IDS", conflicts_with_all = ["text", "file"], value_parser = some_tokens)]
    tokens: Option<TokenList>,

    /// Put token 0 in front of the prompt
    ///
    /// The token that ends texts, behind which the texts of RWKV's training begin. Nothing is added without
    /// this option.
    #[arg(long)]
    bos: bool,

    /// New tokens at most
    ///
    /// 0 only feeds the prompt, for --save-state.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    #[arg(value_parser = whole::<usize>(0..=u64::MAX))]
    max_new_tokens: usize,

    /// Go on behind the token that ends a text
    #[arg(long)]
    ignore_eos: bool,

    #[command(flatten)]
    sampling: SamplingArgs,

    /// End before this text; may be repeated
    ///
    /// What is printed ends before the text.
    #[arg(long, value_name = "TEXT", value_parser = stop_text)]
    stop: Vec<String>,

    /// Go on from a saved state, or begin with a tuned one
    ///
    /// A file written by --save-state, with any --quant of the same model; or a .pth or .safetensors file that holds
    /// nothing but blocks.N.att.time_state of each layer, as "state tuning" of RWKV-7 saves it. The new text is what it would
    /// have been without the interruption, token by token, if it is not sampled: random numbers and
    /// penalties are no part of a state and begin anew, with --seed.
    #[arg(long, value_name = "FILE")]
    load_state: Option<PathBuf>,

    /// Save the state at the end
    ///
    /// The state behind all that was read and generated, a few hundred kilobytes for any number of
    /// tokens. A file that exists is replaced when the new one is complete.
    #[arg(long, value_name = "FILE")]
    save_state: Option<PathBuf>,

    /// Print only new text, not the prompt
    #[arg(long)]
    no_echo: bool,

    /// Print speeds to stderr at the end
    #[arg(long)]
    stats: bool,

    /// Print one JSON object at the end
    ///
    /// Instead of text as it is made.
    #[arg(long)]
    json: bool,
}

/// What is fed before anything is generated.
#[derive(Default)]
struct Prompt {
    tokens: Tokens,
    echo: Echo,
}

/// The prompt's text, where it is printed.
#[derive(Default)]
enum Echo {
    #[default]
    Nothing,
    /// As it was given,
    Given(Kept),
    /// or that of tokens.
    OfTokens(String),
}

impl Echo {
    fn text(&self) -> &[u8] {
        match self {
            Echo::Nothing => &[],
            Echo::Given(kept) => &kept.text,
            Echo::OfTokens(text) => text.as_bytes(),
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(path) = &args.save_state {
        paths::check_replaced(path, paths::Written::State)?;
        // Not only at the end, when a text would be lost.
        drop(OutputFile::create(path)?);
    }
    let model = match &args.tokens {
        Some(_) => model::open_without_text(&args.model)?,
        None if args.load_state.is_none() => model::open(&args.model)?,
        // Without a prompt it is gone on from.
        None => model::open_for_some_text(&args.model)?,
    };
    let mut prompt = read_prompt(args, &model)?;
    if args.bos {
        prompt.tokens = prompt.tokens.behind(BEGIN_OF_TEXT)?;
    }
    let sampler_options = args.sampling.options(&model)?;
    let seed = sampler_options.seed;
    let mut sampler = Sampler::new(sampler_options, model.n_vocab())?;
    let mut session = model.try_session()?;
    if let Some(path) = &args.load_state {
        session.load_state(path)?;
        let is_initial = Model::is_initial_state(path);
        if draws_or_penalises(sampler.options()) && !is_initial {
            note!("random numbers and penalties begin anew: they are no part of a saved state");
        }
    }
    let prefill_start = Instant::now();
    if !prompt.tokens.is_empty() {
        session.eval(&prompt.tokens)?;
    } else if session.logits().is_none() {
        bail!("the prompt is empty, expected at least one token");
    }
    let prefill_time = prefill_start.elapsed();

    let mut printer = Printer::new(args, &model);
    printer.prompt(prompt.echo.text());
    let decode_start = Instant::now();
    let options = GenerateOptions::new()
        .max_new_tokens(match printer.error {
            None => args.max_new_tokens,
            Some(_) => 0,
        })
        .ignore_end_of_text(args.ignore_eos)
        .stop(&args.stop);
    let generated = session.generate(&mut sampler, &options, |piece| printer.piece(piece));
    let decode_time = decode_start.elapsed();
    let generated = generated?;
    // First of all: whatever happens to the output, what was computed is kept.
    if let Some(path) = &args.save_state {
        session.save_state(path)?;
    }
    if let Some(error) = printer.error.take() {
        return Err(error.into());
    }
    let report = Report {
        device: devices::names(&model.info()),
        prompt_tokens: &prompt.tokens,
        generated: &generated,
        prefill_time,
        decode_time,
        seed,
    };
    printer.finish(&report)?;
    if args.stats || is_verbose() {
        report.print_stats(&session);
    }
    Ok(())
}

fn read_prompt(args: &Args, model: &Model) -> Result<Prompt> {
    if let Some(TokenList(tokens)) = &args.tokens {
        let echo = match model.tokenizer() {
            Ok(tokenizer) => Echo::OfTokens(tokenizer.decode(tokens)?),
            Err(_) => Echo::Nothing,
        };
        let tokens = tokens.clone().into();
        return Ok(Prompt { tokens, echo });
    }
    let Some(mut input) = args.prompt.open()? else {
        if args.load_state.is_some() {
            return Ok(Prompt::default());
        }
        bail!("no prompt: give one as an argument, by --file or on stdin; see --help");
    };
    // A model without a tokenizer goes on behind a state all the same.
    if !input.has_line()? {
        return Ok(Prompt::default());
    }
    if args.json || args.no_echo {
        let tokens = input.tokenize(model, usize::MAX)?;
        let echo = Echo::Nothing;
        return Ok(Prompt { tokens, echo });
    }
    let (tokens, kept) = input.tokenize_and_keep(model)?;
    let echo = Echo::Given(kept);
    Ok(Prompt { tokens, echo })
}

/// Prints text as it comes, or keeps it for the JSON object.
struct Printer<'a> {
    args: &'a Args,
    text: Option<String>,
    error: Option<io::Error>,
}

impl<'a> Printer<'a> {
    fn new(args: &'a Args, model: &Model) -> Self {
        let text = model.has_tokenizer().then(String::new);
        Printer {
            args,
            text,
            error: None,
        }
    }

    fn prompt(&mut self, text: &[u8]) {
        if self.args.json || self.args.no_echo {
            return;
        }
        let mut stdout = io::stdout().lock();
        self.error = stdout.write_all(text).and_then(|()| stdout.flush()).err();
    }

    fn piece(&mut self, piece: &str) -> ControlFlow<()> {
        if self.args.json {
            if let Some(text) = &mut self.text {
                text.push_str(piece);
            }
            return ControlFlow::Continue(());
        }
        if piece.is_empty() {
            return ControlFlow::Continue(());
        }
        let mut stdout = io::stdout().lock();
        match stdout
            .write_all(piece.as_bytes())
            .and_then(|()| stdout.flush())
        {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.error = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    fn finish(&self, report: &Report<'_>) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        if self.args.json {
            return report.write_json(self.text.as_deref(), BufWriter::new(stdout));
        }
        if self.text.is_none() {
            // Without a tokenizer the new ids are all there is to print.
            let ids: Vec<_> = report.generated.tokens.iter().map(u32::to_string).collect();
            writeln!(stdout, "{}", ids.join(","))?;
        } else if stdout.is_terminal() {
            writeln!(stdout)?;
        }
        stdout.flush()
    }
}

struct Report<'a> {
    device: String,
    prompt_tokens: &'a [u32],
    generated: &'a Generated,
    prefill_time: Duration,
    decode_time: Duration,
    seed: u64,
}

impl Report<'_> {
    fn write_json(&self, text: Option<&str>, mut out: impl Write) -> io::Result<()> {
        let tokens = &self.generated.tokens;
        let object = json!({
            // Those of a long prompt would take much more memory as JSON values.
            "prompt_tokens": [],
            "tokens": tokens,
            "text": text,
            "decode_tokens_per_s": per_second(tokens.len(), self.decode_time),
            "prefill_tokens_per_s": per_second(self.prompt_tokens.len(), self.prefill_time),
            "ending": match self.generated.ending {
                Ending::Length => "length",
                Ending::EndOfText => "end_of_text",
                Ending::Stop => "stop",
                Ending::Caller => "closed",
                _ => "other",
            },
            "seed": self.seed,
            "device": self.device,
            "peak_rss_bytes": memory::peak_resident_bytes(),
            "private_bytes": memory::private_bytes(),
        });
        let mut comma = "{";
        for (name, value) in object.as_object().into_iter().flatten() {
            write!(out, "{comma}\"{name}\":")?;
            match name.as_str() {
                "prompt_tokens" => serde_json::to_writer(&mut out, self.prompt_tokens)?,
                _ => serde_json::to_writer(&mut out, value)?,
            }
            comma = ",";
        }
        writeln!(out, "}}")?;
        out.flush()
    }

    fn print_stats(&self, session: &Session) {
        let info = session.model().info();
        let line = |name: &str, n: usize, time: Duration| {
            let speed = per_second(n, time).unwrap_or(0.0);
            let ms = time.as_secs_f64() * 1e3;
            print(format_args!(
                "{name}: {n} tokens in {ms:.0} ms, {speed:.1} tokens/s"
            ));
        };
        print(format_args!(""));
        line("prefill", self.prompt_tokens.len(), self.prefill_time);
        line("decode", self.generated.tokens.len(), self.decode_time);
        print(format_args!(
            "{} weights, {:.1} MB on {}; state {} bytes; {} threads, {} kernels; seed {}",
            info.quant,
            info.weight_bytes as f64 / 1e6,
            self.device,
            info.state_bytes,
            info.threads,
            info.kernels,
            self.seed
        ));
    }
}

/// `None` where nothing was done, which JSON shows as null.
pub(crate) fn per_second(n: usize, time: Duration) -> Option<f64> {
    (n > 0).then(|| n as f64 / time.as_secs_f64().max(1e-9))
}
