//! The tables and what is derived from them.

use std::collections::BTreeSet;

use super::batch::{Cutter, Output, Span};
use super::config::{Config, Sizes};
use super::known::{architectures, shown, version_4};
use super::source::WeightSource;
use super::state::{State, StateLayout, NAME, PARTS_MAX};
use super::table::TensorAt;
use super::table::{Shape, StageRange};
use super::{Buffers, Machine, Network};
use crate::error::Result;
use crate::math::kernels::KernelSet;
use crate::math::threads::Pool;
use crate::quant::matrix::{Buffer, Matrix, Vector};
use crate::quant::{Quant, Weights};

/// Sizes of RWKV-4, in the order of its table.
pub(crate) fn sizes(values: [usize; 5]) -> Sizes {
    let architecture = version_4();
    let mut sizes = Sizes::unknown(architecture);
    for (spec, value) in architecture.sizes.iter().zip(values) {
        (spec.set)(&mut sizes, value);
    }
    sizes
}

/// The table reads back what it writes: every tensor is found by each of its names, in its own layer.
#[test]
fn tensors_are_found_by_all_their_names() {
    let sizes = sizes([7, 4, 12, 6, 16]);
    for architecture in architectures() {
        let sizes = Sizes {
            architecture,
            ..sizes
        };
        let mut names = BTreeSet::new();
        for tensor in architecture.tensors(&sizes, &architecture.whole(&sizes)) {
            let theirs = tensor.hugging_face_name();
            let short = theirs.trim_start_matches(architecture.hugging_face.prefix);
            for name in [&tensor.raw_name(), &theirs, short] {
                let (spec, layer) = architecture.find(name).expect("in the table");
                assert_eq!(
                    (spec.name, layer),
                    (tensor.spec.name, tensor.layer),
                    "{name}"
                );
            }
            assert!(
                names.insert(tensor.name()),
                "{} is there twice",
                tensor.name()
            );
        }
        for name in [
            "transformer.h.0",
            "blocks.0.att.qq.weight",
            "blocks.01.ln1.bias",
            "blocks.1.ln0.bias",
            "blocks.99999999999999999999999.ln1.bias",
            "blocks.1.",
        ] {
            assert!(architecture.find(name).is_none(), "{name}");
        }
    }
}

#[test]
fn names_of_both_spellings() {
    let architecture = version_4();
    for (theirs, ours) in [
        ("rwkv.embeddings.weight", "emb.weight"),
        ("emb.weight", "emb.weight"),
        ("rwkv.blocks.0.pre_ln.bias", "blocks.0.ln0.bias"),
        (
            "rwkv.blocks.11.attention.time_mix_receptance",
            "blocks.11.att.time_mix_r",
        ),
        (
            "blocks.1.feed_forward.value.weight",
            "blocks.1.ffn.value.weight",
        ),
        ("blocks.1.ffn.time_mix_k", "blocks.1.ffn.time_mix_k"),
        ("blocks.1.attention.time_mix_k", "blocks.1.att.time_mix_k"),
        (
            "rwkv.blocks.1.ffn.time_mix_receptance",
            "blocks.1.ffn.time_mix_r",
        ),
        ("rwkv.ln_out.weight", "ln_out.weight"),
        ("head.weight", "head.weight"),
    ] {
        assert_eq!(architecture.hugging_face.raw(theirs), ours);
        let (spec, layer) = architecture.find(theirs).expect("in the table");
        assert_eq!(spec.raw_name(layer), ours);
    }
    let (ours, theirs) = (
        "blocks.3.ffn.time_mix_r",
        "rwkv.blocks.3.feed_forward.time_mix_receptance",
    );
    assert_eq!(architecture.hugging_face.name(ours), theirs);
}

