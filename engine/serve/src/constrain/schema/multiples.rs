//! Bounds of multiples, in decimal numbers.
//!
//! llguidance looks for spellings of multiples, with all their decimals, among spellings of numbers between the bounds,
//! which may end in fewer: between 0.05 and 0.25 there is 0.20 and not 0.2, up to 0.5 there is 0.5 and not 0.50. So the
//! bounds that it gets are ones beside which nothing is lost.

use serde_json::{Map, Number, Value};

use super::super::numbers::{decimal, multiple, told_multiple, Decimal};
use super::super::references::definition_of;
use super::TYPES;

/// What is wrong.
type Result<T> = std::result::Result<T, String>;

/// A number of a schema, if these digits can be told from all others.
fn number((coefficient, n_decimals): Decimal) -> Result<Value> {
    let digits = format!("{coefficient}e-{n_decimals}");
    let (mut coefficient, mut n_left) = (coefficient, n_decimals);
    while n_left > 0 && coefficient % 10 == 0 {
        (coefficient, n_left) = (coefficient / 10, n_left - 1);
    }
    let number = match (n_left, i64::try_from(coefficient)) {
        (0, Ok(whole)) => Some(Number::from(whole)),
        _ => digits.parse().ok().and_then(Number::from_f64),
    };
    let number = number.filter(|number| decimal(number) == Some((coefficient, n_left)));
    let number = number.ok_or_else(|| format!("the multiple {digits} has too many digits"))?;
    Ok(Value::Number(number))
}

/// The first multiple of a step from a bound on, or the last one up to it, counted in steps.
fn nearest(bound: Decimal, step: Decimal, is_lower: bool, is_excluded: bool) -> Option<i128> {
    let n_decimals = bound.1.max(step.1);
    let scaled =
        |(coefficient, n): Decimal| coefficient.checked_mul(10i128.checked_pow(n_decimals - n)?);
    let (bound, step) = (scaled(bound)?, scaled(step)?);
    let below = bound.div_euclid(step);
    let is_multiple = bound.rem_euclid(step) == 0;
    Some(match (is_lower, is_multiple) {
        (true, true) => below + i128::from(is_excluded),
        (true, false) => below + 1,
        (false, true) => below - i128::from(is_excluded),
        (false, false) => below,
    })
}

/// Puts the nearest multiples in the place of the bounds of multiples.
///
/// # Errors
///
/// When there is no multiple between the bounds, or one has too many digits.
pub(super) fn round_bounds(written: &mut Map<String, Value>) -> Result<()> {
    let Some(Value::Number(multiple)) = written.get("multipleOf") else {
        return Ok(());
    };
    let multiple = multiple.clone();
    let too_many = || format!("bounds with too many digits beside `multipleOf` {multiple}");
    let step = decimal(&multiple)
        .filter(|step| step.0 > 0)
        .ok_or_else(too_many)?;
    let bound = |keyword: &str, is_lower, is_excluded| -> Result<Option<i128>> {
        let Some(Value::Number(bound)) = written.get(keyword) else {
            return Ok(None);
        };
        let bound = decimal(bound).ok_or_else(too_many)?;
        nearest(bound, step, is_lower, is_excluded)
            .map(Some)
            .ok_or_else(too_many)
    };
    let least = [
        bound("minimum", true, false)?,
        bound("exclusiveMinimum", true, true)?,
    ];
    let most = [
        bound("maximum", false, false)?,
        bound("exclusiveMaximum", false, true)?,
    ];
    let least = least.into_iter().flatten().max();
    let most = most.into_iter().flatten().min();
    if let (Some(least), Some(most)) = (least, most) {
        if least > most {
            // Where other types are allowed, there are answers without a number.
            return match takes_only_numbers(written) {
                true => Err(format!("no multiple of {multiple} is within the bounds")),
                false => Ok(()),
            };
        }
    }
    let is_one = least.is_some() && least == most;
    let (low, high) = match is_one {
        // It is a multiple; nothing else is to be looked for.
        true => {
            let only = least.map(|n| multiple_of(n, step)).transpose()?;
            written.remove("multipleOf");
            (only.clone(), only)
        }
        false => safe_bounds(least, most, step)?,
    };
    for (keyword, exclusive, bound) in [
        ("minimum", "exclusiveMinimum", low),
        ("maximum", "exclusiveMaximum", high),
    ] {
        if let Some(bound) = bound {
            written.remove(exclusive);
            written.insert(keyword.into(), bound);
        }
    }
    Ok(())
}

