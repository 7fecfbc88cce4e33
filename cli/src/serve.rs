//! `rwkv-edge serve`: models over HTTP. Only options; what they mean is in `rwkv-edge-serve`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use clap::ValueEnum;
use rwkv_edge::{Model, Reservation};
use rwkv_edge_chat::Template;
use rwkv_edge_serve::http::{Config, LogFormat, Served, Server, WorkerBackend};
use rwkv_edge_serve::metrics::Metrics;
use rwkv_edge_serve::store::DiskOptions;
use rwkv_edge_serve::{Worker, WorkerOptions};

use crate::args::{ModelArgs, Quant};
use crate::byte_size::ByteSize;
use crate::devices::DeviceArgs;
use crate::environment;
use crate::lora::LoraArgs;
use crate::numbers::{whole, THREADS_MAX};
use crate::{hub, memory, model, note, UsageError};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory, file or hub name, with a name for clients; repeatable
    ///
    /// As for other commands, and NAME= in front of it is what clients call the model. Without a name it is that of the
    /// file or directory without its ending. Without the option, the demo model, by the name demo.
    #[arg(short, long = "model", value_name = "[NAME=]MODEL", env = environment::MODEL, hide_env_values = true)]
    models: Vec<NamedModel>,

    /// Tokenizer file, if not the models' own
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// f32, f16, int8, q6, q5 or q4 [default: as stored]
    ///
    /// What the weight matrices of all models are turned into while loading.
    #[arg(short, long, hide_possible_values = true)]
    quant: Option<Quant>,

    /// Address and port to listen on; port 0 takes a free one
    ///
    /// Only this machine reaches 127.0.0.1. Any other address wants --api-key-file, or --no-key.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080", value_parser = address)]
    listen: SocketAddr,

    /// File of API keys: on each line a name and a key
    ///
    /// Clients send a key as Authorization: Bearer KEY; without one they get /health alone. Lines that begin with # are
    /// comments. SIGHUP reads the file again. What is kept for one name is never used for another.
    #[arg(long, value_name = "FILE", conflicts_with = "no_key")]
    api_key_file: Option<PathBuf>,

    /// Let everybody in who reaches the address
    #[arg(long)]
    no_key: bool,

    /// Page whose scripts may ask, such as https://chat.example.org; repeatable
    ///
    /// A browser says from which page a request comes; those from other pages than the server's own are refused. *
    /// stands for all pages.
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<String>,

    /// Host name by which the server may be asked; repeatable
    ///
    /// Beside localhost and the address itself: the name that a proxy is known by, or this machine's in its network.
    #[arg(long, value_name = "HOST")]
    allow_host: Vec<String>,

    /// Answers of a model at once
    ///
    /// They are worked on together, so that the weights are read once for all of them. More wait.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = whole::<usize>(1..=4096))]
    parallel: usize,

    /// Memory for states that are kept, of all models together [default: a quarter of what is free]
    ///
    /// What was read is not read again as long as its state is kept. Units are as of --max-memory, under which the
    /// default is half of what the models leave.
    #[arg(long, value_name = "SIZE")]
    state_memory: Option<ByteSize>,

    /// Directory for states, so that they outlive the server
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Size of that directory at most
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "4G",
        requires = "state_dir"
    )]
    state_disk: ByteSize,

    /// Seconds that answers may go on when the server is told to end
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = whole::<u64>(0..=86_400))]
    drain: u64,

    /// Threads; 0: one a core
    #[arg(
        short,
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        value_parser = whole::<usize>(0..=THREADS_MAX)
    )]
    #[arg(env = environment::THREADS, hide_env_values = true)]
    threads: usize,

    /// Memory that this program may use, such as 96M
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<ByteSize>,

    /// Tokens of an answer at most, whatever a client asks for
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1..=u64::MAX))]
    max_tokens: Option<usize>,

    /// raven, world, g1, qa, instruct, plain, USER/BOT, model
    ///
    /// How conversations are written, as for `chat`. Without it, as the vocabulary of each model's family has it.
    #[arg(long, value_name = "NAME")]
    template: Option<String>,

    /// plain or json: the form of the lines on stderr, one a request
    #[arg(
        long,
        value_name = "FORM",
        default_value = "plain",
        hide_possible_values = true
    )]
    log: Log,

    /// Put prompts into those lines
    #[arg(long)]
    log_prompts: bool,

    #[command(flatten)]
    devices: DeviceArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Log {
    Plain,
    Json,
}

/// A model, and what clients call it.
#[derive(Clone)]
struct NamedModel {
    name: String,
    model: PathBuf,
}

impl std::str::FromStr for NamedModel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A path may have such a sign, too.
        let named = text
            .split_once('=')
            .filter(|(name, _)| !name.contains('/') && !Path::new(text).exists());
        let (name, model) = match named {
            Some((name, model)) => (name.trim(), model),
            None => (file_name(Path::new(text)), text),
        };
        let is_name = !name.is_empty() && name.len() <= 256 && !name.chars().any(char::is_control);
        if !is_name || model.is_empty() {
            return Err("expected a model, or a name, = and a model".to_owned());
        }
        Ok(NamedModel {
            name: name.to_owned(),
            model: model.into(),
        })
    }
}

