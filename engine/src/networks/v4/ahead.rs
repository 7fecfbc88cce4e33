//! What a layer reads after each product, in the order of `v4.rs`.
//!
//! A layer's vectors are short pieces all over memory. The one thread that reads them would wait for them
//! one by one, and all others with it; so it fetches them before the product that comes first.

#![forbid(unsafe_code)]

use crate::math::kernels::fetch::fetch;
use crate::networks::state::State;
use crate::products::fetch_input_factors;
use crate::quant::matrix::Matrix;

use super::{ChannelMixing, Network, Norm, TimeMixing};

impl Norm {
    fn fetch(&self) {
        fetch(&self.weight);
        fetch(&self.bias);
    }
}

impl TimeMixing {
    /// The matrices of the first product.
    pub(super) fn inputs(&self) -> [&Matrix; 3] {
        [&self.key, &self.value, &self.receptance]
    }

    /// The vectors before the first product; `index` is that of the layer.
    pub(super) fn fetch_vectors(&self, state: &State, index: usize) {
        self.norm.fetch();
        fetch(&self.mix_key);
        fetch(&self.mix_value);
        fetch(&self.mix_receptance);
        fetch(state.att_previous(index));
        self.inputs().into_iter().for_each(fetch_input_factors);
    }

    /// Those between the products.
    pub(super) fn fetch_vectors_of_wkv(&self, state: &mut State, index: usize) {
        fetch(&self.decay_log);
        fetch(&self.bonus);
        fetch(state.layer_mut(index).wkv);
        fetch_input_factors(&self.output);
    }
}

impl ChannelMixing {
    /// The matrices of the first product.
    pub(super) fn inputs(&self) -> [&Matrix; 2] {
        [&self.key, &self.receptance]
    }

    /// The vectors before the first product; `index` is that of the layer.
    pub(super) fn fetch_vectors(&self, state: &State, index: usize) {
        self.norm.fetch();
        fetch(&self.mix_key);
        fetch(&self.mix_receptance);
        fetch(state.ffn_previous(index));
        self.inputs().into_iter().for_each(fetch_input_factors);
    }
}

impl Network {
    /// The vectors before the head.
    pub(super) fn fetch_vectors_of_head(&self) {
        if let Some(head) = &self.head {
            head.norm.fetch();
            fetch_input_factors(&head.matrix);
        }
    }
}
