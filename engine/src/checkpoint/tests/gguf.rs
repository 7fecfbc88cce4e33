//! Sound GGUF files: what their tensors are in a raw checkpoint, and what they say beside them.

use std::collections::BTreeMap;

use super::super::gguf::{read, tensors_of, Gguf, Vocabulary};
use super::super::RawTensor;
use super::build_gguf::{
    eight_bits, integer, integers, model, number, text, texts, vocabulary, GgufFile, HEAD_SIZE,
    N_EMBD, N_HIDDEN, Q8_0, RANKS,
};
use super::read_all;
use crate::files::{Access, SourceFile};
use crate::text::tokenizer::Tokenizer;
use crate::{CheckpointSource, ConvertOptions};

fn opened(file: &GgufFile) -> Gguf {
    read(&SourceFile::from_bytes("f", file.bytes().into())).unwrap()
}

/// All numbers of a tensor, row by row.
fn numbers(tensor: &RawTensor) -> Vec<f32> {
    if let [rows, cols] = tensor.shape[..] {
        let mut out = vec![0.0; rows * cols];
        for (row, out) in out.chunks_mut(cols).enumerate() {
            tensor.read_rows(row..row + 1, out).unwrap();
        }
        return out;
    }
    tensor.read_vector(tensor.len()).unwrap()
}

/// The raw name, its shape, the name in the file, and whether it is transposed there.
type Line = (String, Vec<u64>, String, bool);

fn expected(n_vocab: u64) -> Vec<Line> {
    let (d, f) = (N_EMBD, N_HIDDEN);
    let mut all: Vec<Line> = Vec::new();
    let mut add = |raw: &str, shape: &[u64], name: &str, transposed| {
        all.push((raw.into(), shape.to_vec(), name.into(), transposed));
    };
    add("emb.weight", &[n_vocab, d], "token_embd.weight", false);
    add("head.weight", &[n_vocab, d], "output.weight", false);
    for end in ["weight", "bias"] {
        let of = |name: &str| format!("{name}.{end}");
        add(&of("blocks.0.ln0"), &[d], &of("token_embd_norm"), false);
        add(&of("ln_out"), &[d], &of("output_norm"), false);
        for i in 0..2 {
            let raw = |name: &str| format!("blocks.{i}.{name}.{end}");
            let name = |name: &str| format!("blk.{i}.{name}.{end}");
            add(&raw("ln1"), &[d], &name("attn_norm"), false);
            add(&raw("ln2"), &[d], &name("attn_norm_2"), false);
            add(&raw("att.ln_x"), &[d], &name("time_mix_ln"), false);
        }
    }
    for i in 0..2 {
        let raw = |name: &str| format!("blocks.{i}.{name}");
        let name = |name: &str| format!("blk.{i}.{name}.weight");
        for (lora, rank) in ["w", "a", "v", "g"].into_iter().zip(RANKS) {
            if lora == "v" && i == 0 {
                continue;
            }
            let part = |n: u32| {
                (
                    raw(&format!("att.{lora}{n}")),
                    name(&format!("time_mix_{lora}{n}")),
                )
            };
            if lora != "g" {
                add(&part(0).0, &[d], &part(0).1, false);
            }
            add(&part(1).0, &[d, rank], &part(1).1, true);
            add(&part(2).0, &[rank, d], &part(2).1, true);
        }
        for one in ["k_k", "k_a"] {
            add(
                &raw(&format!("att.{one}")),
                &[d],
                &name(&format!("time_mix_{one}")),
                false,
            );
        }
        let heads = [d / HEAD_SIZE, HEAD_SIZE];
        add(&raw("att.r_k"), &heads, &name("time_mix_r_k"), false);
        for one in ["receptance", "key", "value", "output"] {
            let raw = raw(&format!("att.{one}.weight"));
            add(&raw, &[d, d], &name(&format!("time_mix_{one}")), false);
        }
        add(&raw("ffn.x_k"), &[d], &name("channel_mix_lerp_k"), false);
        add(
            &raw("ffn.key.weight"),
            &[f, d],
            &name("channel_mix_key"),
            false,
        );
        add(
            &raw("ffn.value.weight"),
            &[d, f],
            &name("channel_mix_value"),
            false,
        );
    }
    all
}