/// Without the ending of what is a file. Names of directories and of the hub have dots that end nothing.
fn file_name(path: &Path) -> &str {
    const ENDINGS: [&str; 5] = ["bin", "gguf", "pth", "safetensors", "pt"];
    let ending = path.extension().and_then(|ending| ending.to_str());
    let name = match ending.is_some_and(|ending| ENDINGS.contains(&ending)) {
        true => path.file_stem(),
        false => path.file_name(),
    };
    name.and_then(|name| name.to_str()).unwrap_or_default()
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let found = text.to_socket_addrs().ok().and_then(|mut all| all.next());
    found.ok_or_else(|| {
        "expected an address and a port, such as 127.0.0.1:8080 or [::1]:0".to_owned()
    })
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let template = args.template.as_deref();
    let fixed = template
        .filter(|name| *name != "model")
        .map(str::parse::<Template>);
    let fixed = fixed.transpose()?;
    if !args.listen.ip().to_canonical().is_loopback() && args.api_key_file.is_none() && !args.no_key
    {
        let text = format!(
            "--listen {}: open to others, expected --api-key-file FILE, or --no-key",
            args.listen
        );
        return Err(UsageError(text).into());
    }
    // Before models are loaded, which takes a while.
    config(args, Vec::new(), Arc::default()).check()?;
    let mut served = Vec::new();
    let mut opened = Vec::new();
    let demo = [None];
    let named: Vec<Option<&NamedModel>> = args.models.iter().map(Some).collect();
    for named in if named.is_empty() { &demo[..] } else { &named } {
        let path = named.map(|one| one.model.clone());
        let path = path.filter(|path| path.as_os_str() != DEMO || path.exists());
        opened.push((named, model::open(&model_args(args, path))?));
    }
    let metrics = Arc::new(Metrics::new());
    let turn = Arc::default();
    let n_models = opened.len() as u64;
    // What is reserved stays so as long as the server runs.
    let models: Vec<&Model> = opened.iter().map(|(_, model)| model).collect();
    let states = StateMemory::of(args, &models)?;
    for (named, model) in opened {
        let template = match (&fixed, template) {
            (Some(template), _) => template.clone(),
            (None, Some(_)) => own_template(*named, &model)?,
            (None, None) => Template::of(&model),
        };
        let name = named.map_or(DEMO, |one| &one.name);
        states.tell(name, args, &model);
        let mut options = WorkerOptions::default();
        options.n_sequences = args.parallel;
        options.state_memory = states.n_bytes;
        options.disk = args.state_dir.as_ref().map(|folder| DiskOptions {
            folder: folder.clone(),
            n_bytes_max: args.state_disk.0 / n_models,
        });
        options.turn = Arc::clone(&turn);
        options.metrics = metrics.model(name);
        let worker = Worker::start(model, &options)?;
        served.push(Served::new(
            name,
            Arc::new(WorkerBackend::new(worker)),
            template,
        ));
    }
    let server = Server::bind(config(args, served, metrics))?;
    // Scripts wait for it, also where nothing else is told.
    eprintln!("listening on http://{}", server.address());
    Ok(server.run()?)
}

/// What clients call the model that is part of the program.
const DEMO: &str = "demo";
/// Shares of what is free that states may take where nobody says it.
const SHARE_OF_FREE: u64 = 4;
const SHARE_OF_LIMIT: u64 = 2;
/// What is taken for free where the system does not say.
const FREE_BYTES: u64 = 1 << 30;

/// Memory for the states of each of several models.
struct StateMemory {
    n_bytes: u64,
    /// Of what --max-memory allows.
    _reservation: Option<Reservation>,
}

impl StateMemory {
    fn of(args: &Args, models: &[&Model]) -> Result<Self> {
        let n_models = models.len() as u64;
        let given = args.state_memory.map(|size| size.0 / n_models);
        let left: Option<Vec<u64>> = models.iter().map(|model| model.memory_left()).collect();
        let (Some(ByteSize(limit)), Some(left)) = (args.max_memory, left) else {
            let free = memory::available_bytes().unwrap_or(FREE_BYTES);
            return Ok(StateMemory {
                n_bytes: given.unwrap_or(free / SHARE_OF_FREE / n_models),
                _reservation: None,
            });
        };
        // Each model was opened as if it had the limit for itself.
        let taken: u64 = left.iter().map(|left| limit.saturating_sub(*left)).sum();
        let of_answers: u64 = models.iter().map(|model| answers_bytes(args, model)).sum();
        let for_states = limit.saturating_sub(taken + of_answers) / SHARE_OF_LIMIT;
        let n_bytes = given.unwrap_or(for_states / n_models);
        // The first one's budget stands for all: what the others take goes from it.
        let first = limit.saturating_sub(left[0]);
        let needed = taken - first + of_answers + n_bytes * n_models;
        let reservation = models[0].reserve_memory(needed).with_context(|| {
            let enough = (taken + of_answers + n_bytes * n_models).div_ceil(1 << 20) + 1;
            format!(
                "{n_models} models, --parallel {} and {} bytes of states: --max-memory {enough}M will do, or less with \
                 fewer at once",
                args.parallel,
                n_bytes * n_models
            )
        })?;
        Ok(StateMemory {
            n_bytes,
            _reservation: Some(reservation),
        })
    }