fn multiple_of(n_steps: i128, step: Decimal) -> Result<Value> {
    let coefficient = n_steps.checked_mul(step.0);
    number((coefficient.ok_or("bounds with too many digits")?, step.1))
}

/// Bounds that take these multiples and none beside them.
fn safe_bounds(
    least: Option<i128>,
    most: Option<i128>,
    step: Decimal,
) -> Result<(Option<Value>, Option<Value>)> {
    let beside = |n_steps: Option<i128>, digit: i128, n_more: u32| -> Result<Option<Value>> {
        let scaled = |n: i128| n.checked_mul(step.0)?.checked_mul(10i128.pow(n_more));
        let beside = |n: i128| {
            let coefficient = scaled(n).ok_or("bounds with too many digits")?;
            number((coefficient + digit, step.1 + n_more))
        };
        n_steps.map(beside).transpose()
    };
    Ok(match step {
        (_, 0) => (beside(least, 0, 0)?, beside(most, 0, 0)?),
        // Every number with so many decimals is a multiple, and may be written with fewer. Between multiples lies only
        // the bound next to 0, beyond which nothing is written with the digits that it begins with: llguidance divides
        // numbers that are rounded, and takes a range without any multiple for one that has none.
        (1, _) if least.is_some_and(|n| n > 0) => (beside(least, -5, 1)?, beside(most, 0, 0)?),
        (1, _) if most.is_some_and(|n| n < 0) => (beside(least, 0, 0)?, beside(most, 5, 1)?),
        (1, _) => (beside(least, 0, 0)?, beside(most, 0, 0)?),
        // The next numbers with so many decimals are no multiples.
        _ => (beside(least, -1, 0)?, beside(most, 1, 0)?),
    })
}

/// Of a number between -1 and 0 llguidance takes no spelling with a 0 at its end, but multiples such as -0.50 of 0.25 have
/// no other: such a range is written as one below 0 and one from 0 on, and all other types.
///
/// # Errors
///
/// When there are alternatives beside it already.
pub(super) fn split_at_zero(
    written: &mut Map<String, Value>,
    combined: &mut Map<String, Value>,
) -> Result<()> {
    let number_of = |name: &str| match written.get(name) {
        Some(Value::Number(number)) => decimal(number),
        _ => None,
    };
    let Some(step @ (10.., 2..)) = number_of("multipleOf") else {
        return Ok(());
    };
    let is_negative = |bound: Option<Decimal>| bound.map(|(coefficient, _)| coefficient < 0);
    let has_both = is_negative(number_of("minimum")) != Some(false)
        && is_negative(number_of("maximum")) != Some(true);
    let types: Vec<Value> = match written.get("type") {
        Some(Value::Array(names)) => names.clone(),
        Some(name) => vec![name.clone()],
        None => TYPES.map(Value::from).into(),
    };
    if !has_both || !types.contains(&"number".into()) {
        return Ok(());
    }
    if combined.contains_key("anyOf") {
        return Err("such a multiple beside `anyOf` is not supported below 0".into());
    }
    let mut numbers = Map::new();
    for name in ["multipleOf", "minimum", "maximum"] {
        numbers.extend(written.remove(name).map(|value| (name.to_owned(), value)));
    }
    numbers.insert("type".into(), "number".into());
    let mut below = numbers.clone();
    below.insert("maximum".into(), number((1 - step.0, step.1))?);
    numbers.insert("minimum".into(), 0.into());
    let mut options = vec![Value::Object(below), Value::Object(numbers)];
    let others = types.into_iter();
    let others: Vec<Value> = others
        .filter(|name| name != "number" && name != "integer")
        .collect();
    if !others.is_empty() {
        options.push(Value::Object(Map::from_iter([(
            "type".to_owned(),
            others.into(),
        )])));
    }
    combined.insert("anyOf".into(), options.into());
    Ok(())
}