#[test]
fn tensors_are_those_of_a_raw_checkpoint() {
    let file = model(5);
    let found = opened(&file);
    let mut tensors: BTreeMap<_, _> = found.tensors.iter().map(|t| (t.name.clone(), t)).collect();
    assert_eq!(tensors.len(), found.tensors.len());
    for (raw, shape, name, is_transposed) in expected(5) {
        let tensor = tensors.remove(&raw).unwrap_or_else(|| panic!("{raw}"));
        let found: Vec<u64> = tensor.shape.iter().map(|&n| n as u64).collect();
        assert_eq!(found, shape, "{raw}");
        let kind = file.clone().tensor(&name).kind;
        let value = |i: usize| match kind {
            Q8_0 => eight_bits(number(&name, i)).trunc() / 16.0,
            _ => number(&name, i),
        };
        let (rows, cols) = (shape[0] as usize, *shape.last().unwrap() as usize);
        let at = |i: usize| match is_transposed {
            true => i % cols * rows + i / cols,
            false => i,
        };
        let expected: Vec<f32> = (0..tensor.len()).map(|i| value(at(i))).collect();
        assert_eq!(numbers(tensor), expected, "{raw}");
    }
    for i in 0..2 {
        let name = format!("blk.{i}.time_mix_lerp_fused.weight");
        for (part, mix) in ["r", "w", "k", "v", "a", "g"].into_iter().enumerate() {
            let tensor = tensors.remove(&format!("blocks.{i}.att.x_{mix}")).unwrap();
            assert_eq!(tensor.shape, [N_EMBD as usize]);
            let start = part * N_EMBD as usize;
            let expected: Vec<f32> = (0..N_EMBD as usize)
                .map(|k| number(&name, start + k))
                .collect();
            assert_eq!(numbers(tensor), expected, "{mix}");
        }
    }
    assert!(tensors.is_empty(), "{:?}", tensors.keys());
    assert_eq!(found.layer_norm_epsilon, Some(2e-5));
}

