//! The channel mixing of RWKV-4 to 6: `x += sigmoid(receptance * xr) * (value * relu(key * xk)^2)`.
//! Only the token shift differs between them.

#![forbid(unsafe_code)]

use super::batch::Span;
use super::common::{Behind, Block, Buffers as CommonBuffers, Norm, Pass, Shares, Shifted};
use super::hidden::HiddenUnits;
use super::state::State;
use crate::math::kernels::fetch::fetch;
use crate::products::{fetch_input_factors, Activations};
use crate::quant::matrix::Matrix;

/// Its weights in one layer.
pub(crate) struct GatedMixing<'a> {
    pub(crate) norm: Norm<'a>,
    pub(crate) mix_key: Shares<'a>,
    pub(crate) mix_receptance: Shares<'a>,
    /// (n_hidden, n_embd)
    pub(crate) key: &'a Matrix,
    /// (n_embd, n_embd)
    pub(crate) receptance: &'a Matrix,
    /// (n_hidden, n_embd), a row per input
    pub(crate) value: &'a Matrix,
}

/// Memory for it; all are (rows, ..), row-major.
pub(crate) struct GatedBuffers<'a> {
    pub(crate) input_a: &'a mut Activations,
    pub(crate) input_b: &'a mut Activations,
    /// (rows, n_embd)
    pub(crate) receptance: &'a mut [f32],
    /// (rows, n_embd)
    pub(crate) value: &'a mut [f32],
    pub(crate) hidden: &'a mut HiddenUnits,
}

impl GatedMixing<'_> {
    /// The whole of it. `place` is the layer, and the state's part with the row of the token
    /// before.
    pub(crate) fn run<L: Block>(
        &self,
        (place, behind): ((usize, usize), Behind<'_, L>),
        pass: &Pass<'_>,
        common: &mut CommonBuffers,
        b: GatedBuffers<'_>,
        spans: &mut [Span<'_>],
    ) {
        let (kernels, n_rows) = (pass.machine.kernels, pass.n_rows);
        let (n_embd, n_hidden) = (self.norm.weight.len(), self.key.n_outputs());
        let shifted = [
            Shifted {
                mix: self.mix_key,
                matrix: self.key,
                input: b.input_a,
                out: b.hidden.keys_mut(n_rows, n_hidden),
            },
            Shifted {
                mix: self.mix_receptance,
                matrix: self.receptance,
                input: b.input_b,
                out: &mut b.receptance[..n_rows * n_embd],
            },
        ];
        fetch_input_factors(self.value);
        pass.shifted_products(place, self.norm, common, spans, shifted, &[self.value]);

        b.hidden.square(pass, self.value);
        let state = &*spans[pass.segments[0].span].state;
        let next = behind.fetch(pass, state, place.0 + 1);
        let (scratch, out) = (&mut common.scratch, &mut *b.value);
        b.hidden
            .multiply(pass, scratch, self.value, out, next.matrices());
        let (gate, delta) = (&*b.receptance, &*b.value);
        pass.add_to_residual(common, n_embd, |x, row| {
            let at = row * n_embd..(row + 1) * n_embd;
            kernels.add_gated(x, &gate[at.clone()], &delta[at]);
        });
    }

    /// The matrices of its first product.
    pub(crate) fn inputs(&self) -> [&Matrix; 2] {
        [self.key, self.receptance]
    }

    /// Fetches the vectors before that product; `place` as for [`run`](Self::run).
    pub(crate) fn fetch_vectors(&self, state: &State, place: (usize, usize)) {
        self.norm.fetch();
        self.mix_key.fetch();
        self.mix_receptance.fetch();
        fetch(state.part(place.0, place.1));
        self.inputs().into_iter().for_each(fetch_input_factors);
    }
}