/// Puts numbers from which llguidance gets the right digits in the place of multiples.
pub(super) fn tell_multiples(schema: &mut Value) {
    match schema {
        Value::Array(schemas) => schemas.iter_mut().for_each(tell_multiples),
        Value::Object(keywords) => {
            for (name, member) in keywords {
                match (name.as_str(), member) {
                    ("const" | "enum", _) => {}
                    ("multipleOf", Value::Number(number)) => {
                        let digits = multiple(number).zip(number.as_f64());
                        let told = digits.and_then(|(digits, x)| told_multiple(digits, x));
                        if let Some(told) = told.and_then(Number::from_f64) {
                            *number = told;
                        }
                    }
                    ("properties" | "patternProperties" | "$defs", Value::Object(named)) => {
                        named.values_mut().for_each(tell_multiples);
                    }
                    (_, member) => tell_multiples(member),
                }
            }
        }
        _ => {}
    }
}

fn takes_only_numbers(written: &Map<String, Value>) -> bool {
    let is_number = |name: &Value| name == "number" || name == "integer";
    match written.get("type") {
        Some(Value::Array(names)) => names.iter().all(is_number),
        Some(name) => is_number(name),
        None => false,
    }
}

/// Numbers of one schema.
#[derive(Default)]
struct Numbers {
    multiple: Option<Decimal>,
    bounds: Vec<Decimal>,
}

/// Looks for bounds with decimals that meet a multiple with decimals of another schema, where several say what one value
/// is.
///
/// # Errors
///
/// When there are such.
pub(super) fn check_meetings(schema: &Value, definitions: &[Value]) -> Result<()> {
    match schema {
        Value::Array(schemas) => schemas
            .iter()
            .try_for_each(|one| check_meetings(one, definitions)),
        Value::Object(keywords) => {
            if says_several(keywords) {
                let mut met = Vec::new();
                gather(
                    schema,
                    definitions,
                    &mut vec![false; definitions.len()],
                    &mut met,
                );
                check_met(&met)?;
            }
            keywords
                .iter()
                .filter(|(name, _)| !["const", "enum"].contains(&name.as_str()))
                .try_for_each(|(_, member)| check_meetings(member, definitions))
        }
        _ => Ok(()),
    }
}

const COMBINING: [&str; 4] = ["$ref", "allOf", "anyOf", "oneOf"];

fn says_several(keywords: &Map<String, Value>) -> bool {
    let combining = COMBINING
        .iter()
        .filter(|name| keywords.contains_key(**name));
    let has_own = !own_numbers(keywords).is_empty();
    let n = combining.count();
    keywords.contains_key("allOf") || n > 1 || (n == 1 && has_own)
}

fn own_numbers(keywords: &Map<String, Value>) -> Numbers {
    let number = |name: &str| match keywords.get(name) {
        Some(Value::Number(number)) => decimal(number),
        _ => None,
    };
    let bounds = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
    Numbers {
        multiple: number("multipleOf"),
        bounds: bounds.into_iter().filter_map(number).collect(),
    }
}

impl Numbers {
    fn is_empty(&self) -> bool {
        self.multiple.is_none() && self.bounds.is_empty()
    }
}

/// Of all schemas that say what one value is.
fn gather(schema: &Value, definitions: &[Value], seen: &mut [bool], met: &mut Vec<Numbers>) {
    let Value::Object(keywords) = schema else {
        return;
    };
    met.push(own_numbers(keywords));
    for name in COMBINING {
        match keywords.get(name) {
            Some(Value::Array(schemas)) => {
                for one in schemas {
                    gather(one, definitions, seen, met);
                }
            }
            Some(reference) => {
                let index =
                    definition_of(reference).filter(|&index| seen.get(index) == Some(&false));
                if let Some(index) = index {
                    seen[index] = true;
                    gather(&definitions[index], definitions, seen, met);
                }
            }
            None => {}
        }
    }
}