/// What may differ between files without changing the model.
#[test]
fn other_forms_of_the_same() {
    let file = model(5);
    let expected = opened(&file);
    let mut others = Vec::new();
    let mut changed = |change: &dyn Fn(&mut GgufFile)| {
        let mut other = file.clone();
        change(&mut other);
        others.push(other.bytes());
    };
    changed(&|file| file.version = 2);
    changed(&|file| file.tensors.reverse());
    changed(&|file| file.keys.rotate_left(3));
    changed(&|file| {
        file.alignment = 4096;
        file.set("general.alignment", super::build_gguf::integer(4096));
    });
    changed(&|file| {
        file.alignment = 1;
        file.set("general.alignment", super::build_gguf::integer(1));
    });
    // Mixing vectors without the dimensions of 1, and in blocks.
    changed(&|file| {
        file.tensor("blk.1.time_mix_lerp_fused.weight").shape = vec![6, N_EMBD];
    });
    // Sizes as other types of integers.
    changed(&|file| {
        let value = [&10u32.to_le_bytes()[..], &2u64.to_le_bytes()].concat();
        file.set("rwkv7.block_count", value);
    });
    changed(&|file| {
        let value = [&5u32.to_le_bytes()[..], &2i32.to_le_bytes()].concat();
        file.set("rwkv7.block_count", value);
    });
    // Keys of every type that nothing needs.
    changed(&|file| {
        let sizes = [1u64, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
        for (kind, size) in (0u32..).zip(sizes).filter(|&(_, size)| size > 0) {
            let value = [&kind.to_le_bytes()[..], &vec![1; size as usize]].concat();
            file.set(&format!("x.{kind}"), value);
            let entries = vec![1; 3 * size as usize];
            let list = super::build_gguf::list(kind, 3, &entries);
            file.set(&format!("y.{kind}"), list);
        }
        file.set("z", texts(&[]));
    });
    // Bytes behind the last tensor.
    others.push([&file.bytes()[..], &[7; 100]].concat());
    for bytes in others {
        let found = read(&SourceFile::from_bytes("f", bytes.into())).unwrap();
        assert_eq!(found.tensors.len(), expected.tensors.len());
        for expected in &expected.tensors {
            let tensor = found.tensors.iter().find(|t| t.name == expected.name);
            assert_eq!(numbers(tensor.unwrap()), numbers(expected));
        }
    }
}

#[test]
fn mixing_vectors_may_be_blocks() {
    let mut file = model(5);
    let name = "blk.0.time_mix_lerp_fused.weight";
    *file.tensor(name) = super::build_gguf::tensor(name, &[6, 1, 1, N_EMBD], Q8_0);
    let found = opened(&file);
    let tensor = found
        .tensors
        .iter()
        .find(|t| t.name == "blocks.0.att.x_a")
        .unwrap();
    let start = 4 * N_EMBD as usize;
    let expected: Vec<f32> = (start..start + N_EMBD as usize)
        .map(|i| eight_bits(number(name, i)).trunc() / 16.0)
        .collect();
    assert_eq!(numbers(tensor), expected);
}

/// Headers are read piece by piece where the file is not mapped.
#[test]
fn large_headers_are_read_in_pieces() {
    let mut file = model(300);
    file.keys
        .insert(1, ("long".into(), text(&"x".repeat(700_000))));
    let entries: Vec<&[u8]> = vec![b"some text"; 60_000];
    file.keys.insert(2, ("many".into(), texts(&entries)));
    vocabulary(&mut file, &["ab", r"it\'s", r"\xf0\x9f\x98\x80"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    std::fs::write(&path, file.bytes()).unwrap();
    let accesses = [
        Access::Read,
        Access::new(true),
        Access::Mapped { whole_max: 10 },
    ];
    for access in accesses {
        let found = read(&SourceFile::open_with(&path, access).unwrap()).unwrap();
        assert_eq!(found.tensors.len(), expected(300).len() + 12);
        assert!(matches!(found.vocabulary, Vocabulary::Found(_)));
    }
}

fn tokenizer(file: &GgufFile) -> Tokenizer {
    match opened(file).vocabulary {
        Vocabulary::Found(file) => {
            assert_eq!(file.name, "rwkv_vocab_v20230424.txt");
            Tokenizer::from_bytes(&file.place, &file.bytes).unwrap()
        }
        Vocabulary::Unusable(why) => panic!("{why}"),
    }
}

#[test]
fn the_vocabulary_is_that_of_the_world_models() {
    let mut file = model(300);
    let more = [
        "ab",
        r#"it\'s"#,
        r#"'""#,
        r"\xf0\x9f\x98\x80",
        r"\n\n",
        r"\\\\n",
        "[PAD1]",
    ];
    vocabulary(&mut file, &more);
    let found = tokenizer(&file);
    assert!(found.is_world());
    assert_eq!(found.n_tokens(), 257 + more.len());
    let cases: [(&str, &[u32]); 7] = [
        ("ab", &[257]),
        ("it's", &[258]),
        ("'\"", &[259]),
        ("😀", &[260]),
        ("\n\n", &[261]),
        (r"\\n", &[262]),
        ("[PAD1]", &[263]),
    ];
    for (text, ids) in cases {
        assert_eq!(found.encode(text).unwrap(), ids, "{text:?}");
    }
    // Names of what is no token are text.
    for text in ["<s>", "[PAD299]"] {
        let ids: Vec<u32> = text.bytes().map(|byte| u32::from(byte) + 1).collect();
        assert_eq!(found.encode(text).unwrap(), ids);
    }
    // Without types padding is known by its name.
    file.keys
        .retain(|(key, _)| key != "tokenizer.ggml.token_type");
    assert_eq!(tokenizer(&file).n_tokens(), 257 + more.len());
}

#[test]
fn vocabularies_that_cannot_be_used_say_why_when_one_is_needed() {
    let with = |change: &dyn Fn(&mut GgufFile)| {
        let mut file = model(300);
        vocabulary(&mut file, &["ab"]);
        change(&mut file);
        file
    };
    let mut types = [1; 300];
    types[7] = 6;
    let long = [b"x".repeat(5000)];
    let listed = |token: &[u8]| {
        let mut tokens: Vec<&[u8]> = vec![b"x"; 300];
        tokens[9] = token;
        texts(&tokens)
    };
    let remove = |file: &mut GgufFile, key: &str| file.keys.retain(|(name, _)| name != key);
    let cases: [(GgufFile, &[&str]); 8] = [
        (
            with(&|file| file.set("tokenizer.ggml.model", text("gpt2"))),
            &["kind \"gpt2\"", "expected \"rwkv\""],
        ),
        (
            with(&|file| remove(file, "tokenizer.ggml.model")),
            &["no tokenizer"],
        ),
        (
            with(&|file| remove(file, "tokenizer.ggml.tokens")),
            &["tokenizer.ggml.tokens: missing"],
        ),
        (
            with(&|file| file.set("tokenizer.ggml.token_type", integers(&types))),
            &["token 7", "type 6", "1 (normal)"],
        ),
        (
            with(&|file| file.set("tokenizer.ggml.token_type", integers(&types[1..]))),
            &["299 types of 300 tokens"],
        ),
        (
            with(&|file| file.set("tokenizer.ggml.tokens", listed(&long[0]))),
            &["token 9", "5000 bytes", "at most 4096"],
        ),
        (
            with(&|file| file.set("tokenizer.ggml.tokens", listed(br"\x4"))),
            &["token 9", "\\x without its two digits"],
        ),
        (
            with(&|file| file.set("tokenizer.ggml.tokens", listed(br"\q"))),
            &["token 9", "escape"],
        ),
    ];
    for (file, words) in cases {
        match opened(&file).vocabulary {
            Vocabulary::Found(_) => panic!("{words:?}"),
            Vocabulary::Unusable(why) => {
                assert!(why.starts_with("f: "), "{why}");
                assert!(
                    words.iter().all(|word| why.contains(word)),
                    "{why}: {words:?}"
                );
            }
        }
    }
}

/// The small models that llama.cpp's converter would write so, with their kinds of numbers.
#[test]
fn golden_files_are_read() {
    for (name, matrix, n_layer, ranks) in [
        (
            "golden/v7-gguf-f16/model-F16.gguf",
            "F16",
            3,
            [16, 16, 8, 24],
        ),
        (
            "golden/v7-gguf-q8_0/model-Q8_0.gguf",
            "Q8_0",
            4,
            [32, 32, 32, 64],
        ),
    ] {
        let path = super::fixture(name);
        let file = SourceFile::open_with(&path, Access::new(true)).unwrap();
        let found = read(&file).unwrap();
        let find = |name: &str| found.tensors.iter().find(|t| t.name == name).unwrap();
        assert_eq!(find("emb.weight").shape, [400, 128]);
        assert_eq!(find("blocks.2.att.key.weight").dtype.name(), matrix);
        assert_eq!(find("blocks.2.att.w1").dtype.name(), "F32");
        assert_eq!(find("blocks.1.att.r_k").shape, [2, 64]);
        for (lora, rank) in ["w", "a", "v", "g"].into_iter().zip(ranks) {
            assert_eq!(find(&format!("blocks.1.att.{lora}1")).shape, [128, rank]);
            assert_eq!(find(&format!("blocks.1.att.{lora}2")).shape, [rank, 128]);
        }
        assert_eq!(found.tensors.len(), n_layer * 33 - 3 + 6);
        assert_eq!(found.layer_norm_epsilon, Some(1e-5));
        let Vocabulary::Found(tokenizer) = found.vocabulary else {
            panic!("a vocabulary")
        };
        let tokenizer = Tokenizer::from_bytes("f", &tokenizer.bytes).unwrap();
        // The first ids of the World vocabulary.
        let ids = tokenizer.encode("\n\n<s>\n").unwrap();
        assert_eq!(ids, [261, 61, 116, 63, 11]);
    }
}

/// What lies beside it says nothing of it, not even a configuration or a tokenizer.
#[test]
fn a_file_is_a_model_by_itself() {
    let mut file = model(300);
    vocabulary(&mut file, &["ab"]);
    let template = format!("{{{{ {:?} }}}}", "x".repeat(5000));
    file.set("tokenizer.chat_template", text(&template));
    file.set("tokenizer.ggml.eos_token_id", integer(261));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    for (name, text) in [
        ("config.json", r#"{"model_type": "rwkv", "hidden_size": 7}"#),
        ("tokenizer.json", "{}"),
        ("README.md", ""),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    for (place, mapped) in [(&path, true), (&path, false), (&folder.path().into(), true)] {
        let found = super::open(place, mapped).unwrap();
        let sizes = found.config.sizes;
        assert_eq!(sizes.architecture.title, "RWKV-7");
        let expected = [300, N_EMBD as usize, 2, N_HIDDEN as usize];
        let sizes = [sizes.n_vocab, sizes.n_embd, sizes.n_layer, sizes.n_hidden];
        assert_eq!(sizes, expected);
        assert_eq!(found.config.settings.layer_norm_epsilon, 2e-5);
        assert!(found.has_tokenizer_inside && found.config_fields.is_empty());
        assert_eq!(found.folder.is_some(), place != &path);
        let tokenizer = found.tokenizer.as_ref().unwrap();
        assert_eq!(tokenizer.name, "rwkv_vocab_v20230424.txt");
        let inside = format!("{}: tokenizer.ggml.tokens", path.display());
        assert_eq!(tokenizer.place, inside);
        assert_eq!(read_all(&found).unwrap().len(), found.tensors.len());
        // Texts of its vocabulary end with token 0, whatever it says.
        let told = found.correction.unwrap();
        assert!(told.contains("tokenizer.ggml.eos_token_id 261"), "{told}");
        assert_eq!(found.config.settings.end_of_text, 0);
        let chats = crate::checkpoint::read_chat_template(place)
            .unwrap()
            .unwrap();
        assert_eq!(chats.text, template);
    }
    // Where it has none, one beside it is taken, and an error says both.
    file.keys.retain(|(key, _)| !key.starts_with("tokenizer."));
    std::fs::write(&path, file.bytes()).unwrap();
    let found = super::open(&path, true).unwrap();
    assert_eq!(found.tokenizer.unwrap().name, "tokenizer.json");
    let search = found.tokenizer_search;
    assert!(
        search.contains("m.gguf: it has no tokenizer; looked for"),
        "{search}"
    );
}

/// A raw checkpoint made of a GGUF file holds the same numbers, and a directory its vocabulary.
#[test]
fn files_are_converted() {
    let mut file = model(300);
    vocabulary(&mut file, &["ab"]);
    let folder = tempfile::tempdir().unwrap();
    let (path, raw) = (folder.path().join("m.gguf"), folder.path().join("m.pth"));
    std::fs::write(&path, file.bytes()).unwrap();
    let source = CheckpointSource::open(&path).unwrap();
    let options = ConvertOptions::new();
    source.to_raw(&raw, &options, &mut |_| {}).unwrap();
    let numbers = |path| {
        let found = super::open(path, true).unwrap();
        let numbers = read_all(&found).unwrap();
        // Which of the shapes of a vector it has does not matter.
        numbers.into_iter().collect::<BTreeMap<_, _>>()
    };
    assert_eq!(numbers(&raw), numbers(&path));
    let made = folder.path().join("hf");
    let converted = source
        .to_hugging_face(&made, &options, &mut |_| {})
        .unwrap();
    let vocabulary = made.join("rwkv_vocab_v20230424.txt");
    assert_eq!(converted.tokenizer_files, std::slice::from_ref(&vocabulary));
    assert_eq!(Tokenizer::open(vocabulary).unwrap().n_tokens(), 258);
}

/// Names, types, shapes and places are those that another reader finds.
#[test]
fn another_reader_finds_the_same() {
    let mut small = model(300);
    vocabulary(&mut small, &["ab"]);
    let golden = |name: &str| std::fs::read(super::fixture(name)).unwrap();
    for bytes in [
        small.bytes(),
        golden("golden/v7-gguf-f16/model-F16.gguf"),
        golden("golden/v7-gguf-q8_0/model-Q8_0.gguf"),
    ] {
        let file = SourceFile::from_bytes("f", bytes.clone().into());
        let ours = tensors_of(&file).unwrap();
        let theirs = ggus::GGuf::new(&bytes).unwrap();
        assert_eq!(ours.len(), theirs.tensors.len());
        let start = theirs.data.as_ptr().addr() - bytes.as_ptr().addr();
        for tensor in &ours {
            let other = theirs.tensors[&tensor.name[..]].to_info();
            let mut shape = tensor.shape.clone();
            shape.reverse();
            let theirs: Vec<usize> = other.shape().iter().map(|&n| n as usize).collect();
            assert_eq!(shape, theirs, "{}", tensor.name);
            let begin = start + other.offset();
            assert_eq!(tensor.offset, begin as u64, "{}", tensor.name);
            assert_eq!(tensor.end(), (begin + other.nbytes()) as u64);
            let name = format!("{:?}", other.ty());
            assert_eq!(tensor.dtype.name(), name, "{}", tensor.name);
        }
    }
}
