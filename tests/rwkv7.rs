//! RWKV-7 in every form in which it is published: what each is read as, what is written, and what is refused.
//!
//! The forms are built here from the tensors of a golden directory, by rules of their own.

mod common;
#[path = "common/rwkv7.rs"]
mod forms;
#[path = "common/tensors.rs"]
mod tensors;

use std::fs;
use std::path::{Path, PathBuf};

use common::{floats, golden, ids, json, open, Random};
use forms::{golden_config, golden_raw, golden_tensors, transposed, Folder, GOLDEN};
use rwkv_edge::{CheckpointSource, ConvertOptions, ErrorKind, Model, Options, Quant};
use serde_json::{json, Value};
use tensors::{read_folder, safetensors, Tensor, Tensors};

/// Logits behind some tokens, as bits.
fn logits(path: &Path, quant: Quant) -> Vec<u32> {
    let tokens = ids(&json(golden(GOLDEN).join("expected.json"))["input_ids"]);
    let model = open(path.to_owned(), quant, 2);
    let mut session = model.session();
    let logits = session.eval(&tokens[..40]).expect("valid tokens");
    logits.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn logits_are_those_of_the_reference() {
    let expected = json(golden(GOLDEN).join("expected.json"));
    let tokens = ids(&expected["input_ids"]);
    let model = open(golden(GOLDEN), Quant::F32, 2);
    let mut session = model.session();
    let found = session.eval(&tokens).expect("valid tokens");
    let expected = floats(&expected["logits_last"]);
    let pairs = found.iter().zip(&expected);
    let largest = pairs
        .map(|(&a, &b)| (f64::from(a) - b).abs())
        .fold(0.0, f64::max);
    // The standard deviation of these logits is 1.8.
    assert!(largest < 1e-4, "{largest}");
    let info = model.info();
    assert_eq!((info.version, info.n_params), (7, 860_928));
}

/// All forms of one model give the same bits, and are known as one checkpoint.
#[test]
fn every_form_is_the_same_model() {
    let folder = Folder::new();
    let theirs = golden_tensors();
    let raw = golden_raw();
    let prefixed = |prefix: &str| -> Tensors {
        let name = |name: &str| match name {
            "head.weight" => name.to_owned(),
            name => format!("{prefix}{name}"),
        };
        raw.iter()
            .map(|(n, tensor)| (name(n), tensor.clone()))
            .collect()
    };
    let in_one = |shape: &[usize]| -> Tensors {
        let mut all = theirs.clone();
        for layer in 0..3 {
            let name = |c: char| format!("model.layers.{layer}.attn.x_{c}");
            let parts =
                ['r', 'w', 'k', 'v', 'a', 'g'].map(|c| all.remove(&name(c)).expect("there"));
            let bytes = parts.iter().flat_map(|part| part.bytes.clone()).collect();
            let shape = shape.to_vec();
            let one = Tensor {
                dtype: "BF16".into(),
                shape,
                bytes,
            };
            all.insert(name('x'), one);
        }
        all
    };
    let linear = |prefix: &str, embedding: &str, end: &str| -> Tensors {
        let linear = |(name, tensor): (&String, &Tensor)| {
            let leaf = name.rsplit('.').next().expect("a segment");
            let is_low_rank = leaf.len() == 2 && (leaf.ends_with('1') || leaf.ends_with('2'));
            match (name.as_str(), is_low_rank) {
                ("head.weight", _) => (name.clone(), tensor.clone()),
                ("emb.weight", _) => (format!("{prefix}{embedding}"), tensor.clone()),
                (_, true) => (format!("{prefix}{name}{end}"), transposed(tensor)),
                _ => (format!("{prefix}{name}"), tensor.clone()),
            }
        };
        raw.iter().map(linear).collect()
    };
    let mut with_unused = theirs.clone();
    for part in ["lora.0.weight", "lora.2.weight", "lora.2.bias"] {
        let of = |layer: usize| format!("model.layers.{layer}.attn.v_lora.{part}");
        with_unused.insert(of(0), theirs[&of(1)].clone());
    }
    let sizes = json!({
        "vocab_size": 300, "hidden_size": 192, "num_hidden_layers": 3, "intermediate_size": 192,
        "head_size": 64, "model_type": "rwkv7",
    });
    let mut by_version = sizes.clone();
    by_version["model_type"] = json!("rwkv");
    by_version["architecture_version"] = json!("rwkv7");
    let mut nulls = golden_config();
    for (field, value) in nulls.as_object_mut().expect("an object") {
        if value.is_number() || field == "value_dim" {
            *value = Value::Null;
        }
    }
    let nothing = json!({ "model_type": "rwkv7" });
    let forms = [
        ("nulls", theirs.clone(), &nulls),
        ("no-sizes", theirs.clone(), &nothing),
        ("unused-in-layer-0", with_unused, &golden_config()),
        ("x_x", in_one(&[6, 192]), &golden_config()),
        ("x_x-broadcast", in_one(&[6, 1, 1, 192]), &golden_config()),
        ("transformers", prefixed("rwkv7."), &sizes),
        ("transformers-by-version", prefixed("model."), &by_version),
        ("transformers-no-sizes", prefixed("model."), &nothing),
        (
            "transformers-linear",
            linear("model.", "embeddings.weight", ".weight"),
            &sizes,
        ),
        ("transposed-raw", linear("", "emb.weight", ""), &nothing),
        ("raw", raw.clone(), &nothing),
    ];
    let mut paths: Vec<PathBuf> = forms
        .iter()
        .map(|(name, tensors, config)| folder.model(name, tensors, config))
        .collect();
    for (name, tensors) in [("lone-fla", &theirs), ("lone-raw", &raw)] {
        let path = folder.path(name);
        fs::write(&path, safetensors(tensors)).expect("can be written");
        paths.push(path);
    }
    let quants = [Quant::F32, Quant::F16, Quant::Int8];
    let expected = quants.map(|quant| logits(&golden(GOLDEN), quant));
    let known_by = open(golden(GOLDEN), Quant::F32, 2).info().fingerprint;
    for path in &paths {
        let what = path.display();
        for (quant, expected) in quants.iter().zip(&expected) {
            assert!(logits(path, *quant) == *expected, "{what} {quant}");
        }
        let model = open(path.clone(), Quant::F32, 2);
        assert_eq!(model.info().fingerprint, known_by, "{what}");
    }
}

/// The epsilon of the norms of heads: of flash-linear-attention 64 times that of others, of all others 64e-5 unless they
/// say it.
#[test]
fn norms_of_heads() {
    let folder = Folder::new();
    let theirs = golden_tensors();
    let mut config = golden_config();
    config["norm_eps"] = json!(1e-4);
    let scaled = logits(&folder.model("fla", &theirs, &config), Quant::F32);
    assert!(scaled != logits(&golden(GOLDEN), Quant::F32));
    let raw = golden_raw();
    let config = json!({ "model_type": "rwkv7", "layer_norm_epsilon": 1e-4 });
    let plain = logits(&folder.model("plain", &raw, &config), Quant::F32);
    assert!(scaled != plain);
    for name in ["norm_eps", "layer_norm_epsilon"] {
        let mut config = json!({ "model_type": "rwkv7", "group_norm_epsilon": 64e-4 });
        config[name] = json!(1e-4);
        let said = logits(&folder.model("said", &raw, &config), Quant::F32);
        assert!(scaled == said, "{name}");
    }
    // What the names of such a directory do not say, a field does.
    let (written, raw) = (folder.path("x"), folder.path("x.pth"));
    to_hugging_face(&folder.path("plain"), &written, u64::MAX);
    let config = json(written.join("config.json"));
    assert_eq!(config["group_norm_epsilon"], json!(64e-5));
    assert!(logits(&written, Quant::F32) == plain);
    to_raw(&written, &raw);
    assert!(json(golden(GOLDEN).join("config.json"))["group_norm_epsilon"].is_null());
}

fn to_hugging_face(source: &Path, target: &Path, shard_bytes: u64) {
    let options = ConvertOptions::new().shard_bytes_max(shard_bytes);
    let source = CheckpointSource::open(source).unwrap_or_else(|e| panic!("{e}"));
    let done = source.to_hugging_face(target, &options, &mut |_| {});
    done.unwrap_or_else(|e| panic!("{e}"));
}

fn to_raw(source: &Path, target: &Path) {
    let source = CheckpointSource::open(source).unwrap_or_else(|e| panic!("{e}"));
    let done = source.to_raw(target, &ConvertOptions::new(), &mut |_| {});
    done.unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn conversions_there_and_back() {
    let folder = Folder::new();
    let theirs = golden_tensors();
    let (raw, back, again) = (
        folder.path("raw.pth"),
        folder.path("back"),
        folder.path("again.pth"),
    );
    to_raw(&golden(GOLDEN), &raw);
    to_hugging_face(&raw, &back, 0);
    assert!(read_folder(&back) == theirs, "names, shapes and bytes");
    to_raw(&back, &again);
    let read = |path: &Path| fs::read(path).expect("was written");
    assert!(read(&raw) == read(&again));
    // What the raw file holds, by its own reader: that is how flash-linear-attention's is made of it.
    let by_hand = folder.model("by-hand", &golden_raw(), &json!({ "model_type": "rwkv7" }));
    let other = folder.path("by-hand.pth");
    to_raw(&by_hand, &other);
    assert!(read(&raw) == read(&other));
    for quant in [Quant::F32, Quant::Int8] {
        let expected = logits(&golden(GOLDEN), quant);
        assert!(
            logits(&raw, quant) == expected && logits(&back, quant) == expected,
            "{quant}"
        );
    }
    // Published raw files hold matrices of the first layer that are never used.
    let (there, back) = (folder.path("pth"), folder.path("pth-back.pth"));
    to_hugging_face(&golden("v7-pth").join("model.pth"), &there, 0);
    assert!(!read_folder(&there).contains_key("model.layers.0.attn.v_lora.lora.0.weight"));
    to_raw(&there, &back);
    assert!(logits(&back, Quant::F32) == logits(&golden("v7-pth").join("model.pth"), Quant::F32));
}

#[test]
fn configurations_as_flash_linear_attention_has_them() {
    let folder = Folder::new();
    let (raw, back, own) = (
        folder.path("raw.pth"),
        folder.path("back"),
        folder.path("own"),
    );
    to_raw(&golden(GOLDEN), &raw);
    to_hugging_face(&raw, &back, 0);
    to_hugging_face(&golden(GOLDEN), &own, 0);
    let mut expected = golden_config();
    let fields = expected.as_object_mut().expect("an object");
    // No code is written, and the type of the weights has its newer name.
    fields.remove("auto_map");
    fields.remove("torch_dtype");
    expected["dtype"] = json!("bfloat16");
    expected["transformers_version"] = json!("4.57.6");
    assert_eq!(json(own.join("config.json")), expected);
    expected["max_position_embeddings"] = json!(4096);
    assert_eq!(json(back.join("config.json")), expected);
    let generation = json(back.join("generation_config.json"));
    assert_eq!(
        (&generation["bos_token_id"], &generation["eos_token_id"]),
        (&json!(0), &json!(0))
    );
    // Of transformers' own directories nothing is left that contradicts this.
    let config = json!({
        "model_type": "rwkv", "architecture_version": "rwkv7", "head_size": 64, "context_length": 8192,
        "layer_norm_epsilon": 1e-5, "group_norm_epsilon": 64e-5, "embedding_layer_norm_fused": false,
        "use_deep_embed": false, "wkv_state_dtype": "float32", "license": "of its own",
    });
    let source = folder.model("transformers", &golden_raw(), &config);
    to_hugging_face(&source, &folder.path("of-transformers"), 0);
    expected["max_position_embeddings"] = json!(8192);
    expected["license"] = json!("of its own");
    assert_eq!(json(folder.path("of-transformers/config.json")), expected);
}

/// Tensors come into shards in the order in which the modules of flash-linear-attention are made.
#[test]
fn shards_are_filled_in_order() {
    let folder = Folder::new();
    let target = folder.path("shards");
    // A shard for each tensor.
    to_hugging_face(&golden(GOLDEN), &target, 1);
    let index = json(target.join("model.safetensors.index.json"));
    let map = index["weight_map"].as_object().expect("an object").iter();
    let mut names: Vec<_> = map
        .map(|(name, shard)| (shard.as_str().expect("a name"), name.as_str()))
        .collect();
    names.sort_unstable();
    let names: Vec<_> = names.into_iter().map(|(_, name)| name).collect();
    let of_layer = |layer: usize| {
        let prefix = format!("model.layers.{layer}.");
        let names = names.iter().filter_map(|name| name.strip_prefix(&*prefix));
        names.map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    let expected = "attn_norm.weight attn_norm.bias attn.x_r attn.x_w attn.x_k attn.x_v attn.x_a attn.x_g attn.k_k \
         attn.k_a attn.r_k attn.r_proj.weight attn.k_proj.weight attn.v_proj.weight attn.o_proj.weight \
         attn.w_lora.lora.0.weight attn.w_lora.lora.2.weight attn.w_lora.lora.2.bias attn.v_lora.lora.0.weight \
         attn.v_lora.lora.2.weight attn.v_lora.lora.2.bias attn.a_lora.lora.0.weight attn.a_lora.lora.2.weight \
         attn.a_lora.lora.2.bias attn.g_lora.lora.0.weight attn.g_lora.lora.2.weight attn.g_norm.weight \
         attn.g_norm.bias ffn_norm.weight ffn_norm.bias ffn.x_k ffn.key.weight ffn.value.weight";
    assert_eq!(of_layer(1), expected);
    assert!(of_layer(0).starts_with("pre_norm.weight pre_norm.bias attn_norm.weight"));
    assert_eq!(names[0], "model.embeddings.weight");
    let last = ["model.norm.weight", "model.norm.bias", "lm_head.weight"];
    assert_eq!(names[names.len() - 3..], last);
}

#[test]
fn other_models_are_refused_by_name() {
    let folder = Folder::new();
    let theirs = golden_tensors();
    let refused = |name: &str, tensors: &Tensors, config: &Value, kind: ErrorKind, words: &str| {
        let path = folder.model(name, tensors, config);
        let error = Model::open(&path, &Options::new()).expect_err(name);
        let text = error.to_string();
        assert!(text.contains(words), "{name}: {text}");
        assert_eq!(error.kind(), kind, "{name}: {text}");
    };
    use ErrorKind::{Format, Unsupported};
    for (field, value, kind, words) in [
        ("attn", json!({"layers": [1], "num_heads": 4}), Unsupported,
            "attn: a hybrid of RWKV-7 with layers of attention, expected null"),
        ("use_deep_embed", json!(true), Unsupported, "use_deep_embed true: RWKV-7a"),
        ("embedding_layer_norm_fused", json!(true), Unsupported,
            "embedding_layer_norm_fused true: embeddings that are normalised already, expected false"),
        ("hidden_act", json!("relu"), Unsupported, "hidden_act \"relu\": another activation"),
        ("norm_first", json!(false), Unsupported, "norm_first false: embeddings that are not normalised"),
        ("norm_bias", json!(false), Unsupported, "norm_bias false: norms without bias, expected true"),
        ("value_dim", json!([192, 384, 192]), Unsupported, "value_dim 384 of layer 1, expected 192"),
        ("value_dim", json!(384), Unsupported, "value_dim 384 of layer 0, expected 192"),
        ("model_type", json!("rwkv7moe"), Unsupported,
            "model_type \"rwkv7moe\" (RWKV-7 with a mixture of experts), expected \"rwkv7\" (RWKV-7)"),
        ("model_type", json!("rwkv6qwen2"), Unsupported, "(QRWKV6, a Qwen2 with RWKV-6 for its attention)"),
        ("model_type", json!("rwkv"), Format, "are those of RWKV-7, expected RWKV-4 by config.json"),
        ("head_dim", json!(48), Format, "expected [4, 48] by config.json"),
        ("decay_low_rank_dim", json!(32), Format,
            "w_lora.lora.0.weight: shape [16, 192], expected [32, 192] by config.json"),
        ("hidden_size", json!(0), Format, "hidden_size 0, expected 1 to 65536"),
        ("norm_eps", json!("x"), Format, "norm_eps \"x\", expected a number"),
        ("tie_word_embeddings", json!(true), Format, "lm_head.weight: a head, expected none"),
    ] {
        let mut config = golden_config();
        config[field] = value;
        refused(field, &theirs, &config, kind, words);
    }
    let config = json!({"model_type": "rwkv", "architecture_version": "rwkv3"});
    refused(
        "version",
        &theirs,
        &config,
        Unsupported,
        "architecture_version \"rwkv3\", expected \"rwkv7\", \"rwkv6\", \"rwkv5\" or \"rwkv4\"",
    );
    // By their tensors alone.
    let nothing = json!({"model_type": "rwkv7"});
    let small = Tensor::from_f32(vec![1], &[0.0]);
    for (name, words) in [
        ("blocks.1.ffn.s_emb.weight", "shows RWKV-7a"),
        ("blocks.0.qkv.qq.weight", "shows RWKV-7b"),
        ("blocks.0.ffn.enn.weight", "shows RWKV-8"),
    ] {
        let mut tensors = golden_raw();
        tensors.insert(name.to_owned(), small.clone());
        refused(name, &tensors, &nothing, Unsupported, words);
    }
    let mut tensors = theirs.clone();
    tensors.insert(
        "model.layers.1.attn.x_x".into(),
        Tensor::from_f32(vec![5, 192], &[0.0; 960]),
    );
    refused(
        "x_x",
        &tensors,
        &nothing,
        Format,
        "attn.x_x: shape [5, 192], expected 6 vectors",
    );
    let mut tensors = theirs.clone();
    tensors.insert(
        "model.layers.1.attn.x_x".into(),
        Tensor::from_f32(vec![6, 192], &[0.0; 1152]),
    );
    refused("both", &tensors, &nothing, Format, "the same as tensor");
    let mut tensors = theirs.clone();
    tensors.insert("model.layers.1.attn.foo".into(), small);
    refused(
        "foo",
        &tensors,
        &nothing,
        Format,
        "attn.foo: not part of an RWKV-7 model with 3 layers",
    );
}

/// A head that is the embedding, as transformers saves it: once.
#[test]
fn tied_heads() {
    let folder = Folder::new();
    let mut theirs = golden_tensors();
    let embedding = theirs["model.embeddings.weight"].clone();
    theirs.insert("lm_head.weight".into(), embedding);
    let untied = folder.model("untied", &theirs, &golden_config());
    theirs.remove("lm_head.weight");
    let mut config = golden_config();
    config["tie_word_embeddings"] = json!(true);
    let tied = folder.model("tied", &theirs, &config);
    assert!(logits(&tied, Quant::F32) == logits(&untied, Quant::F32));
    to_hugging_face(&tied, &folder.path("again"), 0);
    assert!(read_folder(&folder.path("again")) == theirs);
}

/// A model of heads of 8 with a vocabulary of any size.
fn tiny(n_vocab: usize) -> Tensors {
    let (width, rank, hidden) = (8, 2, 16);
    let mut random = Random(7);
    let mut all = Tensors::new();
    let mut add = |name: &str, shape: &[usize]| {
        let n = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|_| random.float()).collect();
        let tensor = Tensor::from_f32(shape.to_vec(), &values);
        all.insert(name.to_owned(), tensor.as_type("F16"));
    };
    for name in ["model.embeddings.weight", "lm_head.weight"] {
        add(name, &[n_vocab, width]);
    }
    for norm in [
        "norm",
        "layers.0.pre_norm",
        "layers.0.attn_norm",
        "layers.0.ffn_norm",
        "layers.0.attn.g_norm",
    ] {
        for part in ["weight", "bias"] {
            add(&format!("model.{norm}.{part}"), &[width]);
        }
    }
    for pair in ["w", "a", "g"] {
        let name = |part: &str| format!("model.layers.0.attn.{pair}_lora.lora.{part}");
        add(&name("0.weight"), &[rank, width]);
        add(&name("2.weight"), &[width, rank]);
        if pair != "g" {
            add(&name("2.bias"), &[width]);
        }
    }
    for leaf in ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a"] {
        add(&format!("model.layers.0.attn.{leaf}"), &[width]);
    }
    add("model.layers.0.attn.r_k", &[1, width]);
    for leaf in ["r_proj", "k_proj", "v_proj", "o_proj"] {
        add(
            &format!("model.layers.0.attn.{leaf}.weight"),
            &[width, width],
        );
    }
    add("model.layers.0.ffn.x_k", &[width]);
    add("model.layers.0.ffn.key.weight", &[hidden, width]);
    add("model.layers.0.ffn.value.weight", &[width, hidden]);
    all
}

/// World's texts end with token 0, whatever a configuration says, and its own list of tokens is what counts.
#[test]
fn directories_of_world_models() {
    let folder = Folder::new();
    let config = json!({ "model_type": "rwkv7", "bos_token_id": 1, "eos_token_id": [2, 261] });
    let list: String = (0..256)
        .map(|i| format!("{} b'\\x{i:02x}' 1\n", i + 1))
        .collect();
    for (n_vocab, ends, has_list) in [(65_536, vec![0], true), (400, vec![2, 261], false)] {
        let path = folder.model(&n_vocab.to_string(), &tiny(n_vocab), &config);
        fs::write(path.join("rwkv_vocab_v20230424.txt"), &list).expect("can be written");
        fs::write(path.join("tokenizer.json"), "{}").expect("can be written");
        let model = open(path.clone(), Quant::F32, 1);
        let info = model.info();
        assert_eq!(info.ends_of_text, ends, "{n_vocab}");
        // What is corrected is told.
        let told = info.correction.unwrap_or_default();
        assert_eq!(told.contains("eos_token_id [2, 261]"), has_list, "{told}");
        let name = info.tokenizer.expect("one of two");
        assert_eq!(
            name.ends_with("rwkv_vocab_v20230424.txt"),
            has_list,
            "{name}"
        );
        // Both go along into another directory.
        let options = ConvertOptions::new();
        let source = CheckpointSource::open(&path).expect("a checkpoint");
        let target = folder.path("converted").join(n_vocab.to_string());
        source
            .to_hugging_face(&target, &options, &mut |_| {})
            .expect("can be written");
        let eos = &json(target.join("config.json"))["eos_token_id"];
        assert_eq!(*eos, if has_list { json!(0) } else { json!([2, 261]) });
        let kept = fs::read_to_string(target.join("rwkv_vocab_v20230424.txt"));
        assert_eq!(kept.expect("was copied"), list);
        assert!(target.join("tokenizer.json").exists());
        assert!(read_folder(&target) == read_folder_of_one(&path));
    }
}

/// As written, with vectors of the token shift as [1, 1, n].
fn read_folder_of_one(path: &Path) -> Tensors {
    let mut all = tensors::read_file(&path.join("model.safetensors"));
    for (name, tensor) in &mut all {
        if name.contains(".attn.x_") {
            tensor.shape = vec![1, 1, 8];
        }
    }
    all
}
