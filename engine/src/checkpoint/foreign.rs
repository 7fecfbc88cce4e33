//! What files turn out to be that should have been weights or JSON: pages of a web server, pointers of Git
//! LFS, files of other programs.

#![forbid(unsafe_code)]

use crate::error::Error;
use crate::files::SourceFile;

/// Bytes that are looked at.
const START_BYTES: u64 = 512;

/// What a tar archive has behind its first name and numbers.
const TAR_MARK: (usize, &[u8]) = (257, b"ustar");

/// What stands in place of any file when a download has gone wrong: nothing of that kind is a file of a model.
pub(super) fn stand_in(file: &SourceFile) -> Option<Error> {
    let start = file.bytes(0..file.len().min(START_BYTES)).ok()?;
    let text = without_mark(&start).trim_ascii_start();
    let begins = |with: &[u8]| {
        let start = text.get(..with.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(with))
    };
    let html: [&[u8]; 7] = [
        b"<!doctype",
        b"<html",
        b"<head",
        b"<body",
        b"<title",
        b"<?xml",
        b"<!--",
    ];
    if html.iter().any(|tag| begins(tag)) {
        return Some(Error::format(
            "a web page (HTML), not the file itself; on the Hugging Face hub the file is at /resolve/ where its page \
             is at /blob/",
        ));
    }
    if begins(b"version https://git-lfs") || begins(b"version https://hawser") {
        return Some(Error::format(
            "a Git LFS pointer, not the file itself; fetch it with git lfs pull",
        ));
    }
    let answers: [&[u8]; 6] = [
        b"entry not found",
        b"repository not found",
        b"invalid username or password",
        b"{\"error\":",
        b"access to model",
        b"not found",
    ];
    if answers.iter().any(|answer| begins(answer)) {
        return Some(Error::format(
            "the answer of a web server that gave no file; download it again",
        ));
    }
    None
}

/// Names the formats that are often mistaken for a checkpoint.
pub(super) fn unrecognised(file: &SourceFile) -> Error {
    if let Some(error) = stand_in(file) {
        return error;
    }
    let start = match file.bytes(0..file.len().min(START_BYTES)) {
        Ok(start) => start,
        Err(error) => return error,
    };
    let is = |magic: &[u8]| start.starts_with(magic);
    // torch's magic number, as each protocol writes it.
    let number: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let is_old_torch = match start[..] {
        [0x80, 2, ..] => start[2..].starts_with(number),
        [0x80, 3..=5, ..] => start.windows(number.len()).take(16).any(|at| at == number),
        _ => is(b"L119547037146038801333356L"),
    };
    let is_tar = start
        .get(TAR_MARK.0..)
        .is_some_and(|rest| rest.starts_with(TAR_MARK.1));
    if is_tar {
        return Error::unsupported(
            "a tar archive, expected what is in it: unpack it first, or if the first versions of torch wrote it, load \
             it with torch.load and save it again with torch.save",
        );
    }
    if is_old_torch {
        return Error::unsupported(
            "a file in the format of torch before 1.6; load it with torch.load and save it again \
             with torch.save to read it here",
        );
    }
    if start
        .get(8..)
        .is_some_and(|rest| rest.starts_with(b"\xef\xbb\xbf{"))
    {
        return Error::format(
            "a safetensors file with a byte-order mark before its header, expected none",
        );
    }
    if is(b"tjgg") || is(b"lmgg") {
        return Error::unsupported(
            "a ggml file of another program than rwkv.cpp, expected the checkpoint that it was made \
             from",
        );
    }
    if is(b"\x1f\x8b")
        || is(b"\x28\xb5\x2f\xfd")
        || is(b"BZh")
        || is(b"\xfd7zXZ\0")
        || is(b"7z\xbc\xaf")
    {
        return Error::unsupported("a compressed file, expected what is in it: unpack it first");
    }
    if matches!(start[..], [0x80, 2..=5, ..]) {
        return Error::unsupported("a bare Python pickle, expected a torch or safetensors file");
    }
    Error::format(
        "not a checkpoint: expected a safetensors file, a torch .pth or .bin file, a GGUF file of llama.cpp, or a \
         .bin file of rwkv.cpp",
    )
}

/// The bytes behind the mark that some editors put in front of UTF-8.
pub(super) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}
