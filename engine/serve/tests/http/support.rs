//! A backend that answers as it is told, a server in front of it, and a client that writes bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rwkv_edge::{Error, ErrorKind, Model, Options, Result, SamplerOptions, TextStream};
use rwkv_edge_chat::Template;
use rwkv_edge_serve::constrain::{Compiler, Constraint, Grammar};
use rwkv_edge_serve::http::{Backend, Config, Served, Server, Stopper};
use rwkv_edge_serve::{Chosen, Ending, Event, Job, Owner, Prompt, SessionInfo, Start, Work};
use serde_json::Value;

pub fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::open("../../cli/demo", &Options::default()).unwrap())
}

pub fn encode(text: &str) -> Vec<u32> {
    model().tokenizer().unwrap().encode(text).unwrap()
}

/// What the backend does with a job.
#[derive(Clone)]
pub enum Script {
    /// Every choice says this, token by token, and ends so.
    Say(&'static str, Ending),
    /// The same with a pause in front of each token.
    Slowly(&'static str, Duration),
    /// It begins and says nothing.
    Silence,
    /// It does not even begin.
    Wait,
    /// It says so many tokens at once, and does not end.
    Flood(usize),
    Fail(ErrorKind, &'static str),
    /// It begins, says a word, and fails.
    FailLater(&'static str),
    /// The thread that should answer is gone.
    Die,
}

/// A job as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub owner: String,
    pub start: Start,
    pub prompt: Prompt,
    pub sampling: SamplerOptions,
    pub bias: Vec<(u32, f32)>,
    pub n_choices: usize,
    pub max_new_tokens: Option<usize>,
    pub stops: Vec<String>,
    pub ignore_end_of_text: bool,
    pub begins_with_word: bool,
    pub top_logprobs: Option<usize>,
    pub prompt_logprobs: bool,
    pub has_constraint: bool,
    /// What remains of " Hello. " in the history.
    pub kept: Option<String>,
}

type Entry = (String, SessionInfo, Vec<u8>);

pub struct Fake {
    model: Model,
    script: Mutex<Script>,
    pub seen: Mutex<Vec<Seen>>,
    pub grammars: Mutex<Vec<Grammar>>,
    /// Jobs that nothing is said to.
    pub held: Mutex<Vec<Job>>,
    sessions: Mutex<Vec<Entry>>,
}

impl Fake {
    pub fn new(script: Script) -> Arc<Self> {
        Self::of(model().clone(), script)
    }

    /// A backend of another model.
    pub fn of(model: Model, script: Script) -> Arc<Self> {
        Arc::new(Fake {
            model,
            script: Mutex::new(script),
            seen: Mutex::default(),
            grammars: Mutex::default(),
            held: Mutex::default(),
            sessions: Mutex::default(),
        })
    }

    pub fn set(&self, script: Script) {
        *self.script.lock().unwrap() = script;
    }

    pub fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().unwrap().clone()
    }
}

fn chosen(token: u32, n_top: Option<usize>) -> Chosen {
    let top = (0..n_top.unwrap_or(0)).map(|i| (token + i as u32, -0.5 - i as f32));
    Chosen {
        token,
        logprob: n_top.map(|_| -0.5),
        top: top.collect(),
    }
}

fn say(job: &Job, text: &str, ending: Ending, pause: Duration) {
    let tell = |event| job.events.send(event).is_ok();
    let prompt = match &job.prompt {
        Prompt::Text(text) => encode(text),
        Prompt::Tokens(tokens) => tokens.clone(),
    };
    tell(Event::Began {
        n_prompt: prompt.len(),
        n_cached: prompt.len() / 2,
    });
    if job.prompt_logprobs {
        let mut all: Vec<Chosen> = prompt
            .iter()
            .map(|&t| chosen(t, job.top_logprobs))
            .collect();
        if let Some(first) = all.first_mut() {
            (first.logprob, first.top) = (None, Vec::new());
        }
        // In two parts, as they come of batches.
        let rest = all.split_off(all.len() / 2);
        tell(Event::Prompt(all));
        tell(Event::Prompt(rest));
    }
    let tokens = encode(text);
    let n_max = job.max_new_tokens.unwrap_or(usize::MAX);
    let tokens = &tokens[..tokens.len().min(n_max)];
    for choice in 0..job.n_choices {
        let mut stream = TextStream::new(model().tokenizer().unwrap());
        for &token in tokens {
            thread::sleep(pause);
            let text = stream.push(token).unwrap().to_owned();
            let chosen = chosen(token, job.top_logprobs);
            if !tell(Event::Token {
                choice,
                chosen,
                text,
            }) {
                return;
            }
        }
        // The token that ended the text.
        let ends = ending == Ending::Stop && tokens.len() < n_max;
        if ends {
            tell(Event::Token {
                choice,
                chosen: chosen(model().end_of_text(), job.top_logprobs),
                text: String::new(),
            });
        }
        tell(Event::Ended {
            choice,
            text: stream.finish().unwrap().to_owned(),
            ending,
            n_tokens: tokens.len() + usize::from(ends),
        });
    }
    tell(Event::Done);
}

impl Backend for Fake {
    fn model(&self) -> &Model {
        &self.model
    }

    fn submit(&self, job: Job) {
        self.seen.lock().unwrap().push(Seen {
            owner: job.owner.name().to_owned(),
            start: job.start.clone(),
            prompt: job.prompt.clone(),
            sampling: job.sampling.clone(),
            bias: job.bias.clone(),
            n_choices: job.n_choices,
            max_new_tokens: job.max_new_tokens,
            stops: job.stops.clone(),
            ignore_end_of_text: job.ignore_end_of_text,
            begins_with_word: job.begins_with_word,
            top_logprobs: job.top_logprobs,
            prompt_logprobs: job.prompt_logprobs,
            has_constraint: job.constraint.is_some(),
            kept: job.remains.as_ref().and_then(|remains| remains(" Hello. ")),
        });
        let began = Event::Began {
            n_prompt: 3,
            n_cached: 0,
        };
        match self.script.lock().unwrap().clone() {
            Script::Say(text, ending) => say(&job, text, ending, Duration::ZERO),
            Script::Slowly(text, pause) => {
                thread::spawn(move || say(&job, text, Ending::Stop, pause));
            }
            Script::Silence => {
                let _ = job.events.send(began);
                self.held.lock().unwrap().push(job);
            }
            Script::Wait => self.held.lock().unwrap().push(job),
            Script::Flood(n) => {
                let _ = job.events.send(began);
                for _ in 0..n {
                    let _ = job.events.send(Event::Token {
                        choice: 0,
                        chosen: chosen(encode(" a")[0], None),
                        text: " a".to_owned(),
                    });
                }
                self.held.lock().unwrap().push(job);
            }
            Script::Fail(kind, text) => {
                let _ = job.events.send(Event::Failed(Error::new(kind, text)));
            }
            Script::FailLater(text) => {
                let _ = job.events.send(began);
                let _ = job.events.send(Event::Token {
                    choice: 0,
                    chosen: chosen(encode(text)[0], None),
                    text: text.to_owned(),
                });
                let error = Error::new(ErrorKind::Backend, "the device is gone");
                let _ = job.events.send(Event::Failed(error));
            }
            Script::Die => drop(job),
        }
    }

    fn work(&self, mut work: Box<dyn Work>) {
        thread::spawn(move || while !work.step(model()) {});
    }

    fn compile(&self, grammar: &Grammar) -> Result<Constraint> {
        self.grammars.lock().unwrap().push(grammar.clone());
        match grammar {
            Grammar::Regex(text) if text == "panic" => panic!("a grammar that nobody foresaw"),
            Grammar::Regex(text) if text == "(" => Err(Error::new(
                ErrorKind::Argument,
                "regex: unclosed group at 0",
            )),
            _ => Compiler::new(model())?.compile(&Grammar::Regex("a+".into())),
        }
    }

    fn session(&self, owner: &Owner, name: &str) -> Result<Option<SessionInfo>> {
        let all = self.sessions(owner)?;
        Ok(all.into_iter().find(|session| session.name == name))
    }

    fn sessions(&self, owner: &Owner) -> Result<Vec<SessionInfo>> {
        let sessions = self.sessions.lock().unwrap();
        let own = sessions.iter().filter(|entry| entry.0 == owner.name());
        Ok(own.map(|entry| entry.1.clone()).collect())
    }

    fn fork_session(&self, owner: &Owner, from: &str, to: &str) -> Result<SessionInfo> {
        let bytes = self.export_session(owner, from)?.unwrap();
        self.import_session(owner, to, &bytes)
    }

    fn delete_session(&self, owner: &Owner, name: &str) -> Result<bool> {
        let mut sessions = self.sessions.lock().unwrap();
        let n = sessions.len();
        sessions.retain(|entry| entry.0 != owner.name() || entry.1.name != name);
        Ok(sessions.len() < n)
    }

    fn export_session(&self, owner: &Owner, name: &str) -> Result<Option<Vec<u8>>> {
        let sessions = self.sessions.lock().unwrap();
        let mut own = sessions.iter().filter(|entry| entry.0 == owner.name());
        Ok(own
            .find(|entry| entry.1.name == name)
            .map(|entry| entry.2.clone()))
    }

    fn import_session(&self, owner: &Owner, name: &str, bytes: &[u8]) -> Result<SessionInfo> {
        if bytes.is_empty() {
            return Err(Error::new(ErrorKind::State, "0 bytes, expected a state"));
        }
        self.delete_session(owner, name)?;
        let session = SessionInfo::new(name, bytes.len() as u64, 1, 2);
        let entry = (owner.name().to_owned(), session.clone(), bytes.to_vec());
        self.sessions.lock().unwrap().push(entry);
        Ok(session)
    }
}

/// A server that runs until it is dropped.
pub struct Running {
    pub address: SocketAddr,
    pub fake: Arc<Fake>,
    pub lines: Arc<Mutex<Vec<String>>>,
    pub stopper: Stopper,
    thread: Option<JoinHandle<Result<()>>>,
}

pub fn served(fake: &Arc<Fake>, name: &str, template: &str) -> Served {
    let template: Template = template.parse().unwrap();
    Served::new(name, fake.clone(), template)
}

pub fn start(script: Script) -> Running {
    start_with(script, |_| ())
}

pub fn start_with(script: Script, change: impl FnOnce(&mut Config)) -> Running {
    let fake = Fake::new(script);
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = lines.clone();
    let mut config = Config::new(vec![served(&fake, "demo", "world")]);
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.signals = false;
    config.drain = Duration::from_secs(5);
    config.log = Some(Arc::new(move |line: &str| {
        log.lock().unwrap().push(line.to_owned())
    }));
    change(&mut config);
    let server = Server::bind(config).unwrap();
    Running {
        address: server.address(),
        stopper: server.stopper(),
        fake,
        lines,
        thread: Some(thread::spawn(move || server.run())),
    }
}

impl Running {
    /// Waits until it has ended.
    pub fn wait(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    /// Sends bytes and gives all that comes back.
    pub fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        // A server that has read enough closes.
        let _ = stream.write_all(bytes);
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        all
    }

    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let host = format!("127.0.0.1:{}", self.address.port());
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            head += &format!("Host: {host}\r\n");
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        Answer::of(&self.raw(&[head.as_bytes(), body].concat()))
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, &[], body.to_string().as_bytes())
    }

