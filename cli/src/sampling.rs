//! Options of every command that draws tokens.

use std::hash::{BuildHasher, Hasher};

use anyhow::Result;
use clap::ValueEnum;
use rwkv_edge::{Model, SamplerOptions};

use crate::args::{some_tokens, TokenList};
use crate::note;
use crate::numbers::{self, whole};

/// How tokens are chosen. What is not given is the preset's, or else the engine's default.
#[derive(clap::Args, Clone)]
pub(crate) struct SamplingArgs {
    /// Settings for a purpose: pip, chat, creative, precise, maths
    ///
    /// What RWKV's author and rwkv.cn recommend, all with --temperature-last; options beside it replace its own.
    /// pip, of the rwkv package: temperature 1, top-p 0.85, presence and frequency penalty 0.2, penalty
    /// decay 0.996; the frequency penalty does not count spaces and digits. chat, of the official demo: temperature 1, top-p 0.3, both penalties 0.5, decay 0.996.
    /// creative: temperature 1.4, top-p 0.4, penalties of pip. precise: temperature 1, top-p 0.2, no
    /// penalties. maths: temperature 0.3, top-p 0.3, no penalties.
    #[arg(long, value_name = "NAME", hide_possible_values = true)]
    preset: Option<Preset>,

    /// Variety; 0: always the likeliest token [default: 0]
    ///
    /// Divides the scores before a token is drawn.
    #[arg(long, value_name = "T", value_parser = numbers::not_negative)]
    temperature: Option<f32>,

    /// Choose who may be drawn before the temperature
    ///
    /// As ChatRWKV and the rwkv package do: top-p, then top-k, then the others see the probabilities at
    /// temperature 1, and the temperature is applied to what they leave. Without it the temperature comes
    /// first, then top-k, top-p, min-p, typical-p and mirostat, as in transformers.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    temperature_last: Option<bool>,

    /// Draw from the likeliest, P together [default: 1]
    ///
    /// The likeliest tokens whose probabilities together reach P; 1: off.
    #[arg(long, value_name = "P", value_parser = numbers::share)]
    top_p: Option<f32>,

    /// Draw only from so many of the likeliest tokens; 0: off [default: 0]
    #[arg(long, value_name = "K", value_parser = whole::<usize>(0..=u64::MAX))]
    top_k: Option<usize>,

    /// Draw only tokens with P times the probability of the likeliest; 0: off [default: 0]
    #[arg(long, value_name = "P", value_parser = numbers::share)]
    min_p: Option<f32>,

    /// Draw from the most typical, P together; 1: off [default: 1]
    ///
    /// Locally typical sampling: the tokens that are about as surprising as is to be expected, the
    /// nearest first, until their probabilities together reach P.
    #[arg(long, value_name = "P", value_parser = numbers::share)]
    typical_p: Option<f32>,

    /// Mirostat (version 2): tokens as surprising as X bits on average; 0: off [default: 0]
    ///
    /// Leaves out what is more surprising than a limit, which follows what was drawn. 5 is usual. In
    /// llama.cpp it is --mirostat 2 --mirostat-ent X.
    #[arg(long, value_name = "X", value_parser = numbers::not_negative)]
    mirostat_tau: Option<f32>,

    /// Mirostat: how fast its limit follows [default: 0.1]
    #[arg(long, value_name = "X", value_parser = numbers::not_negative, requires = "mirostat_tau")]
    mirostat_eta: Option<f32>,

    /// Lowers tokens that were generated before by so much; 0: off [default: 0]
    #[arg(long, value_name = "X", value_parser = numbers::finite)]
    presence_penalty: Option<f32>,

    /// Lowers a token by so much for each time it was generated before; 0: off [default: 0]
    #[arg(long, value_name = "X", value_parser = numbers::finite)]
    frequency_penalty: Option<f32>,

    /// With every new token the frequency penalty's counts are multiplied by P; 1: off [default: 1]
    ///
    /// So that what was said long ago matters less; 0.996 is usual. The presence penalty does not decay.
    #[arg(long, value_name = "P", value_parser = numbers::share)]
    penalty_decay: Option<f32>,

    /// Divides the positive and multiplies the negative scores of tokens that were generated before;
    /// 1: off [default: 1]
    #[arg(long, value_name = "X", value_parser = numbers::above_zero)]
    repetition_penalty: Option<f32>,

    /// Never choose these tokens, such as 0,261; may be repeated
    ///
    /// Not by drawing, and not as the likeliest either. `tokenize` shows the ids of a text.
    #[arg(long, value_name = "IDS", value_parser = some_tokens)]
    ban_token: Vec<TokenList>,

