//! Small made-up models of RWKV-5 of every version, and what they compute by the formulas, in f64.
//!
//! A token, with `y` the normed residual stream `x` and `p` that of the token before:
//!
//! ```text
//! m_c = y mu_c + p (1 - mu_c), c in k, v, r, g    r = Wr m_r, k = Wk m_k, v = Wv m_v, g = silu(Wg m_g)
//! head: o_j = sum_i r_i (u_i k_i v_j + S_ij),     S_ij = w_i S_ij + k_i v_j
//! x += Wo (groupnorm(o) g)                        5.0: without g
//! x += sigmoid(Wr' m_r) Wv' relu(Wk' m_k)^2
//! ```
//!
//! `w = exp(-exp(time_decay))`; `u` is `time_faaaa`, or `exp(time_first)`. Up to 5.1 both are one number for all `i` of a head.
#![allow(dead_code)]

use super::common::Random;
use super::tensors::{Tensor, Tensors};

pub const VOCABULARY: usize = 50;
pub const LAYERS: usize = 2;

/// A model of RWKV-5.
#[derive(Clone, Copy, Debug)]
pub struct Eagle {
    pub heads: usize,
    pub head_size: usize,
    /// RWKV-5.0 has none.
    pub has_gate: bool,
    /// `time_first`, whose exponentials count, or `time_faaaa`.
    pub bonus: &'static str,
    /// Of a tensor with a number for each head.
    pub shape: fn(usize) -> Vec<usize>,
}

/// As 5.0 was published.
pub const V5_0: Eagle = Eagle {
    heads: 2,
    head_size: 64,
    has_gate: false,
    bonus: "time_first",
    shape: |heads| vec![heads],
};

/// All ways in which decays and bonuses before 5.2 are called and shaped.
pub fn all() -> Vec<Eagle> {
    let mut all = Vec::new();
    for has_gate in [false, true] {
        for bonus in ["time_first", "time_faaaa"] {
            all.push(Eagle {
                has_gate,
                bonus,
                ..V5_0
            });
            all.push(Eagle {
                heads: 3,
                head_size: 32,
                has_gate,
                bonus,
                shape: |heads| vec![heads, 1],
            });
        }
    }
    // A single head shows its only number like many another tensor.
    all.push(Eagle {
        heads: 1,
        shape: |heads| vec![heads, 1, 1],
        ..V5_0
    });
    all
}

impl Eagle {
    pub fn width(&self) -> usize {
        self.heads * self.head_size
    }

    fn hidden(&self) -> usize {
        self.width() + 32
    }

    /// The tensors as a raw checkpoint has them.
    pub fn tensors(&self) -> Tensors {
        let (d, f, v) = (self.width(), self.hidden(), VOCABULARY);
        let mut random = Random(51);
        let mut tensors = Tensors::new();
        let mut put = |name: String, shape: Vec<usize>, (middle, spread): (f32, f32)| {
            let n = shape.iter().product();
            let numbers: Vec<f32> = (0..n).map(|_| middle + spread * random.float()).collect();
            tensors.insert(name, Tensor::from_f32(shape, &numbers));
        };
        let matrix = |inputs: usize| (0.0, 1.7 / (inputs as f32).sqrt());
        put("emb.weight".into(), vec![v, d], (0.0, 1.0));
        put("head.weight".into(), vec![v, d], matrix(d));
        let mut norms = vec!["ln_out".to_owned(), "blocks.0.ln0".into()];
        for layer in 0..LAYERS {
            let mut put = |name: &str, shape: Vec<usize>, range: (f32, f32)| {
                put(format!("blocks.{layer}.{name}"), shape, range);
            };
            norms.extend(["ln1", "ln2", "att.ln_x"].map(|norm| format!("blocks.{layer}.{norm}")));
            let gate: &[&str] = if self.has_gate { &["g"] } else { &[] };
            for mix in ["k", "v", "r"].iter().chain(gate) {
                put(&format!("att.time_mix_{mix}"), vec![1, 1, d], (0.5, 0.5));
            }
            for mix in ["k", "r"] {
                put(&format!("ffn.time_mix_{mix}"), vec![1, 1, d], (0.5, 0.5));
            }
            put("att.time_decay", (self.shape)(self.heads), (-1.5, 2.5));
            let bonus = format!("att.{}", self.bonus);
            put(&bonus, (self.shape)(self.heads), (-0.3, 1.2));
            let gate: &[&str] = if self.has_gate { &["gate"] } else { &[] };
            for one in ["receptance", "key", "value", "output"].iter().chain(gate) {
                put(&format!("att.{one}.weight"), vec![d, d], matrix(d));
            }
            put("ffn.key.weight", vec![f, d], matrix(d));
            put("ffn.value.weight", vec![d, f], matrix(f));
            put("ffn.receptance.weight", vec![d, d], matrix(d));
        }
        for norm in norms {
            put(format!("{norm}.weight"), vec![d], (1.0, 0.3));
            put(format!("{norm}.bias"), vec![d], (0.0, 0.2));
        }
        tensors
    }