    /// A request that is refused, with the status and what the error says: message, param, code.
    pub fn refused(&self, path: &str, body: &Value) -> (u16, String, Value, Value) {
        self.post(path, body).refusal()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !thread::panicking() {
                ended.unwrap().unwrap();
            }
        }
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn of(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no head: {:?}", String::from_utf8_lossy(bytes)));
        let head = String::from_utf8(bytes[..end].to_vec())
            .unwrap()
            .to_lowercase();
        let rest = &bytes[end + 4..];
        let body = match head.contains("transfer-encoding: chunked") {
            true => unchunked(rest),
            false => rest.to_vec(),
        };
        Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head,
            body,
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines();
        lines
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| *key == name)
            .map(|one| one.1)
    }

    /// The data of all events, the last of which is `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        let text = self.text();
        let mut events: Vec<&str> = text.split("\n\n").collect();
        assert_eq!(events.pop(), Some(""), "{text}");
        assert_eq!(events.pop(), Some("data: [DONE]"), "{text}");
        let data = events.iter().filter(|event| !event.starts_with(':'));
        data.map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
            .collect()
    }

    /// What an error says; its shape is that of OpenAI's.
    pub fn refusal(&self) -> (u16, String, Value, Value) {
        let json = self.json();
        assert_eq!(json.as_object().unwrap().len(), 1, "{json}");
        let error = json["error"].as_object().unwrap();
        let mut keys: Vec<&String> = error.keys().collect();
        keys.sort();
        assert_eq!(keys, ["code", "message", "param", "type"]);
        assert!(error["type"].is_string());
        let message = error["message"].as_str().unwrap().to_owned();
        (
            self.status,
            message,
            error["param"].clone(),
            error["code"].clone(),
        )
    }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&bytes[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 || bytes.len() < end + 2 + size {
            break;
        }
        all.extend(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 4 + size..];
    }
    all
}

/// Waits until something is so.
pub fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..1000 {
        if is_so() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}
