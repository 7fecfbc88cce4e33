//! Models of 4, 5 and 6 bits: what they cost, which matrices have more bits, and files that mix them otherwise.

use rwkv_edge::{Model, Options, Quant, Target};

mod common;

use common::{distance, golden, goldens, ids, json, open, repository};

/// Every matrix but those that stay floats, by its name.
fn formats(model: &Model) -> Vec<(String, Quant)> {
    let matrices = model.tensors().into_iter();
    let matrices = matrices.filter(|tensor| tensor.shape.len() == 2);
    let formats = matrices.map(|tensor| (tensor.name, tensor.quant));
    formats.filter(|(_, quant)| !quant.is_float()).collect()
}

#[test]
fn matrices_whose_errors_matter_most_have_more_bits() {
    let more = |quant| match quant {
        Quant::Q4 => Quant::Q5,
        Quant::Q5 => Quant::Q6,
        other => other,
    };
    for folder in ["tests/fixtures/demo4", "cli/demo"] {
        for quant in [Quant::Q4, Quant::Q5, Quant::Q6] {
            let model = open(repository(folder), quant, 2);
            assert_eq!(model.info().quant, quant);
            for (name, found) in formats(&model) {
                let parts: Vec<_> = name.split('.').collect();
                let layer = parts.get(1).and_then(|layer| layer.parse::<usize>().ok());
                let expected = match (layer, &parts[parts.len().saturating_sub(3)..]) {
                    (Some(0), [_, "output", _]) if quant == Quant::Q4 => Quant::Q6,
                    (Some(0), [_, "output", _]) => Quant::Int8,
                    (Some(_), [_, "output", _] | ["att", "value", _]) => more(quant),
                    (Some(layer), ["ffn", "key", _])
                        if quant == Quant::Q4 && [1, 3, 4, 6, 7].contains(&layer) =>
                    {
                        Quant::Q5
                    }
                    (Some(_), _) => quant,
                    (None, _) => more(quant),
                };
                assert_eq!(found, expected, "{folder} {quant}: {name}");
            }
        }
    }
}

/// Mean KL divergence of the predictions, and how often the likeliest token is the same.
fn compared(exact: &[f32], found: &[f32], n_vocab: usize) -> (f64, f64) {
    let rows = exact.chunks_exact(n_vocab).zip(found.chunks_exact(n_vocab));
    let (mut divergence, mut same, mut n) = (0.0, 0.0, 0.0);
    for (exact, found) in rows {
        let log_sum = |row: &[f32]| {
            let largest = row.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
            f64::from(largest) + sum.ln()
        };
        let sums = (log_sum(exact), log_sum(found));
        for (&p, &q) in exact.iter().zip(found) {
            let (p, q) = (f64::from(p) - sums.0, f64::from(q) - sums.1);
            divergence += p.exp() * (p - q);
        }
        let best = |row: &[f32]| {
            let numbered = row.iter().enumerate();
            numbered
                .max_by(|a, b| a.1.total_cmp(b.1))
                .map(|(token, _)| token)
        };
        same += f64::from(u8::from(best(exact) == best(found)));
        n += 1.0;
    }
    (divergence / n, same / n)
}

/// The bounds are those that docs/QUANTIZATION.md promises of 8,192 tokens, with some more for fewer of them.
#[test]
fn trained_models_lose_little() {
    let bounds = [
        (Quant::Q6, 6.3, 4.6e-3, 0.95),
        (Quant::Q5, 5.6, 1.1e-2, 0.925),
        (Quant::Q4, 4.75, 2.9e-2, 0.89),
    ];
    let text = std::fs::read_to_string(repository("cli/demo/validation.txt")).expect("is there");
    for folder in ["tests/fixtures/demo4", "cli/demo"] {
        let exact = open(repository(folder), Quant::F32, 2);
        let mut tokens = exact
            .tokenizer()
            .expect("beside it")
            .encode(&text)
            .expect("any");
        tokens.truncate(1024);
        let logits = |model: &Model| model.session().eval_all(&tokens).expect("valid tokens");
        let expected = logits(&exact);
        for (quant, most_bits, most, least_same) in bounds {
            let model = open(repository(folder), quant, 2);
            let bits = model.info().bits_per_weight;
            let (divergence, same) = compared(&expected, &logits(&model), exact.n_vocab());
            println!("{folder} {quant}: {bits:.3} bits, KL {divergence:.5}, same {same:.4}");
            assert!(bits <= most_bits, "{folder} {quant}: {bits} bits");
            assert!(divergence <= most, "{folder} {quant}: {divergence}");
            assert!(same >= least_same, "{folder} {quant}: {same}");
        }
    }
}