    /// The same model as 5.2 would have it: a number for each channel, and bonuses that are no logarithms.
    pub fn as_5_2(&self) -> Tensors {
        let mut tensors = self.tensors();
        for layer in 0..LAYERS {
            for name in ["time_decay", self.bonus] {
                let old = format!("blocks.{layer}.att.{name}");
                let of_heads = tensors.remove(&old).expect("in every layer").floats();
                let numbers = of_heads.iter().map(|&number| match name {
                    "time_first" => f64::from(number).exp() as f32,
                    _ => number,
                });
                let numbers: Vec<f32> = numbers
                    .flat_map(|number| vec![number; self.head_size])
                    .collect();
                let shape = vec![self.heads, self.head_size];
                let name = old.replace("time_first", "time_faaaa");
                tensors.insert(name, Tensor::from_f32(shape, &numbers));
            }
        }
        tensors
    }

    /// Logits behind each token, and the state in the end as sessions have it.
    pub fn run(&self, tensors: &Tensors, tokens: &[u32]) -> (Vec<f64>, Vec<f64>) {
        let (d, n, heads) = (self.width(), self.head_size, self.heads);
        let get = |name: &str| -> Vec<f64> {
            let numbers = tensors[name].floats();
            numbers.into_iter().map(f64::from).collect()
        };
        let normed = |x: &[f64], name: &str| norm(x, &get(&weight(name)), &get(&bias(name)), 1e-5);
        let times = |matrix: &str, x: &[f64]| -> Vec<f64> {
            let rows = get(&weight(matrix));
            let rows = rows.chunks_exact(x.len());
            rows.map(|row| dot(row, x)).collect()
        };
        let mut previous = vec![[vec![0.0; d], vec![0.0; d]]; LAYERS];
        let mut states = vec![vec![0.0; heads * n * n]; LAYERS];
        let mut logits = Vec::new();
        for &token in tokens {
            let row = &get("emb.weight")[token as usize * d..][..d];
            let mut x = normed(row, "blocks.0.ln0");
            for layer in 0..LAYERS {
                let name = |leaf: &str| format!("blocks.{layer}.{leaf}");
                let y = normed(&x, &name("ln1"));
                let mixed = |part: &str, kind: &str, y: &[f64], p: &[f64]| -> Vec<f64> {
                    let mu = get(&name(&format!("{part}.time_mix_{kind}")));
                    let shifted = mu.iter().zip(y).zip(p);
                    shifted
                        .map(|((mu, y), p)| y * mu + p * (1.0 - mu))
                        .collect()
                };
                let p = std::mem::replace(&mut previous[layer][1], y.clone());
                let r = times(&name("att.receptance"), &mixed("att", "r", &y, &p));
                let k = times(&name("att.key"), &mixed("att", "k", &y, &p));
                let v = times(&name("att.value"), &mixed("att", "v", &y, &p));
                let decays = get(&name("att.time_decay"));
                let bonuses = get(&name(&format!("att.{}", self.bonus)));
                let (weights, biases) =
                    (get(&name("att.ln_x.weight")), get(&name("att.ln_x.bias")));
                let mut out = Vec::new();
                for head in 0..heads {
                    let w = (-decays[head].exp()).exp();
                    let u = match self.bonus {
                        "time_first" => bonuses[head].exp(),
                        _ => bonuses[head],
                    };
                    let own = head * n..(head + 1) * n;
                    let (r, k, v) = (&r[own.clone()], &k[own.clone()], &v[own.clone()]);
                    let state = &mut states[layer][head * n * n..][..n * n];
                    let mut o = vec![0.0; n];
                    for i in 0..n {
                        for j in 0..n {
                            o[j] += r[i] * (u * k[i] * v[j] + state[i * n + j]);
                            state[i * n + j] = w * state[i * n + j] + k[i] * v[j];
                        }
                    }
                    out.extend(norm(&o, &weights[own.clone()], &biases[own], 64e-5));
                }
                if self.has_gate {
                    let g = times(&name("att.gate"), &mixed("att", "g", &y, &p));
                    for (out, g) in out.iter_mut().zip(g) {
                        *out *= g * sigmoid(g);
                    }
                }
                add(&mut x, &times(&name("att.output"), &out));

                let y = normed(&x, &name("ln2"));
                let p = std::mem::replace(&mut previous[layer][0], y.clone());
                let mut k = times(&name("ffn.key"), &mixed("ffn", "k", &y, &p));
                k.iter_mut().for_each(|k| *k = k.max(0.0).powi(2));
                let r = times(&name("ffn.receptance"), &mixed("ffn", "r", &y, &p));
                let mut out = times(&name("ffn.value"), &k);
                for (out, r) in out.iter_mut().zip(r) {
                    *out *= sigmoid(r);
                }
                add(&mut x, &out);
            }
            logits.extend(times("head", &normed(&x, "ln_out")));
        }
        let layers = previous.into_iter().zip(states);
        let state = layers.flat_map(|([ffn, att], wkv)| [ffn, att, wkv].concat());
        (logits, state.collect())
    }
}