    /// Seed of the draws [default: another each time]
    ///
    /// The same seed gives the same text.
    #[arg(long, value_name = "N", value_parser = whole::<u64>(0..=u64::MAX))]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// What was asked for; a line on stderr names options that do nothing.
    pub(crate) fn options(&self, model: &Model) -> Result<SamplerOptions> {
        let options = self.options_without_text();
        match self.preset {
            Some(preset) => Ok(options.uncounted_tokens(preset.uncounted_tokens(model)?)),
            None => Ok(options),
        }
    }

    /// All but what depends on the texts of tokens.
    fn options_without_text(&self) -> SamplerOptions {
        let mut options = self.preset.map(Preset::options).unwrap_or_default();
        let set = |field: &mut f32, given: Option<f32>| *field = given.unwrap_or(*field);
        set(&mut options.temperature, self.temperature);
        set(&mut options.top_p, self.top_p);
        set(&mut options.min_p, self.min_p);
        set(&mut options.typical_p, self.typical_p);
        set(&mut options.mirostat_eta, self.mirostat_eta);
        set(&mut options.presence_penalty, self.presence_penalty);
        set(&mut options.frequency_penalty, self.frequency_penalty);
        set(&mut options.penalty_decay, self.penalty_decay);
        set(&mut options.repetition_penalty, self.repetition_penalty);
        let is_last = self.temperature_last.unwrap_or(options.temperature_last);
        let banned: Vec<u32> = self
            .ban_token
            .iter()
            .flat_map(|ids| ids.0.clone())
            .collect();
        let options = options
            .temperature_last(is_last)
            .top_k(self.top_k.unwrap_or(0))
            .mirostat_tau(self.mirostat_tau.unwrap_or(0.0))
            .banned_tokens(banned)
            .seed(self.seed.unwrap_or_else(random_seed));
        self.note_unused(&options);
        options
    }

    /// Without a temperature nothing is drawn.
    fn note_unused(&self, options: &SamplerOptions) {
        if options.temperature > 0.0 {
            return;
        }
        let given = [
            ("--temperature-last", self.temperature_last.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--top-k", self.top_k.is_some()),
            ("--min-p", self.min_p.is_some()),
            ("--typical-p", self.typical_p.is_some()),
            ("--mirostat-tau", self.mirostat_tau.is_some()),
        ];
        let names: Vec<&str> = given.iter().filter(|(_, is)| *is).map(|of| of.0).collect();
        if !names.is_empty() {
            note!(
                "{} without effect: at temperature 0 nothing is drawn",
                names.join(", ")
            );
        }
    }
}

/// Settings that go together. BlinkDL means all of them for a temperature that is applied last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Preset {
    /// The defaults of the `rwkv` package (PIPELINE_ARGS).
    Pip,
    /// The official chat demo.
    Chat,
    /// For stories. rwkv.cn gives temperature and top-p and says nothing of penalties, so they are those that
    /// the package has where nothing is said.
    Creative,
    /// What rwkv.cn calls mechanical: summaries, answers from a text. It sets the penalties to 0.
    Precise,
    /// BlinkDL's for mathematics with the G models.
    Maths,
}

impl Preset {
    /// All else is off.
    pub(crate) fn options(self) -> SamplerOptions {
        let (temperature, top_p, penalty) = match self {
            Preset::Pip => (1.0, 0.85, 0.2),
            Preset::Chat => (1.0, 0.3, 0.5),
            Preset::Creative => (1.4, 0.4, 0.2),
            Preset::Precise => (1.0, 0.2, 0.0),
            Preset::Maths => (0.3, 0.3, 0.0),
        };
        SamplerOptions::new()
            .temperature(temperature)
            .temperature_last(true)
            .top_p(top_p)
            .presence_penalty(penalty)
            .frequency_penalty(penalty)
            .penalty_decay(if penalty == 0.0 { 1.0 } else { 0.996 })
    }
}

impl Preset {
    /// Tokens whose frequency does not matter: the `rwkv` package leaves out spaces and digits, the official chat
    /// demo nothing. Without a tokenizer nobody knows them.
    pub(crate) fn uncounted_tokens(self, model: &Model) -> Result<Vec<u32>> {
        match self {
            Preset::Pip | Preset::Creative if model.has_tokenizer() => {
                Ok(model.tokenizer()?.tokens_of_spaces_and_digits()?)
            }
            _ => Ok(Vec::new()),
        }
    }
}

