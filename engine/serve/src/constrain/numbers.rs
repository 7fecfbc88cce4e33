//! Numbers and constants of schemas, as far as they are honoured exactly.

use serde_json::{Map, Number, Value};

/// What is wrong.
type Result<T> = std::result::Result<T, String>;

/// Whole numbers up to this are exact as f64.
const WHOLE_MAX: f64 = 9_007_199_254_740_991.0;
/// Fractions have fewer digits than f64 can tell apart.
const FRACTION_MAX: f64 = 1e9;
const FRACTION_MIN: f64 = 1e-9;
/// How deep constants may be nested.
const DEPTH_MAX: usize = 32;
/// Lowest common multiples are computed with 32 bits, of numbers whose product is below the square of this.
const MULTIPLES_MAX: u64 = 65_535;
/// Of a value of `multipleOf`.
const DECIMALS_MAX: u32 = 9;

/// A number of a schema, where it is exact.
pub(super) fn exact(number: &Number) -> Result<f64> {
    let x = number.as_f64().filter(|x| x.is_finite());
    let x = x.ok_or_else(|| format!("{number} is too large"))?;
    let size = x.abs();
    let is_exact = match x.fract() == 0.0 {
        true => size <= WHOLE_MAX,
        false => (FRACTION_MIN..=FRACTION_MAX).contains(&size),
    };
    match is_exact {
        true => Ok(x),
        false => Err(format!(
            "{number}: expected whole numbers below 2^53, or others of {FRACTION_MIN} to {FRACTION_MAX}"
        )),
    }
}

/// Checks a value of `const` or `enum`.
pub(super) fn check_constant(value: &Value) -> Result<()> {
    check_constant_at(value, 0)
}

fn check_constant_at(value: &Value, depth: usize) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(format!("more than {DEPTH_MAX} levels deep"));
    }
    match value {
        Value::Null | Value::Bool(_) => Ok(()),
        Value::Number(number) => exact(number).map(|_| ()),
        Value::String(text) => check_text(text),
        Value::Array(items) => items
            .iter()
            .try_for_each(|item| check_constant_at(item, depth + 1)),
        Value::Object(members) => members.iter().try_for_each(|(name, member)| {
            check_text(name)?;
            check_constant_at(member, depth + 1)
        }),
    }
}

/// Strings are written without `\u`, so that names have one spelling each.
pub(super) fn check_text(text: &str) -> Result<()> {
    let is_unwritable = |c: char| c == '\x7f' || (c < ' ' && !"\n\r\t\x08\x0c".contains(c));
    match text.chars().find(|&c| is_unwritable(c)) {
        Some(c) => Err(format!(
            "the control character U+{:04X} is not supported",
            u32::from(c)
        )),
        None => Ok(()),
    }
}

/// A number in decimal digits: coefficient and decimals, as few as there are. Numbers that schemas may have have up to 17
/// digits and 26 decimals.
pub(super) type Decimal = (i128, u32);

pub(super) fn decimal(number: &Number) -> Option<Decimal> {
    // As few digits as tell it from others, which are those that were written.
    let text = number.as_f64()?.to_string();
    let (whole, decimals) = text.split_once('.').unwrap_or((&text, ""));
    let coefficient = format!("{whole}{decimals}").parse().ok()?;
    Some((coefficient, u32::try_from(decimals.len()).ok()?))
}

/// A value of `multipleOf` from which llguidance gets these digits: it multiplies by 10 until no fraction is left, and
/// rounds. So it gets 7000000000000001 from 0.07, and 7 from the next smaller number.
pub(super) fn told_multiple((coefficient, n_decimals): (u32, u32), x: f64) -> Option<f64> {
    let is_told = |x: &f64| {
        let (mut multiplied, mut n) = (*x, 0u32);
        while multiplied.fract() != 0.0 {
            multiplied *= 10.0;
            n += 1;
        }
        // It leaves out zeros at the end then.
        let zeros = n.checked_sub(n_decimals).and_then(|n| 10u32.checked_pow(n));
        let expected = zeros.and_then(|zeros| coefficient.checked_mul(zeros));
        expected.map(f64::from) == Some(multiplied)
    };
    [x, x.next_down(), x.next_up()].into_iter().find(is_told)
}

/// The digits of a value of `multipleOf`, as many as there may be.
pub(super) fn multiple(number: &Number) -> Option<(u32, u32)> {
    let (coefficient, n_decimals) = decimal(number)?;
    let coefficient = u32::try_from(coefficient).ok()?;
    (n_decimals <= DECIMALS_MAX).then_some((coefficient, n_decimals))
}

/// All values of `multipleOf` of a schema.
#[derive(Default)]
pub(super) struct Multiples(Vec<(u32, u32)>);

impl Multiples {
    /// Takes one value.
    pub(super) fn push(&mut self, number: &Number) -> Result<()> {
        let x = exact(number)?;
        if x <= 0.0 {
            return Err(format!("{number}, expected more than 0"));
        }
        let one = multiple(number).ok_or_else(|| format!("{number} has too many digits"))?;
        if told_multiple(one, x).is_none() {
            return Err(format!("the digits of {number} are lost in rounding"));
        }
        if !self.0.contains(&one) {
            self.0.push(one);
        }
        Ok(())
    }

    /// Where parts of a schema are combined, their lowest common multiples must not overflow.
    pub(super) fn check_combined(&self) -> Result<()> {
        let n_decimals = self.0.iter().map(|&(_, n)| n).max().unwrap_or(0);
        let product = self.0.iter().try_fold(1u64, |product, &(coefficient, n)| {
            u64::from(coefficient)
                .checked_mul(10u64.pow(n_decimals - n))?
                .checked_mul(product)
        });
        match product.is_some_and(|product| product <= MULTIPLES_MAX) {
            true => Ok(()),
            false => Err("values of `multipleOf` whose common multiples are too large".to_owned()),
        }
    }
}