fn check_met(met: &[Numbers]) -> Result<()> {
    let has_decimals = |one: &Numbers| one.bounds.iter().any(|bound| bound.1 > 0);
    let n_bounded = met.iter().filter(|one| has_decimals(one)).count();
    let is_wrong = met.iter().any(|one| {
        let n_others = n_bounded - usize::from(has_decimals(one));
        one.multiple.is_some_and(|(_, n)| n > 0) && n_others > 0
    });
    match is_wrong {
        false => Ok(()),
        true => Err(
            "bounds with decimals that are combined with a `multipleOf` with decimals are not supported, but beside it"
                .into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rounded(schema: Value) -> Result<Value> {
        let Value::Object(mut written) = schema else {
            panic!("an object");
        };
        round_bounds(&mut written)?;
        Ok(Value::Object(written))
    }

    #[test]
    fn bounds_are_those_beside_the_nearest_multiples() {
        for (schema, expected) in [
            (
                json!({"multipleOf": 0.1, "minimum": 0.05, "maximum": 0.25}),
                json!({"multipleOf": 0.1, "minimum": 0.05, "maximum": 0.2}),
            ),
            (
                json!({"multipleOf": 0.1, "exclusiveMinimum": 0.1, "exclusiveMaximum": 0.4}),
                json!({"multipleOf": 0.1, "minimum": 0.15, "maximum": 0.3}),
            ),
            (
                json!({"multipleOf": 0.25, "minimum": -0.6, "maximum": 1}),
                json!({"multipleOf": 0.25, "minimum": -0.51, "maximum": 1.01}),
            ),
            (
                json!({"multipleOf": 3, "minimum": -4, "exclusiveMaximum": 3}),
                json!({"multipleOf": 3, "minimum": -3, "maximum": 0}),
            ),
            (
                json!({"multipleOf": 0.1, "minimum": 0.3, "maximum": 0.3}),
                json!({"minimum": 0.3, "maximum": 0.3}),
            ),
            (
                json!({"multipleOf": 0.5, "minimum": 0.75}),
                json!({"multipleOf": 0.5, "minimum": 0.9}),
            ),
            (
                json!({"multipleOf": 0.01, "minimum": 0.5, "exclusiveMinimum": 0.123, "maximum": 7e-9}),
                json!({"multipleOf": 0.01, "minimum": 0.5, "exclusiveMinimum": 0.123, "maximum": 7e-9}),
            ),
        ] {
            assert_eq!(rounded(schema.clone()), Ok(expected), "{schema}");
        }
        let empty = json!({"type": "number", "multipleOf": 0.1, "minimum": 0.11, "maximum": 0.19});
        let error = rounded(empty).expect_err("there is none");
        assert!(
            error.contains("no multiple of 0.1 is within the bounds"),
            "{error}"
        );
        let long = json!({"multipleOf": 0.000_000_003, "minimum": 999_999_999.000_000_1});
        assert!(rounded(long).is_err());
    }

    #[test]
    fn bounds_of_other_schemas_are_found() {
        let fine = json!({"minimum": 0.05});
        let multiple = json!({"multipleOf": 0.1});
        let both = json!({"multipleOf": 0.01, "minimum": 0.01});
        for wrong in [
            json!({"allOf": [fine, multiple]}),
            json!({"multipleOf": 0.1, "anyOf": [fine, {"type": "null"}]}),
            json!({"items": {"minimum": 0.05, "$ref": "#/$defs/d0"}}),
            json!({"properties": {"a": {"allOf": [{"$ref": "#/$defs/d0"}, both]}}}),
        ] {
            assert!(
                check_meetings(&wrong, std::slice::from_ref(&multiple)).is_err(),
                "{wrong}"
            );
        }
        for right in [
            json!({"anyOf": [fine, multiple]}),
            json!({"properties": {"a": fine, "b": {"anyOf": [multiple, both]}}}),
            json!({"allOf": [{"minimum": 1}, multiple]}),
            json!({"allOf": [{"minimum": 0.5}, {"multipleOf": 3}]}),
            json!({"$ref": "#/$defs/d0"}),
        ] {
            assert_eq!(
                check_meetings(&right, std::slice::from_ref(&multiple)),
                Ok(()),
                "{right}"
            );
        }
    }
}