/// Rounded by another part of the text than the one that is predicted.
#[test]
fn calibrated_models_lose_less() {
    let text = std::fs::read_to_string(repository("cli/demo/validation.txt")).expect("is there");
    for folder in ["tests/fixtures/demo4", "cli/demo"] {
        let exact = open(repository(folder), Quant::F32, 2);
        let tokenizer = exact.tokenizer().expect("beside it");
        let tokens = tokenizer.encode(&text).expect("any");
        let (tokens, others) = (&tokens[..1024], &tokens[1024..4096]);
        let logits = |model: &Model| model.session().eval_all(tokens).expect("valid tokens");
        let expected = logits(&exact);
        for quant in [Quant::Q5, Quant::Q4] {
            let options = Options::new().quant(quant).threads(2);
            let plain = open(repository(folder), quant, 2);
            let calibrated =
                Model::open_calibrated(repository(folder), &options, others, &mut |_| {})
                    .expect("a trained model");
            assert_eq!(formats(&calibrated), formats(&plain));
            assert_eq!(calibrated.info().fingerprint, plain.info().fingerprint);
            let [(plain, _), (calibrated, _)] = [&plain, &calibrated]
                .map(|model| compared(&expected, &logits(model), exact.n_vocab()));
            println!("{folder} {quant}: KL {plain:.5}, calibrated {calibrated:.5}");
            assert!(
                calibrated < 0.97 * plain,
                "{folder} {quant}: {calibrated}, {plain} without"
            );
        }
    }
}

/// With a text the mix for a size is the one that does least damage to it. In version 7 the first layer's values are part of
/// those of all layers.
#[test]
fn mixes_for_a_size_are_chosen_by_a_text() {
    let folder = repository("cli/demo");
    let text = std::fs::read_to_string(folder.join("validation.txt")).expect("is there");
    let exact = open(folder.clone(), Quant::F32, 2);
    let tokens = exact.tokenizer().expect("beside it").encode(&text);
    let tokens = tokens.expect("any");
    let (tokens, others) = (&tokens[..2048], &tokens[10_240..12_288]);
    let logits = |model: &Model| model.session().eval_all(tokens).expect("valid tokens");
    let expected = logits(&exact);
    let options = Options::new().threads(2).target(Target::MilliBits(4740));
    let by_kind = Model::open(&folder, &options).expect("a trained model");
    let by_text = Model::open_calibrated(&folder, &options, others, &mut |_| {});
    let by_text = by_text.expect("a trained model");
    let first_value = |model: &Model| {
        let mut formats = formats(model).into_iter();
        let found = formats.find(|(name, _)| name == "blocks.0.att.value.weight");
        found.expect("is there").1
    };
    assert_eq!(first_value(&by_kind), Quant::Q5);
    assert!(matches!(first_value(&by_text), Quant::Q6 | Quant::Int8));
    let q4 = Options::new().threads(2).quant(Quant::Q4);
    let q4 = Model::open_calibrated(&folder, &q4, others, &mut |_| {}).expect("a trained model");
    let [q4, by_text] = [&q4, &by_text].map(|m| compared(&expected, &logits(m), m.n_vocab()).0);
    println!("KL {by_text:.5}, with the mix of q4 {q4:.5}");
    assert!(by_text < 0.97 * q4, "{by_text}, {q4} with the mix of q4");
}

/// Every version and kind of checkpoint, whatever its widths are: the same model for any number of threads, hardly ever farther
/// off on the tokens that it was rounded by than without them.
#[test]
fn models_of_all_versions_are_calibrated() {
    for name in goldens() {
        let tokens = ids(&json(golden(name).join("expected.json"))["input_ids"]);
        let logits = |model: &Model| model.session().eval_all(&tokens).expect("valid tokens");
        let exact = logits(&open(golden(name), Quant::F32, 2));
        let calibrated = |options: Options, tokens: &[u32]| {
            let mut last = None;
            let model = Model::open_calibrated(golden(name), &options, tokens, &mut |p| {
                last = Some(p);
            });
            let model = model.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(
                last.is_some_and(|progress| progress.is_finished()),
                "{name}"
            );
            logits(&model)
        };
        let q4 = |threads| Options::new().quant(Quant::Q4).threads(threads);
        let found = calibrated(q4(2), &tokens);
        assert!(found == calibrated(q4(1), &tokens), "{name}");
        let plain = distance(&logits(&open(golden(name), Quant::Q4, 2)), &exact);
        let found = distance(&found, &exact);
        println!("{name}: {found:.3}, {plain:.3} without");
        assert!(found < 1.15 * plain, "{name}: {found} {plain}");

        // Narrow matrices take more than their bits.
        let mixed = |threads| {
            let options = Options::new().threads(threads);
            calibrated(options.target(Target::MilliBits(7500)), &tokens[..1])
        };
        let found = mixed(2);
        assert!(found == mixed(1), "{name}");
        let found = distance(&found, &exact);
        assert!(found < 1.1 * plain, "{name}: {found} {plain}");
    }
}

