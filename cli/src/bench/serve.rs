//! `bench --serve`: this program starts again as a server, and clients on this machine ask it.
//!
//! The model that is measured beside it, in this process, is the same: how fast one and many sequences go on without a
//! server, while another thread is as busy as the clients were.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use rwkv_edge::{Model, Sampler, SamplerOptions};
use serde_json::{json, Value};

use super::{batch, decode_once, median, tokens, Args};
use crate::again::Program;

/// Clients that ask at once.
const CLIENTS: usize = 16;
/// Those that stream while a long prompt comes.
const STREAMING: usize = 8;
const LONG_PROMPT: usize = 8192;
/// Tokens of a short and of a long conversation.
const CONVERSATIONS: [usize; 2] = [100, 10_000];
/// Tokens of streams that are ended by hanging up.
const ENDLESS: usize = 1 << 20;
/// Tokens of a client's prompt, and of what a conversation goes on with.
const PROMPT: usize = 32;
/// What `--parallel` must be at least, for all clients at once.
const PARALLEL: &str = "32";

/// The server, which ends with this.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(args: &Args, program: &Program) -> Result<Self> {
        let mut command = program.command()?;
        command.args(["serve", "--listen", "127.0.0.1:0", "--parallel", PARALLEL]);
        command.args(args.model.to_arguments());
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start again")?;
        let stderr = child.stderr.take().context("the server has no stderr")?;
        let mut lines = BufReader::new(stderr);
        let mut said = String::new();
        let address = loop {
            let before = said.len();
            if lines.read_line(&mut said)? == 0 {
                bail!("the server ended: {}", said.trim());
            }
            if let Some((_, address)) = said[before..].split_once("listening on http://") {
                break address.trim().to_owned();
            }
        };
        // Its log must go somewhere, or it waits.
        std::thread::spawn(move || io::copy(&mut lines, &mut io::sink()));
        Ok(Server { child, address })
    }

    /// Asks for a completion and reads its stream.
    fn complete(&self, body: &Value) -> Result<Stream> {
        self.complete_until(body, &AtomicBool::new(false))
    }

    /// The same, and hangs up as soon as somebody says so.
    fn complete_until(&self, body: &Value, has_ended: &AtomicBool) -> Result<Stream> {
        let begin = Instant::now();
        let mut connection = TcpStream::connect(&self.address)?;
        connection.set_nodelay(true)?;
        let body = body.to_string();
        let request = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.address,
            body.len()
        );
        connection.write_all(request.as_bytes())?;
        let mut stream = Stream::default();
        let mut status = String::new();
        let mut lines = BufReader::new(connection);
        lines.read_line(&mut status)?;
        let mut line = String::new();
        while !has_ended.load(Ordering::Relaxed) && lines.read_line(&mut line)? > 0 {
            if !status.contains(" 200 ") {
                status += &line;
            }
            if let Some(event) = line.strip_prefix("data: ") {
                // Usage comes behind the last token; nothing else is parsed, so that clients cost little.
                match event.contains("\"usage\":{") {
                    true => stream.usage = serde_json::from_str::<Value>(event)?["usage"].take(),
                    false => stream.times.push(begin.elapsed()),
                }
            }
            line.clear();
        }
        ensure!(
            status.contains(" 200 "),
            "the server said {}",
            status.trim()
        );
        // The end of the stream is an event, too.
        stream.times.pop();
        Ok(stream)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// When the events of a stream came, from the request on.
#[derive(Default)]
struct Stream {
    times: Vec<Duration>,
    usage: Value,
}

impl Stream {
    fn first_ms(&self) -> f64 {
        self.times
            .first()
            .map_or(f64::NAN, |t| t.as_secs_f64() * 1e3)
    }

    /// Median of the times between tokens.
    fn between_ms(&self) -> f64 {
        let gaps = self.times.windows(2).map(|two| two[1] - two[0]);
        median(gaps.map(|gap| gap.as_secs_f64() * 1e3).collect())
    }

    fn n_tokens(&self) -> u64 {
        self.usage["completion_tokens"].as_u64().unwrap_or(0)
    }
}

fn request(prompt: &[u32], n: usize, end_of_text: u32) -> Value {
    // The demo model may end its text early; it is not to be measured how long it likes to talk.
    json!({
        "model": null, "prompt": prompt, "max_tokens": n, "temperature": 0, "stream": true,
        "stream_options": { "include_usage": true }, "logit_bias": { end_of_text.to_string(): -100 },
    })
}

