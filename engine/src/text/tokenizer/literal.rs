//! Python string and bytes literals to bytes, as `ast.literal_eval` reads them.
//!
//! Input: one literal, `'…'`, `"…"`, `b'…'` or `b"…"`, without the space around it. Output: what it
//! stands for, a string in UTF-8. Python's other forms (raw, triple-quoted, joined) are refused:
//! `repr()`, which writes vocabularies, has no use for them.

#![forbid(unsafe_code)]

/// What is wrong with a literal.
type Result<T> = std::result::Result<T, String>;

/// Appends what a literal stands for.
pub(super) fn unescape(literal: &str, out: &mut Vec<u8>) -> Result<()> {
    let (is_bytes, quoted) = match literal.strip_prefix('b') {
        Some(quoted) => (true, quoted),
        None => (false, literal),
    };
    let Some(quote) = quoted.chars().next().filter(|c| matches!(c, '\'' | '"')) else {
        return Err("no literal, expected '…' or b'…'".into());
    };
    let no_end = || format!("a literal without its closing {quote}");
    let mut rest = quoted[1..].strip_suffix(quote).ok_or_else(no_end)?;
    if is_bytes && !rest.is_ascii() {
        return Err("a bytes literal with a character beyond ASCII".into());
    }
    while let Some(at) = rest.find(['\\', quote]) {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        if rest[at..].starts_with(quote) {
            return Err(format!("a literal that goes on behind its closing {quote}"));
        }
        let escape = &rest[at + 1..];
        // `'\'`: what looked like the closing quote belongs to the escape.
        let c = escape.chars().next().ok_or_else(no_end)?;
        rest = push_escape(c, &escape[c.len_utf8()..], is_bytes, out)?;
    }
    out.extend_from_slice(rest.as_bytes());
    Ok(())
}

/// Appends what backslash and `c` with the digits behind it stand for; returns what follows them.
fn push_escape<'a>(c: char, rest: &'a str, is_bytes: bool, out: &mut Vec<u8>) -> Result<&'a str> {
    let plain = match c {
        '\\' | '\'' | '"' => c as u8,
        'a' => 0x07,
        'b' => 0x08,
        't' => b'\t',
        'n' => b'\n',
        'v' => 0x0b,
        'f' => 0x0c,
        'r' => b'\r',
        '0'..='7' => return push_octal(c, rest, is_bytes, out),
        'x' => return push_hexadecimal(c, 2, rest, is_bytes, out),
        'u' if !is_bytes => return push_hexadecimal(c, 4, rest, is_bytes, out),
        'U' if !is_bytes => return push_hexadecimal(c, 8, rest, is_bytes, out),
        'N' if !is_bytes => return Err("a character by its name, \\N, which is not known".into()),
        other => {
            // Python leaves what is no escape as it is, backslash included.
            out.push(b'\\');
            out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes());
            return Ok(rest);
        }
    };
    out.push(plain);
    Ok(rest)
}

/// One to three digits.
fn push_octal<'a>(
    first: char,
    rest: &'a str,
    is_bytes: bool,
    out: &mut Vec<u8>,
) -> Result<&'a str> {
    let mut value = first.to_digit(8).unwrap_or(0);
    let mut digits = 0;
    for digit in rest.chars().take(2).map_while(|c| c.to_digit(8)) {
        value = 8 * value + digit;
        digits += 1;
    }
    push_value(value, is_bytes, out)?;
    Ok(&rest[digits..])
}

/// Exactly `digits` digits.
fn push_hexadecimal<'a>(
    c: char,
    digits: usize,
    rest: &'a str,
    is_bytes: bool,
    out: &mut Vec<u8>,
) -> Result<&'a str> {
    let value = rest
        .get(..digits)
        .filter(|number| number.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .and_then(|number| u32::from_str_radix(number, 16).ok())
        .ok_or_else(|| format!("an escape \\{c} without its {digits} hexadecimal digits"))?;
    push_value(value, is_bytes, out)?;
    Ok(&rest[digits..])
}