#[test]
fn what_cannot_be_calibrated_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("model.safetensors");
    let name = "v7-pth";
    open(golden(name), Quant::F16, 1)
        .save(&file, &mut |_| {})
        .expect("saved");
    let refused = |path: &std::path::Path, quant, tokens: &[u32]| {
        let options = Options::new().quant(quant).threads(1);
        let opened = Model::open_calibrated(path, &options, tokens, &mut |_| {});
        opened.expect_err("is refused").to_string()
    };
    let golden = golden(name);
    for (path, quant, tokens, said) in [
        (&file, Quant::Q4, &[1, 2][..], "expected the checkpoint"),
        (&golden, Quant::F16, &[1, 2], "expected q4, q5 or q6"),
        (&golden, Quant::Int8, &[1, 2], "expected q4, q5 or q6"),
        (&golden, Quant::Q4, &[], "no tokens"),
        (&golden, Quant::Q4, &[1, 1 << 20], "expected less than"),
    ] {
        let error = refused(path, quant, tokens);
        assert!(error.contains(said), "{error}");
    }
}

/// Made-up models with the outlier rows and columns of large ones: nothing breaks down.
#[test]
fn errors_on_goldens_are_those_of_so_many_bits() {
    for name in goldens() {
        let tokens = ids(&json(golden(name).join("expected.json"))["input_ids"]);
        let logits = |quant| {
            let model = open(golden(name), quant, 2);
            model.session().eval_all(&tokens).expect("valid tokens")
        };
        let exact = logits(Quant::F32);
        // What the first tokens of versions with heads have to say may be next to nothing, and normed nevertheless.
        let first = if name.starts_with('v') { 4 } else { 0 };
        let first = first * exact.len() / tokens.len();
        let errors: Vec<f64> = [Quant::Q6, Quant::Q5, Quant::Q4]
            .iter()
            .map(|&quant| distance(&logits(quant)[first..], &exact[first..]))
            .collect();
        println!("{name}: q6, q5, q4 {errors:.3?}");
        let bounds = [0.2, 0.4, 0.6];
        for (error, bound) in errors.iter().zip(bounds) {
            assert!(*error < bound, "{name}: {errors:?}");
        }
        assert!(errors[0] < errors[2], "{name}: {errors:?}");
    }
}

/// A file says of each matrix what it is: also one whose mix is not that of its quantisation.
#[test]
fn files_hold_any_mix_of_integers() {
    let folder = tempfile::tempdir().expect("a folder");
    let name = "v7-pth";
    let tokens = ids(&json(golden(name).join("expected.json"))["input_ids"]);
    let logits = |model: &Model| model.session().eval_all(&tokens).expect("valid tokens");
    let [q4, int8, f32] =
        [Quant::Q4, Quant::Int8, Quant::F32].map(|quant| open(golden(name), quant, 2));
    let names = ["blocks.1.ffn.key.weight", "head.weight"];
    let mixed = q4.with_matrices_of(&int8, &names).expect("of the same");
    let path = folder.path().join("mixed.safetensors");
    mixed.save(&path, &mut |_| {}).expect("integers are mixed");
    let again = Model::open(&path, &Options::default()).expect("just written");
    assert_eq!(again.info().quant, Quant::Q4);
    assert_eq!(formats(&again), formats(&mixed));
    let eights = formats(&again).into_iter();
    assert!(eights.filter(|(_, quant)| *quant == Quant::Int8).count() >= names.len());
    assert_eq!(logits(&again), logits(&mixed));
    assert_ne!(logits(&again), logits(&q4));

    let mixed = q4.with_matrices_of(&f32, &names).expect("of the same");
    let error = mixed
        .save(&path, &mut |_| {})
        .expect_err("floats have no place in it");
    assert!(error.to_string().contains("head.weight") || error.to_string().contains("ffn.key"));
}