pub(super) fn measure(args: &Args, model: &Model, program: &Program) -> Result<Value> {
    let server = Server::start(args, program)?;
    let text = tokens(model, LONG_PROMPT + CLIENTS)?;
    let n = args.max_new_tokens;
    let end_of_text = model.end_of_text();
    let ask = |i: usize, n| server.complete(&request(&text[i..i + PROMPT], n, end_of_text));
    ask(0, 4)?;

    // In turns, since on a shared machine speed moves.
    let (mut one, mut alone, mut many, mut beside) = (vec![], vec![], vec![], vec![]);
    let (mut batches, mut shares) = (vec![], vec![]);
    let mut session = model.try_session()?;
    let mut sampler = Sampler::new(SamplerOptions::default(), model.n_vocab())?;
    for _ in 0..args.rounds {
        let stream = ask(1, n)?;
        one.push(1e3 / stream.between_ms());
        alone.push(decode_once(&mut session, &mut sampler, &text[..n])?);
        let (speed, share) = ask_at_once(CLIENTS, |i| ask(i, n))?;
        many.push(speed);
        shares.push(share);
        batches.push(batch::speed(model, CLIENTS, n)?);
        beside.push(beside_load(share, || batch::speed(model, CLIENTS, n))?);
    }
    let [one, alone, many, batch, beside] = [one, alone, many, batches, beside].map(median);
    let mut report = json!({
        "one_client_tokens_per_s": one,
        "alone_tokens_per_s": alone,
        "clients": CLIENTS,
        "clients_tokens_per_s": many,
        "clients_cpu_cores": median(shares),
        "batch_tokens_per_s": batch,
        "batch_beside_load_tokens_per_s": beside,
    });
    report["conversations"] = conversations(&server, &text, end_of_text, args.rounds)?;
    report["long_prompt"] = long_prompt(&server, &text, end_of_text)?;
    Ok(report)
}

/// Tokens a second of all clients together, and how many cores the clients themselves took.
fn ask_at_once(n: usize, ask: impl Fn(usize) -> Result<Stream> + Sync) -> Result<(f64, f64)> {
    let (begin, cpu) = (Instant::now(), cpu_time()?);
    let streams: Vec<Result<Stream>> = std::thread::scope(|scope| {
        let ask = &ask;
        let clients: Vec<_> = (0..n).map(|i| scope.spawn(move || ask(i))).collect();
        let join = |client: std::thread::ScopedJoinHandle<'_, Result<Stream>>| {
            client.join().unwrap_or_else(|_| bail!("a client panicked"))
        };
        clients.into_iter().map(join).collect()
    });
    let seconds = begin.elapsed().as_secs_f64();
    let mut n_tokens = 0;
    for stream in streams {
        n_tokens += stream?.n_tokens();
    }
    let share = (cpu_time()? - cpu).as_secs_f64() / seconds;
    Ok((n_tokens as f64 / seconds, share))
}

/// What this process has taken of all cores.
fn cpu_time() -> Result<Duration> {
    #[cfg(unix)]
    let spent = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into();
    #[cfg(not(unix))]
    let spent = Duration::ZERO;
    Ok(spent)
}

/// Measures while other threads are busy for so many cores.
fn beside_load(n_cores: f64, work: impl FnOnce() -> Result<f64>) -> Result<f64> {
    const PERIOD: Duration = Duration::from_millis(5);
    let has_ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let n_threads = n_cores.ceil().max(1.0);
        for _ in 0..n_threads as usize {
            let (has_ended, share) = (&has_ended, n_cores / n_threads);
            scope.spawn(move || {
                while !has_ended.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    while begin.elapsed() < PERIOD.mul_f64(share) {
                        std::hint::spin_loop();
                    }
                    std::thread::sleep(PERIOD.saturating_sub(begin.elapsed()));
                }
            });
        }
        let outcome = work();
        has_ended.store(true, Ordering::Relaxed);
        outcome
    })
}

