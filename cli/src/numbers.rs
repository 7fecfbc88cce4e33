//! Numbers on the command line: what is no such number, or out of range, is wrong usage and named as the
//! value of its option.

use std::ops::RangeInclusive;

use clap::Command;

/// Options that take numbers. Values that begin with a hyphen are theirs: `--seed -1` is a bad seed and not an
/// option `-1` that nobody knows.
const OPTIONS: &[&str] = &[
    "ban_token",
    "calibrate_tokens",
    "chunk",
    "drain",
    "frequency_penalty",
    "limit",
    "max_device_memory",
    "max_memory",
    "max_new_tokens",
    "max_shard_size",
    "max_tokens",
    "min_p",
    "mirostat_eta",
    "mirostat_tau",
    "penalty_decay",
    "parallel",
    "presence_penalty",
    "prompt_tokens",
    "repetition_penalty",
    "rounds",
    "seed",
    "sequences",
    "size",
    "state_disk",
    "state_memory",
    "stride",
    "synthetic",
    "target_bits",
    "target_size",
    "temperature",
    "threads",
    "tokens",
    "top_k",
    "top_p",
    "typical_p",
    "window",
];

/// Threads of a model at most, as the engine has it.
pub(crate) const THREADS_MAX: u64 = 1024;

/// Lets the options that take numbers have values with a hyphen in front.
pub(crate) fn allow_hyphens(command: Command) -> Command {
    let command = command.mut_args(|arg| match OPTIONS.contains(&arg.get_id().as_str()) {
        true => arg.allow_hyphen_values(true),
        false => arg,
    });
    command.mut_subcommands(allow_hyphens)
}

/// A whole number within a range.
pub(crate) fn whole<T: TryFrom<u64>>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| match *range.end() {
            u64::MAX => format!("expected a whole number, at least {}", range.start()),
            end => format!("expected a whole number from {} to {end}", range.start()),
        })
    }
}

/// A number that is neither infinite nor NaN.
pub(crate) fn finite(text: &str) -> Result<f32, String> {
    float(text, |_| true, "expected a number")
}

/// A share of a whole.
pub(crate) fn share(text: &str) -> Result<f32, String> {
    let is_share = |number| (0.0..=1.0).contains(&number);
    float(text, is_share, "expected a number from 0 to 1")
}

/// A number that is at least 0.
pub(crate) fn not_negative(text: &str) -> Result<f32, String> {
    float(
        text,
        |number| number >= 0.0,
        "expected a number, at least 0",
    )
}

/// A number that may divide.
pub(crate) fn above_zero(text: &str) -> Result<f32, String> {
    float(text, |number| number > 0.0, "expected a number above 0")
}

fn float(text: &str, is_right: fn(f32) -> bool, expected: &str) -> Result<f32, String> {
    let number = text.parse().ok().filter(|number: &f32| number.is_finite());
    let number = number.filter(|number| is_right(*number));
    number.ok_or_else(|| expected.to_owned())
}

/// A text that something may end before.
pub(crate) fn stop_text(text: &str) -> Result<String, String> {
    match text.is_empty() {
        true => Err("expected at least one character".to_owned()),
        false => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An option that is not listed would be told from its value by the hyphen.
    #[test]
    fn every_option_that_takes_a_number_is_listed() {
        fn check(command: &Command) {
            for arg in command.get_arguments() {
                let names = arg.get_value_names().unwrap_or_default();
                let is_number = names.iter().any(|name| {
                    ["N", "T", "P", "K", "X", "SIZE", "IDS", "LIST", "LIMITS"]
                        .contains(&name.as_str())
                });
                let has_choices = !arg.get_possible_values().is_empty();
                if is_number && !has_choices {
                    let id = arg.get_id().as_str();
                    assert!(OPTIONS.contains(&id), "{} {id}", command.get_name());
                }
            }
            command.get_subcommands().for_each(check);
        }
        check(&crate::help::command());
    }

    #[test]
    fn numbers_are_within_their_ranges() {
        let some = whole::<usize>(2..=9);
        assert_eq!((some("2"), some("9")), (Ok(2), Ok(9)));
        for text in ["1", "10", "-3", "", "2.5", "x", "99999999999999999999"] {
            let error = some(text).expect_err(text);
            assert_eq!(error, "expected a whole number from 2 to 9");
        }
        assert!(whole::<u64>(0..=u64::MAX)("18446744073709551615").is_ok());
        assert_eq!((share("1"), finite("-2.5")), (Ok(1.0), Ok(-2.5)));
        for text in ["nan", "inf", "-inf", "1e99", "", "x"] {
            assert!(finite(text).is_err() && share(text).is_err(), "{text}");
        }
        assert!(share("1.1").is_err() && share("-0.1").is_err());
        assert!(above_zero("0").is_err() && above_zero("1e-3").is_ok());
    }
}