fn push_value(value: u32, is_bytes: bool, out: &mut Vec<u8>) -> Result<()> {
    if is_bytes {
        // Python takes the low eight bits of b'\400'.
        out.push((value & 0xff) as u8);
        return Ok(());
    }
    match char::from_u32(value) {
        Some(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        None => {
            return Err(format!(
                "an escape for U+{value:04X}, which is no character"
            ))
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::unescape;

    fn bytes(literal: &str) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        unescape(literal, &mut out).map(|()| out)
    }

    /// Expected values are those of Python 3.11's ast.literal_eval, strings encoded as UTF-8.
    #[test]
    fn literals_are_what_python_makes_of_them() {
        let cases: [(&str, &[u8]); 32] = [
            ("''", b""),
            ("b\"\"", b""),
            ("'a b'", b"a b"),
            ("\"it's\"", b"it's"),
            ("'say \"x\"'", b"say \"x\""),
            (r"'it\'s'", b"it's"),
            (r#""\"""#, b"\""),
            (r"'\''", b"'"),
            (r"'\\'", b"\\"),
            (r"'\\\\n'", b"\\\\n"),
            (r"'\n\t\r\a\b\f\v'", b"\n\t\r\x07\x08\x0c\x0b"),
            (r"'\0'", b"\0"),
            (r"'\08'", b"\x008"),
            (r"'\1234'", b"S4"),
            (r"'\777'", "\u{1ff}".as_bytes()),
            (r"b'\777\400'", b"\xff\x00"),
            (r"'\x7f'", b"\x7f"),
            (r"'\x80\xff'", "\u{80}\u{ff}".as_bytes()),
            (r"b'\x80\xff'", b"\x80\xff"),
            (r"b'\xe4\xbdZ'", b"\xe4\xbdZ"),
            (r"'\u200b'", "\u{200b}".as_bytes()),
            (r"'\uFFFD\U0001F600'", "\u{fffd}\u{1f600}".as_bytes()),
            (r"'\u00e9e'", "ée".as_bytes()),
            (r"b'\u00e9'", br"\u00e9"),
            (r"b'\N{DASH}'", br"\N{DASH}"),
            (r"'\d\é'", r"\d\é".as_bytes()),
            (r"b'\d'", br"\d"),
            ("'龍 é'", "龍 é".as_bytes()),
            ("'\t'", b"\t"),
            (r#"b'"'"#, b"\""),
            (r"'\'\\'", b"'\\"),
            (r"'\x4a\x4B'", b"JK"),
        ];
        for (literal, expected) in cases {
            assert_eq!(bytes(literal).as_deref(), Ok(expected), "{literal}");
        }
    }

    #[test]
    fn what_python_refuses_and_what_repr_never_writes() {
        let cases = [
            ("", "no literal"),
            ("a", "no literal"),
            ("r'a'", "no literal"),
            ("b", "no literal"),
            ("'", "closing '"),
            ("'a", "closing '"),
            ("'a\"", "closing '"),
            ("\"a'", "closing \""),
            (r"'\'", "closing '"),
            (r"'a\\\'", "closing '"),
            ("'a'b'", "behind its closing '"),
            ("'a''b'", "behind its closing '"),
            (r"'\x'", "2 hexadecimal digits"),
            (r"'\x4'", "2 hexadecimal digits"),
            (r"b'\x4g'", "2 hexadecimal digits"),
            (r"'\x+1'", "2 hexadecimal digits"),
            (r"'\xé'", "2 hexadecimal digits"),
            (r"'\u12'", "4 hexadecimal digits"),
            (r"'\U0001F60'", "8 hexadecimal digits"),
            (r"'\ud800'", "U+D800"),
            (r"'\U00110000'", "U+110000"),
            (r"'\N{DASH}'", "\\N"),
            ("b'é'", "beyond ASCII"),
        ];
        for (literal, part) in cases {
            let error = bytes(literal).expect_err(literal);
            assert!(error.contains(part), "{literal}: {error}");
        }
    }
}