/// Time to the first token of a turn in a short and in a long conversation that the server keeps by name.
fn conversations(server: &Server, text: &[u32], end_of_text: u32, rounds: usize) -> Result<Value> {
    let mut all = Vec::new();
    for n in CONVERSATIONS {
        let mut beginning = request(&text[..n.min(text.len())], 1, end_of_text);
        // Longer than the text that is at hand: the server reads it twice.
        let mut left = n;
        beginning["session"] = json!(format!("bench {n}"));
        while left > 0 {
            let now = left.min(text.len());
            beginning["prompt"] = json!(&text[..now]);
            server.complete(&beginning)?;
            left -= now;
        }
        let mut first_ms = Vec::new();
        for i in 0..rounds {
            let mut turn = request(&text[i..i + PROMPT], 2, end_of_text);
            turn["session"] = beginning["session"].clone();
            first_ms.push(server.complete(&turn)?.first_ms());
        }
        all.push(json!({ "tokens": n, "first_token_ms": median(first_ms) }));
    }
    Ok(Value::Array(all))
}

/// A long prompt that comes while others stream: what it does to them, and they to it.
fn long_prompt(server: &Server, text: &[u32], end_of_text: u32) -> Result<Value> {
    let long = |first: u32| {
        // Nobody has asked this before.
        let mut prompt = text[..LONG_PROMPT].to_vec();
        prompt[0] = first;
        request(&prompt, 1, end_of_text)
    };
    let alone_ms = server.complete(&long(text[1]))?.first_ms();
    let has_ended = AtomicBool::new(false);
    let (mut undisturbed, mut disturbed) = (Vec::new(), Vec::new());
    let mut beside_ms = f64::NAN;
    std::thread::scope(|scope| -> Result<()> {
        let begin = Instant::now();
        let stream = |i: usize| {
            let prompt = request(&text[i..i + PROMPT], ENDLESS, end_of_text);
            let has_ended = &has_ended;
            move || {
                let asked = begin.elapsed();
                Ok::<_, anyhow::Error>((asked, server.complete_until(&prompt, has_ended)?))
            }
        };
        let streams: Vec<_> = (0..STREAMING).map(|i| scope.spawn(stream(i))).collect();
        std::thread::sleep(Duration::from_secs_f64(alone_ms / 2e3));
        let start = begin.elapsed();
        let beside = server.complete(&long(text[2]));
        let end = begin.elapsed();
        has_ended.store(true, Ordering::Relaxed);
        beside_ms = beside?.first_ms();
        for stream in streams {
            let (asked, stream) = stream
                .join()
                .unwrap_or_else(|_| bail!("a client panicked"))?;
            for two in stream.times.windows(2) {
                let at = asked + two[0];
                let gap = (two[1] - two[0]).as_secs_f64() * 1e3;
                match at {
                    at if at < start => undisturbed.push(gap),
                    at if at < end => disturbed.push(gap),
                    _ => {}
                }
            }
        }
        Ok(())
    })?;
    Ok(json!({
        "tokens": LONG_PROMPT, "streams": STREAMING,
        "alone_ms": alone_ms, "beside_streams_ms": beside_ms,
        "between_tokens_ms": median(undisturbed), "between_tokens_beside_ms": median(disturbed),
    }))
}

pub(super) fn print(report: &Value, out: &mut impl Write) -> io::Result<()> {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let share = |part: &str, whole: &str| 100.0 * number(&report[part]) / number(&report[whole]);
    writeln!(
        out,
        "serve     one client: {:.1} tokens/s, {:.0} % of without a server",
        number(&report["one_client_tokens_per_s"]),
        share("one_client_tokens_per_s", "alone_tokens_per_s"),
    )?;
    writeln!(
        out,
        "serve     {} clients: {:.1} tokens/s, {:.0} % of as many sequences beside a load like theirs ({:.2} cores)",
        report["clients"],
        number(&report["clients_tokens_per_s"]),
        share("clients_tokens_per_s", "batch_beside_load_tokens_per_s"),
        number(&report["clients_cpu_cores"]),
    )?;
    for one in report["conversations"].as_array().into_iter().flatten() {
        let (n, ms) = (&one["tokens"], number(&one["first_token_ms"]));
        writeln!(
            out,
            "serve     a turn behind {n} tokens: first token after {ms:.1} ms"
        )?;
    }
    let long = &report["long_prompt"];
    writeln!(
        out,
        "serve     a prompt of {} tokens beside {} streams: {:.2} times their time between tokens, {:.0} % of its speed alone",
        long["tokens"],
        long["streams"],
        number(&long["between_tokens_beside_ms"]) / number(&long["between_tokens_ms"]),
        100.0 * number(&long["alone_ms"]) / number(&long["beside_streams_ms"]),
    )
}