/// What decides which shard of a converted model a tensor comes into.
#[test]
fn tensors_are_written_in_the_order_of_transformers() {
    let sizes = sizes([7, 4, 2, 6, 16]);
    let architecture = sizes.architecture;
    let written = architecture.tensors_in_order(&sizes);
    let all = architecture.tensors(&sizes, &architecture.whole(&sizes));
    assert_eq!(written.len(), all.count());
    let order = architecture.hugging_face.order;
    let of_layer = architecture.layer.iter().chain(architecture.embedding);
    let of_layer = of_layer.filter(|spec| !["emb.weight"].contains(&spec.raw));
    let raw: BTreeSet<_> = of_layer.map(|spec| spec.raw).collect();
    assert_eq!(
        raw,
        order.iter().copied().collect(),
        "each tensor of a layer once"
    );
    let names: Vec<_> = written.iter().map(|tensor| tensor.raw_name()).collect();
    assert_eq!(
        names[..4],
        [
            "emb.weight",
            "blocks.0.ln0.weight",
            "blocks.0.ln0.bias",
            "blocks.0.ln1.weight"
        ]
    );
    assert_eq!(
        names[5..8],
        [
            "blocks.0.ln2.weight",
            "blocks.0.ln2.bias",
            "blocks.0.att.time_decay"
        ]
    );
    assert_eq!(names[21], "blocks.1.ln1.weight");
    assert_eq!(
        names[names.len() - 3..],
        ["ln_out.weight", "ln_out.bias", "head.weight"]
    );
}

/// What files and layouts have room for.
#[test]
fn tables_fit_what_is_made_of_them() {
    for architecture in architectures() {
        assert!((1..=PARTS_MAX).contains(&architecture.state.len()));
        assert!(architecture.name.len() <= NAME.len());
        assert!(
            architecture.row[0].name == "residual stream",
            "the head reads it there"
        );
    }
}

/// Estimates of models that no machine has are right, too: in 64 bits, whatever the machine's are.
#[test]
fn estimates_do_not_wrap() {
    let largest = sizes([1 << 24, 1 << 16, 1 << 10, 1 << 16, 1 << 20]);
    let partial = 7 * ((1_u64 << 20) / 256) * (1 << 16) * 4;
    assert!(Buffers::bytes_for(&largest, 256, 1024) > partial);
    assert!(partial > u64::from(u32::MAX));
}

/// Models whose tensors are marks of other networks are told as what they are, in both spellings.
#[test]
fn other_networks_are_recognised() {
    for (name, title) in [
        (
            "model.layers.0.attn.bonus",
            "RWKV-6 as flash-linear-attention has it",
        ),
        (
            "blocks.0.att.qq.weight",
            "a variant of RWKV-4 with extra attention, such as RWKV-4a",
        ),
    ] {
        let names = ["blocks.0.ln1.weight", name];
        match shown(names.into_iter()) {
            Some(Err((found, shown))) => assert_eq!((found, shown), (name, title)),
            other => panic!("{name}: {other:?}"),
        }
    }
    for (name, version) in [
        ("emb.weight", 4),
        ("blocks.0.att.x_r", 7),
        ("rwkv.blocks.0.feed_forward.time_maa_k", 6),
        ("rwkv.blocks.0.attention.time_decay_w1", 6),
        ("rwkv.blocks.3.attention.gate.weight", 5),
        ("rwkv.blocks.0.attention.time_mix_gate", 5),
        ("rwkv.blocks.0.attention.ln_x.weight", 5),
        ("blocks.0.att.ln_x.weight", 5),
        ("rwkv.blocks.0.attention.time_first", 4),
        ("model.layers.0.attn.x_r", 7),
    ] {
        let names = ["blocks.0.ln1.weight", name];
        let shown = shown(names.into_iter()).map(|found| found.map(|one| one.version));
        assert_eq!(shown, Some(Ok(version)), "{name}");
    }
    assert!(shown(["transformer.h.0"].into_iter()).is_none());
}

