//! Formats of strings as regexes of their own. Each is a part of what the format allows: what matches is always valid,
//! such as dates that exist, and what is rare, such as addresses with comments, does not match.

/// A year that has a 29th of February, of 0000 to 9999.
macro_rules! leap_year {
    () => {
        "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
    };
}

macro_rules! date {
    () => {
        concat!(
            "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])",
            "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))",
            "|",
            leap_year!(),
            "-02-29)"
        )
    };
}

/// Without leap seconds.
macro_rules! time {
    () => {
        concat!(
            "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?",
            "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
        )
    };
}

macro_rules! byte {
    () => {
        "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    };
}

macro_rules! ipv4 {
    () => {
        concat!("(?:", byte!(), "\\.){3}", byte!())
    };
}

/// Without hyphens side by side, which stand for other alphabets.
macro_rules! label {
    () => {
        "[A-Za-z](?:-?[A-Za-z0-9]){0,30}"
    };
}

/// Up to 4 labels, 247 characters.
macro_rules! hostname {
    () => {
        concat!(label!(), "(?:\\.", label!(), "){0,3}")
    };
}

const GROUP: &str = "[0-9A-Fa-f]{1,4}";

/// The formats, but for ipv6.
const FORMATS: [(&str, &str); 8] = [
    ("date", date!()),
    ("time", time!()),
    ("date-time", concat!(date!(), "T", time!())),
    (
        "duration",
        concat!(
            "P(?:[0-9]+W|(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)",
            "(?:T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S))?",
            "|T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S))"
        ),
    ),
    (
        "email",
        concat!(
            "[A-Za-z0-9!#$%&'*+\\-/=?\\^_`{|}~]{1,20}(?:\\.[A-Za-z0-9!#$%&'*+\\-/=?\\^_`{|}~]{1,20}){0,2}@",
            hostname!()
        ),
    ),
    ("hostname", hostname!()),
    ("ipv4", ipv4!()),
    (
        "uuid",
        "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}",
    ),
];

const URI: &str = concat!(
    "[A-Za-z][A-Za-z0-9+.\\-]{0,20}://",
    hostname!(),
    "(?::[1-9][0-9]{0,3})?",
    "(?:/(?:[A-Za-z0-9\\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})*)*",
    "(?:\\?(?:[A-Za-z0-9\\-._~!$&'()*+,;=:@/?]|%[0-9A-Fa-f]{2})*)?",
    "(?:#(?:[A-Za-z0-9\\-._~!$&'()*+,;=:@/?]|%[0-9A-Fa-f]{2})*)?"
);

/// The regex for a format, which a whole string matches.
pub(super) fn regex(format: &str) -> Option<String> {
    match format {
        "ipv6" => Some(ipv6()),
        "uri" => Some(URI.to_owned()),
        _ => {
            let found = FORMATS.iter().find(|(name, _)| *name == format);
            found.map(|(_, regex)| (*regex).to_owned())
        }
    }
}

/// The names of all formats, for error texts.
pub(super) fn names() -> String {
    let mut names: Vec<&str> = FORMATS.iter().map(|(name, _)| *name).collect();
    names.extend(["ipv6", "uri"]);
    names.sort_unstable();
    names.join(", ")
}

/// Eight groups, or fewer around two colons.
fn ipv6() -> String {
    let mut forms = vec![format!("(?:{GROUP}:){{7}}{GROUP}")];
    for before in 0..=6 {
        let after = 6 - before;
        let head = match before {
            0 => String::new(),
            n => format!("{GROUP}(?::{GROUP}){{{}}}", n - 1),
        };
        let tail = match after {
            0 => String::new(),
            n => format!("(?:{GROUP}(?::{GROUP}){{0,{}}})?", n - 1),
        };
        forms.push(format!("{head}::{tail}"));
    }
    format!("(?:{})", forms.join("|"))
}
