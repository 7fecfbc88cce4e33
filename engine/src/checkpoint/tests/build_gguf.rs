//! GGUF files put together byte by byte, sound ones and others.

use half::f16;

/// ggml's numbers of types.
pub(super) const F32: u32 = 0;
pub(super) const F16: u32 = 1;
pub(super) const Q8_0: u32 = 8;

/// A file in its parts. What is `None` is as it should be.
#[derive(Clone)]
pub(super) struct GgufFile {
    pub(super) version: u32,
    pub(super) n_tensors: Option<u64>,
    pub(super) n_keys: Option<u64>,
    /// Key, and type and value as bytes.
    pub(super) keys: Vec<(String, Vec<u8>)>,
    pub(super) tensors: Vec<Tensor>,
    pub(super) alignment: u64,
}

#[derive(Clone)]
pub(super) struct Tensor {
    pub(super) name: String,
    /// Rows first.
    pub(super) shape: Vec<u64>,
    pub(super) kind: u32,
    pub(super) offset: Option<u64>,
    pub(super) numbers: Vec<u8>,
}

fn text_bytes(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

pub(super) fn text(text: &str) -> Vec<u8> {
    [&8u32.to_le_bytes()[..], &text_bytes(text.as_bytes())].concat()
}

pub(super) fn integer(number: u32) -> Vec<u8> {
    [4u32.to_le_bytes(), number.to_le_bytes()].concat()
}

pub(super) fn float(number: f32) -> Vec<u8> {
    [6u32.to_le_bytes(), number.to_le_bytes()].concat()
}

/// A list of entries of that type; `len` in its header.
pub(super) fn list(kind: u32, len: u64, entries: &[u8]) -> Vec<u8> {
    let head = [9u32.to_le_bytes(), kind.to_le_bytes()].concat();
    [&head[..], &len.to_le_bytes(), entries].concat()
}

pub(super) fn texts(all: &[&[u8]]) -> Vec<u8> {
    let entries: Vec<u8> = all.iter().flat_map(|text| text_bytes(text)).collect();
    list(8, all.len() as u64, &entries)
}

pub(super) fn integers(all: &[i32]) -> Vec<u8> {
    let entries: Vec<u8> = all.iter().flat_map(|number| number.to_le_bytes()).collect();
    list(5, all.len() as u64, &entries)
}

impl GgufFile {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut header = b"GGUF".to_vec();
        header.extend(self.version.to_le_bytes());
        let n_tensors = self.n_tensors.unwrap_or(self.tensors.len() as u64);
        header.extend(n_tensors.to_le_bytes());
        let n_keys = self.n_keys.unwrap_or(self.keys.len() as u64);
        header.extend(n_keys.to_le_bytes());
        for (key, value) in &self.keys {
            header.extend(text_bytes(key.as_bytes()));
            header.extend(value);
        }
        let pad = |bytes: &mut Vec<u8>| {
            let aligned = bytes.len().next_multiple_of(self.alignment as usize);
            bytes.resize(aligned, 0);
        };
        let mut numbers = Vec::new();
        for tensor in &self.tensors {
            header.extend(text_bytes(tensor.name.as_bytes()));
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            for n in tensor.shape.iter().rev() {
                header.extend(n.to_le_bytes());
            }
            header.extend(tensor.kind.to_le_bytes());
            pad(&mut numbers);
            let offset = tensor.offset.unwrap_or(numbers.len() as u64);
            header.extend(offset.to_le_bytes());
            numbers.extend(&tensor.numbers);
        }
        pad(&mut header);
        header.extend(numbers);
        header
    }

    pub(super) fn tensor(&mut self, name: &str) -> &mut Tensor {
        let mut tensors = self.tensors.iter_mut();
        tensors.find(|tensor| tensor.name == name).unwrap()
    }

    /// Gives a key another value, or adds it.
    pub(super) fn set(&mut self, key: &str, value: Vec<u8>) {
        match self.keys.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value,
            None => self.keys.push((key.to_owned(), value)),
        }
    }
}

/// Number `i` of a tensor, exact in f16.
pub(super) fn number(name: &str, i: usize) -> f32 {
    let seed: usize = name.bytes().map(usize::from).sum();
    ((seed + 37 * i) % 401) as f32 / 16.0 - 12.0
}

/// A tensor of numbers of its own. 8-bit blocks have the scale 1/16.
pub(super) fn tensor(name: &str, shape: &[u64], kind: u32) -> Tensor {
    let n = shape.iter().product::<u64>() as usize;
    let mut numbers = Vec::new();
    for i in 0..n {
        let number = number(name, i);
        match kind {
            F32 => numbers.extend(number.to_le_bytes()),
            F16 => numbers.extend(f16::from_f32(number).to_le_bytes()),
            _ => {
                if i % 32 == 0 {
                    numbers.extend(f16::from_f32(1.0 / 16.0).to_le_bytes());
                }
                numbers.push(eight_bits(number) as i8 as u8);
            }
        }
    }
    Tensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        kind,
        offset: None,
        numbers,
    }
}