/// Bounds of numbers, of one schema or of several that may be combined.
#[derive(Clone, Default)]
pub(super) struct Bounds {
    lower: Vec<(f64, bool)>,
    upper: Vec<(f64, bool)>,
}

impl Bounds {
    /// Those of a schema.
    pub(super) fn of(schema: &Map<String, Value>) -> Self {
        let bound = |keyword: &str| schema.get(keyword).and_then(Value::as_f64);
        let both = |inclusive: &str, exclusive: &str| {
            let inclusive = bound(inclusive).map(|x| (x, false));
            let exclusive = bound(exclusive).map(|x| (x, true));
            inclusive.into_iter().chain(exclusive).collect()
        };
        Bounds {
            lower: both("minimum", "exclusiveMinimum"),
            upper: both("maximum", "exclusiveMaximum"),
        }
    }

    /// Takes those of another one.
    pub(super) fn append(&mut self, other: &Bounds) {
        self.lower.extend(&other.lower);
        self.upper.extend(&other.upper);
    }

    /// Between a whole number that is excluded and a number that begins with the same digits, llguidance lets the
    /// whole number through.
    pub(super) fn check(&self) -> Result<()> {
        let shares_digits = |whole: f64, other: f64| other != whole && other.trunc() == whole;
        let is_wrong = |&(low, low_excluded): &(f64, bool),
                        &(high, high_excluded): &(f64, bool)| {
            low < high
                && ((low_excluded && shares_digits(low, high))
                    || (high_excluded && shares_digits(high, low)))
        };
        match self.lower.iter().any(|low| self.upper.iter().any(|high| is_wrong(low, high))) {
            false => Ok(()),
            true => Err("a whole number as exclusive bound, less than 1 from the other bound, is not supported".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_that_are_not_exact_are_refused() {
        for good in [
            json!(0),
            json!(-5),
            json!(0.1),
            json!(1e15),
            json!(9007199254740991u64),
            json!(-2.5),
        ] {
            assert_eq!(check_constant(&good), Ok(()), "{good}");
        }
        for bad in [
            json!(9007199254740992u64),
            json!(9007199254740993u64),
            json!(u64::MAX),
            json!(1e300),
            json!(1e-10),
            json!(1234567890.5),
        ] {
            assert!(check_constant(&bad).is_err(), "{bad}");
        }
        for bad in [json!("\u{1}"), json!({"\u{7f}": 1}), json!([["\0"]])] {
            assert!(
                check_constant(&bad)
                    .expect_err("refused")
                    .contains("control character"),
                "{bad}"
            );
        }
        assert_eq!(check_constant(&json!("\n\t\"\\é龍")), Ok(()));
    }

    #[test]
    fn bounds_that_share_digits_are_refused() {
        let bounds = |pairs: [(&str, f64); 2]| {
            let schema = pairs.map(|(keyword, x)| (keyword.to_owned(), json!(x)));
            Bounds::of(&Map::from_iter(schema)).check()
        };
        assert!(bounds([("exclusiveMinimum", 0.0), ("maximum", 0.5)]).is_err());
        assert!(bounds([("minimum", -0.5), ("exclusiveMaximum", 0.0)]).is_err());
        assert!(bounds([("exclusiveMinimum", 3.0), ("exclusiveMaximum", 3.5)]).is_err());
        assert!(bounds([("minimum", -3.5), ("exclusiveMaximum", -3.0)]).is_err());
        assert_eq!(bounds([("minimum", 0.0), ("maximum", 0.5)]), Ok(()));
        assert_eq!(
            bounds([("exclusiveMinimum", 0.0), ("maximum", 1.0)]),
            Ok(())
        );
        assert_eq!(
            bounds([("exclusiveMinimum", -1.0), ("maximum", -0.5)]),
            Ok(())
        );
        assert_eq!(
            bounds([("exclusiveMinimum", 0.25), ("maximum", 0.5)]),
            Ok(())
        );
    }

    #[test]
    fn few_multiples_are_lost_in_rounding() {
        let is_lost = |n: &u32| {
            let number = json!(f64::from(*n) / 100.0);
            let number = number.as_number().expect("a number");
            Multiples::default().push(number).is_err()
        };
        assert_eq!((1..100).filter(is_lost).collect::<Vec<_>>(), [53, 57]);
    }

    #[test]
    fn multiples_are_taken_as_they_are() {
        let push = |multiples: &mut Multiples, value: Value| match value {
            Value::Number(number) => multiples.push(&number),
            _ => Err("no number".to_owned()),
        };
        let mut multiples = Multiples::default();
        for good in [
            json!(3),
            json!(0.01),
            json!(0.5),
            json!(2.0),
            json!(0.07),
            json!(0.007),
        ] {
            assert_eq!(push(&mut multiples, good.clone()), Ok(()), "{good}");
        }
        assert_eq!(
            multiples.check_combined(),
            Err("values of `multipleOf` whose common multiples are too large".to_owned())
        );
        let mut few = Multiples::default();
        assert_eq!(push(&mut few, json!(300)), Ok(()));
        assert_eq!(push(&mut few, json!(100)), Ok(()));
        assert_eq!(few.check_combined(), Ok(()));
        for bad in [
            json!(0),
            json!(-3),
            json!(5_000_000_000u64),
            json!(0.123_456_789_12),
            json!(0.53),
        ] {
            assert!(push(&mut few, bad.clone()).is_err(), "{bad}");
        }
    }
}