/// What rwkv.cpp's converter writes of a raw checkpoint of RWKV-5 before 5.2, or without a gate, in f32.
pub fn rwkv_cpp(tensors: &Tensors) -> Vec<u8> {
    let has_gate = tensors.contains_key("blocks.0.att.gate.weight");
    let mut bytes = b"fmgg".to_vec();
    let number = |bytes: &mut Vec<u8>, n: usize| bytes.extend((n as u32).to_le_bytes());
    let width = tensors["emb.weight"].shape[1];
    for n in [101, VOCABULARY, width, LAYERS, 0] {
        number(&mut bytes, n);
    }
    for (name, tensor) in tensors {
        let mut tensor = tensor.clone();
        let mapped = |tensor: &Tensor, f: fn(f32) -> f32| {
            let numbers: Vec<f32> = tensor.floats().into_iter().map(f).collect();
            Tensor::from_f32(tensor.shape.clone(), &numbers)
        };
        if name.contains(".time_") {
            tensor.shape.retain(|&n| n != 1);
        }
        let n = tensor.floats().len();
        if name.ends_with("time_decay") {
            tensor = mapped(&tensor, |x| (-x.exp()).exp());
            match has_gate {
                true => tensor.shape.push(1),
                false => tensor.shape = vec![n, 1, 1],
            }
        }
        if name.ends_with("time_first") {
            tensor = mapped(&tensor, f32::exp);
            tensor.shape = vec![n, 1, 1];
        }
        if name.ends_with("time_faaaa") {
            tensor.shape.push(1);
        }
        number(&mut bytes, tensor.shape.len());
        number(&mut bytes, name.len());
        number(&mut bytes, 0);
        for &n in tensor.shape.iter().rev() {
            number(&mut bytes, n);
        }
        bytes.extend(name.as_bytes());
        bytes.extend(tensor.bytes);
    }
    bytes
}

fn weight(name: &str) -> String {
    format!("{name}.weight")
}

fn bias(name: &str) -> String {
    format!("{name}.bias")
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut [f64], more: &[f64]) {
    x.iter_mut().zip(more).for_each(|(x, more)| *x += more);
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn norm(x: &[f64], weight: &[f64], bias: &[f64], epsilon: f64) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let channels = x.iter().zip(weight).zip(bias);
    channels
        .map(|((x, weight), bias)| (x - mean) / (variance + epsilon).sqrt() * weight + bias)
        .collect()
}