/// All settings but the seed, in words.
pub(crate) fn in_words(options: &SamplerOptions) -> String {
    let last = match options.temperature_last {
        true => " (last)",
        false => "",
    };
    let top_k = options.top_k.map_or(0, |k| k.get());
    let mirostat = match options.mirostat_tau {
        Some(tau) => format!(", mirostat tau {tau} eta {}", options.mirostat_eta),
        None => String::new(),
    };
    let banned = match options.banned_tokens.len() {
        0 => String::new(),
        n => format!("; {n} tokens banned"),
    };
    let uncounted = match options.uncounted_tokens.len() {
        0 => String::new(),
        n => format!("; {n} tokens not counted"),
    };
    format!(
        "temperature {}{last}, top-p {}, top-k {top_k}, min-p {}, typical-p {}{mirostat}; penalties {} \
         presence, {} frequency, decay {}, {} repetition{banned}{uncounted}",
        options.temperature,
        options.top_p,
        options.min_p,
        options.typical_p,
        options.presence_penalty,
        options.frequency_penalty,
        options.penalty_decay,
        options.repetition_penalty,
    )
}

/// Whether what was generated before, or random numbers, decide what follows.
pub(crate) fn draws_or_penalises(options: &SamplerOptions) -> bool {
    let penalties = [options.presence_penalty, options.frequency_penalty];
    options.temperature > 0.0
        || options.repetition_penalty != 1.0
        || penalties.iter().any(|&penalty| penalty != 0.0)
}

/// Differs from run to run: the standard library seeds its hash maps from the system's randomness.
fn random_seed() -> u64 {
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    fn options(args: &[&str]) -> SamplerOptions {
        let all = ["x", "--seed", "7"].iter().chain(args);
        Command::parse_from(all).sampling.options_without_text()
    }

    fn recommended(temperature: f32, top_p: f32, penalty: f32, decay: f32) -> SamplerOptions {
        SamplerOptions::new()
            .temperature(temperature)
            .temperature_last(true)
            .top_p(top_p)
            .presence_penalty(penalty)
            .frequency_penalty(penalty)
            .penalty_decay(decay)
            .seed(7)
    }

    #[test]
    fn presets_are_what_is_recommended() {
        assert_eq!(options(&[]), SamplerOptions::new().seed(7));
        for (name, expected) in [
            ("pip", recommended(1.0, 0.85, 0.2, 0.996)),
            ("chat", recommended(1.0, 0.3, 0.5, 0.996)),
            ("creative", recommended(1.4, 0.4, 0.2, 0.996)),
            ("precise", recommended(1.0, 0.2, 0.0, 1.0)),
            ("maths", recommended(0.3, 0.3, 0.0, 1.0)),
        ] {
            assert_eq!(options(&["--preset", name]), expected, "{name}");
        }
    }

    #[test]
    fn options_beside_a_preset_win() {
        let pip = || recommended(1.0, 0.85, 0.2, 0.996);
        for (args, expected) in [
            (&["--temperature", "0.5"][..], pip().temperature(0.5)),
            (&["--temperature", "0"], pip().temperature(0.0)),
            (&["--top-p", "1"], pip().top_p(1.0)),
            (&["--presence-penalty", "0"], pip().presence_penalty(0.0)),
            (
                &["--frequency-penalty", "0.7"],
                pip().frequency_penalty(0.7),
            ),
            (&["--penalty-decay", "1"], pip().penalty_decay(1.0)),
            (&["--temperature-last=false"], pip().temperature_last(false)),
            (&["--temperature-last"], pip()),
            (
                &["--top-k", "9", "--min-p", "0.1"],
                pip().top_k(9).min_p(0.1),
            ),
            (&["--typical-p", "0.9"], pip().typical_p(0.9)),
            (
                &["--mirostat-tau", "4", "--mirostat-eta", "0.2"],
                pip().mirostat_tau(4.0).mirostat_eta(0.2),
            ),
            (
                &["--ban-token", "3,4", "--ban-token", "9"],
                pip().banned_tokens([3, 4, 9]),
            ),
        ] {
            let behind = [&["--preset", "pip"], args].concat();
            let before = [args, &["--preset", "pip"]].concat();
            assert_eq!(options(&behind), expected, "{args:?}");
            assert_eq!(options(&before), expected, "{args:?}");
        }
    }

    #[test]
    fn words_name_what_is_not_the_default() {
        let pip = in_words(&Preset::Pip.options());
        assert!(pip.starts_with("temperature 1 (last), top-p 0.85, top-k 0, min-p 0, typical-p 1;"));
        assert!(pip.ends_with("0.2 presence, 0.2 frequency, decay 0.996, 1 repetition"));
        let other = in_words(
            &SamplerOptions::new()
                .mirostat_tau(5.0)
                .banned_tokens([1, 2]),
        );
        assert!(other.contains("mirostat tau 5 eta 0.1") && other.ends_with("2 tokens banned"));
    }
}
