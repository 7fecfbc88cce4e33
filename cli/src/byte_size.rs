//! Numbers of bytes on the command line.

use std::str::FromStr;

/// A number of bytes: `5GB` is 5 * 1000^3, as transformers writes it, `5GiB` and `5G` are 5 * 1024^3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = text[digits.len()..].to_ascii_uppercase();
        let factor: f64 = match &unit[..] {
            "" | "B" => 1.0,
            "KB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            "TB" => 1e12,
            "K" | "KIB" => f64::from(1 << 10),
            "M" | "MIB" => f64::from(1 << 20),
            "G" | "GIB" => f64::from(1 << 30),
            "T" | "TIB" => 1024.0 * f64::from(1 << 30),
            _ => {
                return Err(format!(
                    "unit {unit}, expected K, M, G or T, KB, MB, GB or TB, KiB, MiB, GiB or TiB"
                ))
            }
        };
        // Between a number and its unit there may be a space.
        let number = match unit.is_empty() {
            true => digits,
            false => digits.trim_end(),
        };
        let is_plain = |byte: u8| byte.is_ascii_digit() || byte == b'.';
        let number = match number.bytes().all(is_plain) {
            true => number.parse::<f64>().ok(),
            false => None,
        };
        let bytes = number.ok_or_else(|| format!("{digits:?} is no number"))? * factor;
        if factor == 1.0 && bytes.fract() != 0.0 {
            return Err("expected a whole number of bytes, or a unit behind it".to_owned());
        }
        // Beyond 2^53 not every integer has an f64, and no disk has so much.
        if !(1.0..=9e15).contains(&bytes) {
            return Err("expected 1 byte to 9,000 TB".to_owned());
        }
        Ok(ByteSize(bytes as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_sizes() {
        let cases = [
            ("5GB", Some(5_000_000_000)),
            ("300KB", Some(300_000)),
            ("2gb", Some(2_000_000_000)),
            ("1.5 MB", Some(1_500_000)),
            ("10MiB", Some(10 << 20)),
            (" 10MiB ", None),
            ("1 ", None),
            ("1.5", None),
            ("1e3", None),
            ("1e3K", None),
            ("+1K", None),
            ("1GiB", Some(1 << 30)),
            ("1TB", Some(1_000_000_000_000)),
            ("4096", Some(4096)),
            ("7B", Some(7)),
            ("", None),
            ("96M", Some(96 << 20)),
            ("64k", Some(64 << 10)),
            ("1G", Some(1 << 30)),
            ("GB", None),
            ("5XB", None),
            ("-5GB", None),
            ("0", None),
            ("0.1", None),
            ("inf", None),
            ("nanGB", None),
            ("1e30GB", None),
        ];
        for (text, expected) in cases {
            let found = text.parse::<ByteSize>().ok();
            assert_eq!(found, expected.map(ByteSize), "{text:?}");
        }
    }
}
