//! Pickles that do not describe tables of tensors, or tensors that are not where they say.

use super::build::*;
use super::{file, run};
use crate::error::ErrorKind::{Format, Unsupported};

#[test]
fn pickles_that_are_no_tables() {
    let program = |bytes: &[u8]| torch(bytes.to_vec());
    let evil = b"\x80\x02cos\nsystem\nX\x04\0\0\0echo\x85R.";
    let stack_global = b"\x80\x04\x8c\x02os\x8c\x06system\x93)R.";
    let builtin = b"\x80\x02c__builtin__\neval\nX\x01\0\0\0a\x85R.";
    let package = b"\x80\x02cos.path\njoin\n)R.";
    let object = b"\x80\x02c__main__\nModel\n)\x81}b.";
    let protocol_0 = b"(dS'w'\nP('storage', <class 'torch.FloatStorage'>, '0', 'cpu', 4)\ns.";
    let deep = [&b"\x80\x02)"[..], &[0x85; 100_000], b"."].concat();
    let recursive = b"\x80\x02}q\0X\x01\0\0\0ah\0s.";
    run(&[
        file(
            "calls",
            program(evil),
            Unsupported,
            &["os.system", "nothing was executed"],
        ),
        file(
            "calls too",
            program(stack_global),
            Unsupported,
            &["os.system"],
        ),
        file(
            "calls a builtin",
            program(builtin),
            Unsupported,
            &["__builtin__.eval", "nothing was executed"],
        ),
        file(
            "in a package",
            program(package),
            Unsupported,
            &["os.path.join"],
        ),
        file(
            "instruction",
            program(b"\x80\x02\x82\x01."),
            Unsupported,
            &["instruction 0x82"],
        ),
        file(
            "object",
            program(object),
            Unsupported,
            &["__main__.Model", "state_dict()"],
        ),
        file(
            "protocol 0",
            program(protocol_0),
            Unsupported,
            &["protocol 0"],
        ),
        file(
            "truncated",
            program(b"\x80\x02}X\xff\0\0\0a"),
            Format,
            &["truncated"],
        ),
        file("no end", program(b"\x80\x02}"), Format, &["truncated"]),
        file(
            "more behind",
            program(b"\x80\x02}.}"),
            Format,
            &["after the end"],
        ),
        file("empty stack", program(b"\x80\x02."), Format, &["not there"]),
        file(
            "memo",
            program(b"\x80\x02h\x07."),
            Format,
            &["recalls value 7"],
        ),
        file(
            "huge integer",
            program(b"\x80\x02\x8a\x09123456789."),
            Format,
            &["no dictionary"],
        ),
        file(
            "protocol",
            program(b"\x80\x06}."),
            Unsupported,
            &["protocol 6"],
        ),
        file("no dictionary", program(&deep), Format, &["no dictionary"]),
        file(
            "recursive",
            program(recursive),
            Unsupported,
            &["no tensor", "\"a\""],
        ),
        file(
            "no tensors",
            program(b"\x80\x02}."),
            Format,
            &["no tensors"],
        ),
        file(
            "number",
            program(b"\x80\x02}X\x01\0\0\0aK\x01s."),
            Unsupported,
            &["\"a\"", "no tensor"],
        ),
        file(
            "not utf-8",
            program(b"\x80\x02}X\x01\0\0\0\xffK\x01s."),
            Format,
            &["UTF-8"],
        ),
    ]);
}

#[test]
fn tensors_outside_their_storage() {
    let at = |place: Place<'_>| torch(Pickle::dict().tensor("emb.weight", &place).end());
    let twice = Pickle::dict().tensor("a", &PLACE).tensor("a", &PLACE).end();
    let half = Place {
        storage_type: "HalfStorage",
        ..PLACE
    };
    let torn = Pickle::dict().tensor("a", &PLACE).tensor("b", &half).end();
    const MAX: i64 = i64::MAX;
    run(&[
        file(
            "first",
            at(Place { first: 1, ..PLACE }),
            Format,
            &["emb.weight", "outside"],
        ),
        file(
            "negative first",
            at(Place { first: -1, ..PLACE }),
            Format,
            &["-1"],
        ),
        file(
            "shape",
            at(Place {
                shape: &[3, 2],
                ..PLACE
            }),
            Format,
            &["[3, 2]", "4 elements"],
        ),
        file(
            "strides",
            at(Place {
                strides: &[3, 1],
                ..PLACE
            }),
            Format,
            &["[3, 1]", "outside"],
        ),
        file(
            "negative",
            at(Place {
                shape: &[2, -2],
                ..PLACE
            }),
            Format,
            &["-2"],
        ),
        file(
            "wrapping",
            at(Place {
                strides: &[MAX, MAX],
                ..PLACE
            }),
            Format,
            &["9223372036854775807"],
        ),
        file(
            "product",
            at(Place {
                shape: &[MAX, MAX],
                ..PLACE
            }),
            Format,
            &["9223372036854775807"],
        ),
        file(
            "expanded",
            at(Place {
                shape: &[1 << 40, 2],
                strides: &[0, 1],
                ..PLACE
            }),
            Format,
            &["1099511627776"],
        ),
        file(
            "expanded a little too much",
            at(Place {
                shape: &[1 << 26, 2],
                strides: &[0, 1],
                ..PLACE
            }),
            Format,
            &["emb.weight", "overlap"],
        ),
        file(
            "expanded beyond its storage",
            at(Place {
                shape: &[4, 5],
                strides: &[0, 1],
                ..PLACE
            }),
            Format,
            &["emb.weight", "outside"],
        ),
        file(
            "dimensions",
            at(Place {
                strides: &[1],
                ..PLACE
            }),
            Format,
            &["strides [1]"],
        ),
        file(
            "storage",
            at(Place { key: "9", ..PLACE }),
            Format,
            &["data/9", "missing"],
        ),
        file(
            "path",
            at(Place {
                key: "../0",
                ..PLACE
            }),
            Format,
            &["../0", "missing"],
        ),
        file(
            "length",
            at(Place {
                storage_len: 5,
                ..PLACE
            }),
            Format,
            &["16 bytes", "5 elements"],
        ),
        file(
            "negative length",
            at(Place {
                storage_len: -4,
                ..PLACE
            }),
            Format,
            &["storage"],
        ),
        file("type", at(half), Format, &["16 bytes", "4 elements of F16"]),
        file(
            "type",
            at(Place {
                storage_type: "QInt8Storage",
                ..PLACE
            }),
            Unsupported,
            &["emb.weight", "torch.QInt8Storage"],
        ),
        file("name twice", torch(twice), Format, &["tensor a", "twice"]),
        file(
            "storage torn",
            torch(torn),
            Format,
            &["storage 0", "F16", "F32"],
        ),
    ]);
}