/// What 8-bit blocks hold of a number, in sixteenths.
pub(super) fn eight_bits(number: f32) -> f32 {
    (number * 16.0).clamp(-127.0, 127.0)
}

pub(super) const N_EMBD: u64 = 32;
pub(super) const N_HIDDEN: u64 = 96;
pub(super) const HEAD_SIZE: u64 = 8;
/// Of w, a, v and g.
pub(super) const RANKS: [u64; 4] = [4, 6, 3, 8];

/// A model of two layers: vectors in f32, matrices in f16, and those of some LoRAs in f32 or blocks.
pub(super) fn model(n_vocab: u64) -> GgufFile {
    let key = |name: &str, value: Vec<u8>| (name.to_owned(), value);
    let size = |name: &str, n: u64| key(&format!("rwkv7.{name}"), integer(n as u32));
    let [w, a, v, g] = RANKS;
    let keys = vec![
        key("general.architecture", text("rwkv7")),
        key("general.name", text("a small model")),
        size("context_length", 1_048_576),
        size("embedding_length", N_EMBD),
        size("block_count", 2),
        key("rwkv7.attention.layer_norm_epsilon", float(2e-5)),
        size("wkv.head_size", HEAD_SIZE),
        size("attention.decay_lora_rank", w),
        size("attention.iclr_lora_rank", a),
        size("attention.value_residual_mix_lora_rank", v),
        size("attention.gate_lora_rank", g),
        size("feed_forward_length", N_HIDDEN),
    ];
    let mut tensors = vec![tensor("token_embd.weight", &[n_vocab, N_EMBD], F16)];
    for layer in 0..2 {
        let mut add = |name: &str, shape: &[u64], kind: u32| {
            tensors.push(tensor(&format!("blk.{layer}.{name}.weight"), shape, kind));
        };
        add("time_mix_lerp_fused", &[6, 1, 1, N_EMBD], F32);
        // Of the first layer the third are copies of the second.
        let v = if layer == 0 { a } else { v };
        for (name, rank, kind) in [("w", w, F32), ("a", a, Q8_0), ("v", v, F16), ("g", g, Q8_0)] {
            add(&format!("time_mix_{name}1"), &[rank, N_EMBD], kind);
            let kind = if kind == Q8_0 { F16 } else { kind };
            add(&format!("time_mix_{name}2"), &[N_EMBD, rank], kind);
        }
        for name in ["w0", "a0", "v0", "k_k", "k_a", "r_k"] {
            add(&format!("time_mix_{name}"), &[N_EMBD], F32);
        }
        for name in ["receptance", "key", "value", "output"] {
            add(&format!("time_mix_{name}"), &[N_EMBD, N_EMBD], F16);
        }
        add("channel_mix_lerp_k", &[N_EMBD], F32);
        add("channel_mix_key", &[N_HIDDEN, N_EMBD], F16);
        add("channel_mix_value", &[N_EMBD, N_HIDDEN], Q8_0);
        for name in ["attn_norm", "attn_norm_2", "time_mix_ln"] {
            for end in ["weight", "bias"] {
                let name = format!("blk.{layer}.{name}.{end}");
                tensors.push(tensor(&name, &[N_EMBD], F32));
            }
        }
    }
    for name in ["token_embd_norm", "output_norm"] {
        for end in ["weight", "bias"] {
            tensors.push(tensor(&format!("{name}.{end}"), &[N_EMBD], F32));
        }
    }
    tensors.push(tensor("output.weight", &[n_vocab, N_EMBD], F16));
    GgufFile {
        version: 3,
        n_tensors: None,
        n_keys: None,
        keys,
        tensors,
        alignment: 32,
    }
}

/// Tokens as llama.cpp's converter lists them: the name of token 0, all bytes, more tokens, and padding up to 300.
pub(super) fn vocabulary(file: &mut GgufFile, more: &[&str]) {
    let mut tokens: Vec<String> = vec!["<s>".into()];
    for byte in 0..=255u8 {
        tokens.push(match byte {
            b'\t' => r"\t".into(),
            b'\n' => r"\n".into(),
            b'\r' => r"\r".into(),
            b'\\' => r"\\".into(),
            b' '..=b'~' => char::from(byte).to_string(),
            _ => format!(r"\x{byte:02x}"),
        });
    }
    tokens.extend(more.iter().map(|&token| token.to_owned()));
    let mut types = vec![1; tokens.len()];
    types[0] = 3;
    for id in tokens.len()..300 {
        tokens.push(format!("[PAD{id}]"));
        types.push(5);
    }
    let bytes: Vec<&[u8]> = tokens.iter().map(|token| token.as_bytes()).collect();
    file.set("tokenizer.ggml.model", text("rwkv"));
    file.set("tokenizer.ggml.tokens", texts(&bytes));
    file.set("tokenizer.ggml.token_type", integers(&types));
}