/// 18 a layer, the embedding, ln0, ln_out and the head: what the 169M checkpoint has.
#[test]
fn the_table_of_version_4_has_what_its_checkpoints_have() {
    let sizes = sizes([50_277, 768, 12, 768, 3072]);
    let whole = sizes.architecture.whole(&sizes);
    let tensors = sizes.architecture.tensors(&sizes, &whole);
    assert_eq!(tensors.count(), 12 * 18 + 6);
    let second = StageRange {
        layers: 6..12,
        has_embedding: false,
        has_head: true,
    };
    let n: usize = sizes.architecture.tensors(&sizes, &second).count();
    assert_eq!(n, 6 * 18 + 3);
    assert_eq!(StateLayout::of_sizes(&sizes).size_bytes(), 184_320);
}

#[test]
fn states_are_empty_as_the_table_says() {
    let layout = StateLayout::of_sizes(&sizes([10, 3, 2, 4, 8]));
    let state = State::new(layout, None).expect("memory");
    let parts = layout.sizes.architecture.state;
    for layer in 0..2 {
        let mut n = 0;
        for (index, part) in parts.iter().enumerate() {
            let numbers = state.part(layer, index);
            assert_eq!(numbers.len(), (part.len)(&layout.sizes), "{}", part.name);
            assert!(numbers.iter().all(|&x| x == part.empty), "{}", part.name);
            n += numbers.len();
        }
        assert_eq!(n, layout.layer_len());
    }
    assert_eq!(state.as_slice().len(), 2 * layout.layer_len());
}

/// Numbers that are made up, the same for the same name.
struct MadeUp;

fn made_up(name: &str, n: usize) -> Vec<f32> {
    let mut state = name.bytes().fold(7_u32, |state, byte| {
        state.wrapping_mul(31) + u32::from(byte)
    });
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    (0..n).map(|_| next()).collect()
}

impl WeightSource for MadeUp {
    fn set_quant(&mut self, _quant: Quant) -> Result<()> {
        Ok(())
    }

    fn vector(&mut self, tensor: &TensorAt<'_>) -> Result<Vector> {
        let (name, n) = (tensor.name(), tensor.len());
        let values = made_up(&name, n);
        Ok(Vector { name, values })
    }

    fn matrix(&mut self, tensor: &TensorAt<'_>) -> Result<Matrix> {
        let (name, (n_rows, n_cols)) = (tensor.name(), tensor.stored_shape());
        Ok(Matrix {
            weights: Weights::F32(Buffer::owned(made_up(&name, n_rows * n_cols))),
            layout: tensor.layout(),
            name,
            n_rows,
            n_cols,
        })
    }
}

/// What passes from stage to stage besides the residual stream changes nothing of it: rows are as far apart as they are
/// wide.
#[test]
fn rows_may_be_wider_than_the_residual_stream() {
    let (plain, tokens) = (sizes([13, 8, 3, 8, 24]), [3, 1, 4, 1, 5]);
    let wide = Sizes {
        architecture: &super::v4::WITH_WIDE_ROWS,
        ..plain
    };
    assert_eq!(wide.architecture.row_width(&wide), 8 + 11);
    let (pool, kernels) = (Pool::new(2), KernelSet::select().expect("some"));
    let machine = Machine {
        pool: &pool,
        kernels,
        paging: None,
        observer: None,
    };
    let run = |sizes: &Sizes| {
        let config = Config::of_sizes(*sizes);
        let whole = sizes.architecture.whole(sizes);
        let network = Network::build(&mut MadeUp, &config, &whole).expect("weights");
        let mut states = vec![State::new(StateLayout::of_sizes(sizes), None).expect("memory"); 2];
        let mut spans: Vec<_> = states
            .iter_mut()
            .zip([&tokens[..], &tokens[2..]])
            .map(|(state, tokens)| Span {
                state,
                tokens,
                output: Output::All,
            })
            .collect();
        let (mut segments, mut rows) = (Vec::new(), Vec::new());
        assert!(Cutter::new().next(&spans, 8, &mut segments, &mut rows));
        let mut buffers = Buffers::new(sizes, 8, 2, false).expect("memory");
        network.forward(machine, &mut buffers, &segments, &mut spans);
        let (n_vocab, n_embd) = (sizes.n_vocab, sizes.n_embd);
        let mut logits = vec![0.0; rows.len() * n_vocab];
        let mut hidden = vec![0.0; rows.len() * n_embd];
        network.logits(machine, &mut buffers, &rows, &mut logits);
        network.hidden(machine, &buffers, &rows, &mut hidden);
        assert_eq!(
            buffers.rows_mut(8).0.len(),
            8 * sizes.architecture.row_width(sizes)
        );
        let numbers: Vec<_> = states
            .iter()
            .map(|state| state.as_slice().to_vec())
            .collect();
        (logits, hidden, numbers)
    };
    let expected = run(&plain);
    assert!(expected.0.iter().all(|x| x.is_finite()) && expected.0[0] != expected.0[1]);
    assert_eq!(run(&wide), expected);
}

