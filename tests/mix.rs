//! Models put together from two quantisations: the same bits as the model whose matrices they have, and
//! refused where the two do not belong together.

mod common;

use common::{golden, goldens, ids, json, open};
use rwkv_edge::{ErrorKind, Model, Options, Output, Quant, Span};

/// Logits (tokens, n_vocab), fed in pieces of several lengths, in memory that another model made.
fn logits(model: &Model, maker: &Model, tokens: &[u32]) -> Vec<f32> {
    let mut workspace = maker.workspace(20);
    let mut state = model.new_state();
    let mut logits = vec![0.0; tokens.len() * model.n_vocab()];
    let (mut begin, n_vocab) = (0, model.n_vocab());
    for n in [1, 3, 20, 1, 1].into_iter().cycle() {
        let end = tokens.len().min(begin + n);
        let span = Span::new(&mut state, &tokens[begin..end], Output::All);
        let out = &mut logits[begin * n_vocab..end * n_vocab];
        model
            .forward(&mut workspace, &mut [span], out)
            .expect("valid tokens");
        begin = end;
        if end == tokens.len() {
            return logits;
        }
    }
    unreachable!("the lengths go round for ever")
}

fn matrices(model: &Model) -> Vec<String> {
    let tensors = model.tensors().into_iter();
    tensors
        .filter(|tensor| tensor.shape.len() == 2)
        .map(|tensor| tensor.name)
        .collect()
}

#[test]
fn all_matrices_of_another_quantisation_give_its_logits() {
    for name in goldens() {
        let mut tokens = ids(&json(golden(name).join("expected.json"))["input_ids"]);
        tokens.truncate(48);
        for (from, to) in [
            (Quant::F32, Quant::Int8),
            (Quant::Int8, Quant::F32),
            (Quant::F16, Quant::Int8),
        ] {
            let (base, other) = (open(golden(name), from, 2), open(golden(name), to, 2));
            let names = matrices(&base);
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let mixed = base.with_matrices_of(&other, &names).expect("of the same");
            let expected = logits(&other, &other, &tokens);
            assert!(
                logits(&mixed, &base, &tokens) == expected,
                "{name} {from} {to}"
            );
            let none = base.with_matrices_of(&other, &[]).expect("of the same");
            assert!(logits(&none, &base, &tokens) == logits(&base, &base, &tokens));
            let (info, of_other) = (mixed.info(), other.info());
            assert_eq!((info.quant, none.info().quant), (to, from));
            assert_eq!(info.weight_bytes, of_other.weight_bytes);
            assert_eq!(info.fingerprint, of_other.fingerprint);
        }
    }
}

#[test]
fn each_matrix_alone_changes_the_logits_a_little() {
    let tokens = ids(&json(golden("small-safetensors").join("expected.json"))["input_ids"]);
    let (base, other) = (
        open(golden("small-safetensors"), Quant::F32, 2),
        open(golden("small-safetensors"), Quant::Int8, 1),
    );
    let expected = logits(&base, &base, &tokens);
    let size = |values: &mut dyn Iterator<Item = f32>| {
        values
            .map(|v| f64::from(v) * f64::from(v))
            .sum::<f64>()
            .sqrt()
    };
    let of_expected = size(&mut expected.iter().copied());
    let names = matrices(&base);
    assert!(names.len() >= 2 + 7 * 2);
    for name in &names {
        let mixed = base.with_matrices_of(&other, &[name]).expect("of the same");
        let found = logits(&mixed, &base, &tokens);
        let mut differences = found.iter().zip(&expected).map(|(a, b)| a - b);
        let error = size(&mut differences) / of_expected;
        assert!(error > 0.0 && error < 0.06, "{name}: {error}");
        let quants = mixed.tensors();
        let changed: Vec<_> = quants.iter().filter(|t| t.quant == Quant::Int8).collect();
        assert!(changed.len() == 1 && changed[0].name == *name);
        assert_eq!(mixed.info().quant, Quant::F32);
    }
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = open(golden("small-safetensors"), Quant::F32, 1);
    let other = open(golden("small-safetensors"), Quant::Int8, 1);
    let stranger = open(golden("odd-bin"), Quant::Int8, 1);
    let error = base
        .with_matrices_of(&stranger, &["head.weight"])
        .expect_err("of another checkpoint");
    assert_eq!(error.kind(), ErrorKind::Argument);
    assert!(error.to_string().contains("another checkpoint"), "{error}");
    for name in ["no.such.weight", "blocks.0.ln1.weight", ""] {
        let error = base
            .with_matrices_of(&other, &["head.weight", name])
            .expect_err("no matrix");
        assert_eq!(error.kind(), ErrorKind::Argument);
        assert!(error.to_string().starts_with(name), "{error}");
    }
    let mixed = base
        .with_matrices_of(&other, &["head.weight"])
        .expect("of the same");
    let path = folder.path().join("mixed");
    let error = mixed.save(&path, &mut |_| {}).expect_err("two kinds");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error
            .to_string()
            .contains("head.weight: int8, expected f32"),
        "{error}"
    );
    assert!(!path.exists());
    // Low-rank matrices are floats in every model, but not the same.
    let [exact, small] = [Quant::F32, Quant::Int8].map(|quant| open(golden("v7-pth"), quant, 1));
    let name = "blocks.0.att.w1";
    let exact_inside = small
        .with_matrices_of(&exact, &[name])
        .expect("of the same");
    let error = exact_inside
        .save(&path, &mut |_| {})
        .expect_err("two kinds");
    let text = format!("{name}: f32, expected f16 as in a model of int8");
    assert!(error.to_string().contains(&text), "{error}");
    mixed.verify(&mut |_| {}).expect("not damaged");

    // A model that is int8 throughout is one again, and its file that of the other.
    let names = matrices(&base);
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let whole = base.with_matrices_of(&other, &names).expect("of the same");
    whole.save(&path, &mut |_| {}).expect("can be written");
    Model::open(&path, &Options::default()).expect("just written");
    let of_other = folder.path().join("other");
    other.save(&of_other, &mut |_| {}).expect("can be written");
    let read = |path| std::fs::read(path).expect("just written");
    assert!(read(&path) == read(&of_other));
}