    fn tell(&self, name: &str, args: &Args, model: &Model) {
        let each = model.info().state_bytes as u64;
        if self.n_bytes / each.max(1) < 2 * args.parallel as u64 {
            // One behind the prompt and one behind the answer of each.
            note!("{name}: too little memory for the states of so many: texts will be read again; see --state-memory");
        }
        note!(
            "{name}: {} answers at once; {:.0} MB for states, of {:.2} MB each: {}",
            args.parallel,
            self.n_bytes as f64 / 1e6,
            each as f64 / 1e6,
            self.n_bytes / each.max(1)
        );
    }
}

/// What answers take while they are drawn: their state, that before their prompt's last token and one inside, and rows of
/// logits and of the sampler; and the memory of batches.
fn answers_bytes(args: &Args, model: &Model) -> u64 {
    let info = model.info();
    let each = 3 * info.state_bytes as u64 + 24 * info.n_vocab as u64;
    let rows = (args.parallel + model.prefill_rows()) as u64;
    let of_row = 16 * (info.n_hidden + 8 * info.n_embd) as u64;
    each * args.parallel as u64 + rows * of_row
}

fn model_args(args: &Args, model: Option<PathBuf>) -> ModelArgs {
    ModelArgs {
        model,
        tokenizer: args.tokenizer.clone(),
        quant: args.quant,
        threads: args.threads,
        no_mmap: false,
        huge_pages: false,
        max_memory: args.max_memory,
        lora: LoraArgs { loras: Vec::new() },
        devices: args.devices.clone(),
    }
}

fn own_template(named: Option<&NamedModel>, model: &Model) -> Result<Template> {
    let Some(named) = named else {
        bail!("--template model: the demo model has no chat template");
    };
    let place = hub::locate(&named.model)?.path;
    match Model::chat_template(&place)? {
        Some(found) => Ok(Template::of_files(found, model)?),
        None => bail!("{}: no chat template came with this model", place.display()),
    }
}

fn config(args: &Args, models: Vec<Served>, metrics: Arc<Metrics>) -> Config {
    let mut config = Config::new(models);
    config.metrics = metrics;
    config.listen = args.listen;
    config.n_sequences = args.parallel;
    config.api_key_file = args.api_key_file.clone();
    config.no_key = args.no_key;
    config.allow_origins = args.allow_origin.clone();
    config.allow_hosts = args.allow_host.clone();
    config.max_tokens = args.max_tokens;
    config.drain = Duration::from_secs(args.drain);
    config.log = Some(Arc::new(|line: &str| note!("{line}")));
    config.log_prompts = args.log_prompts;
    config.log_format = match args.log {
        Log::Plain => LogFormat::Plain,
        Log::Json => LogFormat::Json,
    };
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_named_by_clients_words_or_their_files() {
        for (text, name, model) in [
            ("small=/models/rwkv7.pth", "small", "/models/rwkv7.pth"),
            (
                "/models/rwkv7-g1-0.1b.pth",
                "rwkv7-g1-0.1b",
                "/models/rwkv7-g1-0.1b.pth",
            ),
            (
                "RWKV/rwkv-4-169m-pile",
                "rwkv-4-169m-pile",
                "RWKV/rwkv-4-169m-pile",
            ),
            ("models/rwkv7-0.4b", "rwkv7-0.4b", "models/rwkv7-0.4b"),
            ("./a=b.gguf", "a=b", "./a=b.gguf"),
            ("x=./a=b.gguf", "x", "./a=b.gguf"),
        ] {
            let named: NamedModel = text.parse().expect(text);
            assert_eq!(
                (named.name.as_str(), named.model.as_path()),
                (name, Path::new(model))
            );
        }
        for text in ["", "=", "a=", "=b", "/", "a\nb=c"] {
            assert!(text.parse::<NamedModel>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn addresses_are_resolved() {
        assert_eq!(
            address("127.0.0.1:0"),
            Ok(SocketAddr::from(([127, 0, 0, 1], 0)))
        );
        assert!(address("localhost:80").is_ok_and(|found| found.ip().is_loopback()));
        for text in ["", "127.0.0.1", ":80x", "127.0.0.1:99999"] {
            assert!(address(text).is_err(), "{text}");
        }
    }
}
