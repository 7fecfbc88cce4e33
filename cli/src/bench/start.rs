//! What a new process needs for its first token: `bench` starts this program again.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{bail, Context, Result};
use serde_json::Value;

use super::{median, Args};
use crate::again::Program;

/// What a new process needs for its first token; `None` for made-up weights, which no file holds.
#[derive(Default)]
pub(super) struct Start {
    pub(super) first_token_ms: Option<f64>,
    pub(super) peak_rss_bytes: Option<u64>,
    pub(super) private_bytes: Option<u64>,
}

pub(super) fn start(args: &Args, has_tokenizer: bool, program: &Program) -> Result<Start> {
    if args.synthetic.is_some() {
        return Ok(Start::default());
    }
    let run = |n: &str| -> Result<(f64, Value)> {
        let mut command = program.command()?;
        command.args(["generate", "--json", "--ignore-eos", "-n", n]);
        command.args(args.model.to_arguments());
        // With a tokenizer a prompt of one token makes it be opened too.
        match has_tokenizer {
            true => command.arg(" a"),
            false => command.args(["--tokens", "1"]),
        };
        let start = Instant::now();
        let output = command
            .stdin(Stdio::null())
            .output()
            .context("cannot start again")?;
        let time_ms = start.elapsed().as_secs_f64() * 1e3;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok((time_ms, serde_json::from_slice(&output.stdout)?))
    };
    let mut first_token_ms = Vec::new();
    for _ in 0..args.rounds {
        first_token_ms.push(run("1")?.0);
    }
    let (_, memory) = run("32")?;
    Ok(Start {
        first_token_ms: Some(median(first_token_ms)),
        peak_rss_bytes: memory["peak_rss_bytes"].as_u64(),
        private_bytes: memory["private_bytes"].as_u64(),
    })
}
