//! The forms of numbers that checkpoints store otherwise than networks use them.
//!
//! Each is made from the other in f64 and rounded once: a decay is applied once a token, for ever.

#![forbid(unsafe_code)]

/// What a checkpoint holds in place of a tensor's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The numbers themselves.
    Same,
    /// `x`, where the network has `-exp(x)`.
    MinusExp,
    /// `x`, where the network has `exp(-exp(x))`.
    ExpOfMinusExp,
}

/// `exp(-exp(x))` is 0 in f32 for this number and larger ones, which would round to infinity in
/// narrow types.
const ALL_DECAY: f32 = 5.0;

/// A number whose exp() is 0 in f32, for a decay that was rounded to none at all. Smaller ones do
/// as well, but would round to infinity in f16.
const NO_DECAY: f32 = -104.0;

impl Form {
    /// The network's number, from the checkpoint's.
    pub(crate) fn to_network(self, stored: f32) -> f32 {
        match self {
            Form::Same => stored,
            Form::MinusExp => self.within_f32(-(f64::from(stored).exp() as f32)),
            Form::ExpOfMinusExp => (-f64::from(stored).exp()).exp() as f32,
        }
    }

    /// Whether this is what the network's number became beyond the largest of f32: exp() of 88.73 and more.
    pub(crate) fn is_beyond_f32(self, value: f32) -> bool {
        self == Form::MinusExp && value == f32::NEG_INFINITY
    }

    /// The network's number, or for one beyond the largest of f32 that one: a decay of either forgets all at once,
    /// as torch does with its infinity, and weights stay finite.
    pub(crate) fn within_f32(self, value: f32) -> f32 {
        match self.is_beyond_f32(value) {
            true => f32::MIN,
            false => value,
        }
    }

    /// The checkpoint's number, from the network's.
    pub(crate) fn to_checkpoint(self, value: f32) -> f32 {
        match self {
            Form::Same => value,
            Form::MinusExp if value == 0.0 => NO_DECAY,
            Form::MinusExp => f64::from(-value).ln() as f32,
            Form::ExpOfMinusExp if value >= 1.0 => NO_DECAY,
            Form::ExpOfMinusExp if value <= 0.0 => ALL_DECAY,
            Form::ExpOfMinusExp => (-f64::from(value).ln()).ln() as f32,
        }
    }

    /// What the network's numbers are, for error texts.
    pub(crate) fn expected(self) -> &'static str {
        match self {
            Form::Same => "a number",
            Form::MinusExp => "-exp(time_decay), which is at most 0",
            Form::ExpOfMinusExp => "exp(-exp(time_decay)), which is 0 to 1",
        }
    }

    /// Whether the network can have this number.
    pub(crate) fn admits(self, value: f32) -> bool {
        match self {
            Form::Same => true,
            Form::MinusExp => value <= 0.0,
            Form::ExpOfMinusExp => (0.0..=1.0).contains(&value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There and back is as good as f32 can say it, over all that checkpoints hold.
    #[test]
    fn there_and_back() {
        let form = Form::MinusExp;
        for step in -104_000..=88_000 {
            let there = form.to_network(step as f32 / 1000.0);
            let back = form.to_network(form.to_checkpoint(there));
            // The rounding of a number near 100 to f32, times exp()'s derivative.
            let bound = f64::from(there.abs()) * (2f64.powi(-17) + 2f64.powi(-23)) + 1e-45;
            let difference = (f64::from(back) - f64::from(there)).abs();
            assert!(difference <= bound, "{step}: {there} {back}");
        }
        assert_eq!(form.to_network(NO_DECAY), 0.0);
        for beyond in [88.73, 100.0, 800.0, f32::MAX] {
            assert_eq!(form.to_network(beyond), f32::MIN, "{beyond}");
        }
        assert!((form.to_checkpoint(f32::MIN) - 88.72).abs() < 0.01);
        assert_eq!(form.within_f32(f32::NEG_INFINITY), f32::MIN);
        assert_eq!(Form::Same.within_f32(f32::NEG_INFINITY), f32::NEG_INFINITY);
        assert_eq!(form.to_checkpoint(-0.0), NO_DECAY);
        assert_eq!(form.to_checkpoint(-1.0), 0.0);
    }

    /// The network's number is what counts: from it to the checkpoint's and back changes it by no
    /// more than f32 can say the other.
    #[test]
    fn decays_there_and_back() {
        let form = Form::ExpOfMinusExp;
        for step in -104_000..=5_000 {
            let there = form.to_network(step as f32 / 1000.0);
            assert!(form.admits(there));
            let back = form.to_network(form.to_checkpoint(there));
            let difference = (back - there).abs();
            assert!(difference <= 2e-6 * there, "{step}: {there} {back}");
        }
        for (stored, expected) in [(-200.0, 1.0), (f32::MIN, 1.0), (90.0, 0.0), (f32::MAX, 0.0)] {
            assert_eq!(form.to_network(stored), expected, "{stored}");
        }
        assert_eq!(form.to_network(form.to_checkpoint(0.0)), 0.0);
        assert_eq!(form.to_network(form.to_checkpoint(1.0)), 1.0);
    }
}