/// What buffers say beforehand is what they take, to the byte.
#[test]
fn buffers_take_what_they_say() {
    for sizes in [
        sizes([320, 64, 3, 64, 256]),
        sizes([99, 40, 2, 24, 37]),
        sizes([7, 8, 1, 40, 600]),
    ] {
        for rows in [1, 2, 7, 8, 32, 64, 128] {
            for n_threads in [1, 3] {
                let buffers = Buffers::new(&sizes, rows, n_threads, false).expect("memory");
                let taken = buffers.size_bytes() as u64;
                assert_eq!(
                    Buffers::bytes_for(&sizes, rows, n_threads),
                    taken,
                    "{sizes:?} {rows}"
                );
            }
        }
    }
}

#[test]
fn configurations_are_read_as_they_were_written() {
    let mut config = Config::of_sizes(sizes([99, 40, 2, 24, 37]));
    config.settings.end_of_text = 5;
    let architecture = config.sizes.architecture;
    // One end of text is written as it always was; programs that know of one only read the first of several.
    let one = config.to_json();
    assert_eq!(
        (&one["end_of_text"], one.as_object().map(|all| all.len())),
        (&5.into(), Some(10))
    );
    for others in [vec![], vec![7, 0]] {
        config.settings.other_ends_of_text = others.clone().try_into().expect("few");
        let text = config.to_json().to_string();
        let read = Config::from_json(architecture, &text).expect("as written");
        assert_eq!(read, config);
        assert_eq!(config.to_json()["end_of_text"], 5);
        assert!(read.settings.ends_of_text().eq([vec![5], others].concat()));
    }
    let text = one.to_string();
    let many = format!("{{\"other_ends_of_text\":{:?},{}", [1; 16], &text[1..]);
    let spaces = format!("{text}{}", " ".repeat(1 << 17));
    for damaged in [many, spaces] {
        let error = Config::from_json(architecture, &damaged).expect_err("too much");
        assert!(error.to_string().contains("at most"), "{error}");
    }
    for (found, wrong) in [
        ("40", "0"),
        ("37", "\"x\""),
        ("\"n_vocab\":99", "\"n\":99"),
        ("1024", "-1"),
    ] {
        let damaged = text.replacen(found, wrong, 1);
        assert_ne!(damaged, text);
        Config::from_json(architecture, &damaged).expect_err(&damaged);
    }
}

/// Stored shapes and kinds agree, whatever the sizes.
#[test]
fn vectors_have_one_column() {
    let sizes = sizes([7, 4, 1, 6, 16]);
    for tensor in sizes
        .architecture
        .tensors(&sizes, &sizes.architecture.whole(&sizes))
    {
        let is_vector = matches!(tensor.spec.shape, Shape::Vector(_));
        assert_eq!(is_vector, !tensor.is_matrix());
        if is_vector {
            assert_eq!(tensor.outputs_and_inputs(), (tensor.len(), 1));
        }
    }
}
