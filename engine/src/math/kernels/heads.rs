//! What the kernels of the time mixing take: numbers of channels and heads, by their names.

#![forbid(unsafe_code)]

/// Per-channel constants of WKV.
#[derive(Clone, Copy)]
pub struct WkvChannels<'a> {
    /// Log of the decay a step, <= 0.
    pub decay_log: &'a [f32],
    /// Extra log-weight of the present token.
    pub bonus: &'a [f32],
}

/// Constants of one head of RWKV-7, a number a channel each.
#[derive(Clone, Copy)]
pub struct Wkv7Head<'a> {
    /// w0, a0: what the low-rank parts of decay and in-context learning rate are added to.
    pub decay_bias: &'a [f32],
    /// See `decay_bias`.
    pub iclr_bias: &'a [f32],
    /// k_k: what the key is multiplied with to be the one that is replaced.
    pub key_scale: &'a [f32],
    /// k_a: how far the learning rate scales the key that is added.
    pub key_iclr: &'a [f32],
    /// r_k: weight of the present token.
    pub bonus: &'a [f32],
    /// ln_x: of the norm of the head's outputs.
    pub norm_weight: &'a [f32],
    /// See `norm_weight`.
    pub norm_bias: &'a [f32],
    /// Of that norm.
    pub norm_epsilon: f32,
}

/// What matrices made of one token for one head of RWKV-7, a number a channel each.
#[derive(Clone, Copy)]
pub struct Wkv7Token<'a> {
    /// r
    pub receptance: &'a [f32],
    /// k, as its matrix gives it.
    pub key: &'a [f32],
    /// v, likewise.
    pub value: &'a [f32],
    /// The low-rank parts of w, a and g.
    pub decay: &'a [f32],
    /// See `decay`.
    pub iclr: &'a [f32],
    /// See `decay`.
    pub gate: &'a [f32],
    /// In every layer but the first.
    pub value_mix: Option<Wkv7ValueMix<'a>>,
}

/// What a layer's value is mixed with.
#[derive(Clone, Copy)]
pub struct Wkv7ValueMix<'a> {
    /// The first layer's value of the same token.
    pub first: &'a [f32],
    /// The low-rank part of the share, and v0, which it is added to.
    pub part: &'a [f32],
    /// See `part`.
    pub bias: &'a [f32],
}

/// Constants of one head of RWKV-5 or 6, a number a channel each.
#[derive(Clone, Copy)]
pub struct Wkv6Head<'a> {
    /// time_faaaa: weight of the present token.
    pub bonus: &'a [f32],
    /// ln_x: of the norm of the head's outputs.
    pub norm_weight: &'a [f32],
    /// See `norm_weight`.
    pub norm_bias: &'a [f32],
    /// Of that norm.
    pub norm_epsilon: f32,
}

/// What one token brings to one head of RWKV-5 or 6, a number a channel each.
#[derive(Clone, Copy)]
pub struct Wkv6Token<'a> {
    /// r
    pub receptance: &'a [f32],
    /// k
    pub key: &'a [f32],
    /// v
    pub value: &'a [f32],
    /// w, what the state is multiplied with: between 0 and 1.
    pub decay: &'a [f32],
    /// g, as its matrix gives it; RWKV-5.0 has none.
    pub gate: Option<&'a [f32]>,
}

impl Wkv6Head<'_> {
    pub(super) fn check(&self, n: usize) {
        let vectors = [self.bonus, self.norm_weight, self.norm_bias];
        assert!(vectors.iter().all(|vector| vector.len() == n));
    }
}

impl Wkv6Token<'_> {
    pub(super) fn check(&self, n: usize) {
        let vectors = [self.receptance, self.key, self.value, self.decay];
        let vectors = vectors.into_iter().chain(self.gate);
        assert!(vectors.map(<[f32]>::len).all(|len| len == n));
    }
}

impl Wkv7Head<'_> {
    pub(super) fn check(&self, n: usize) {
        let vectors = [
            self.decay_bias,
            self.iclr_bias,
            self.key_scale,
            self.key_iclr,
            self.bonus,
            self.norm_weight,
            self.norm_bias,
        ];
        assert!(vectors.iter().all(|vector| vector.len() == n));
    }
}

impl Wkv7Token<'_> {
    pub(super) fn check(&self, n: usize) {
        let vectors = [
            self.receptance,
            self.key,
            self.value,
            self.decay,
            self.iclr,
            self.gate,
        ];
        assert!(vectors.iter().all(|vector| vector.len() == n));
        if let Some(mix) = &self.value_mix {
            let vectors = [mix.first, mix.part, mix.bias];
            assert!(vectors.iter().all(|vector| vector.len() == n));
        }
    }
}
