//! Values as Python writes them and methods as Python has them, for templates. Texts are paid for
//! before they are made.

use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{Error, ErrorKind, Output, State, Value};
use minijinja_contrib::pycompat;
use serde_json::Map;

use super::charged::{BYTES_PER_FUEL, charge_bytes, walk};

/// The longest range, as the engine's own.
const MAX_RANGE: usize = 100_000;

/// A value of JSON.
pub(super) fn value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(truth) => Value::from(*truth),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(values) => Value::from(values.iter().map(value).collect::<Vec<_>>()),
        Json::Object(fields) => map(fields),
    }
}

/// An object of JSON, in its order.
pub(super) fn map(fields: &Map<String, serde_json::Value>) -> Value {
    Value::from_pairs(fields.iter().map(|(key, field)| (key.as_str(), value(field))))
}

/// Prints a value: text as it is, numbers as Python's.
pub(super) fn write(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => drop(walk(state, value)?),
        ValueKind::Number if !value.is_integer() => {
            return out.write_str(&number(value)?).map_err(Error::from);
        }
        _ => {}
    }
    minijinja::escape_formatter(out, state, value)
}

pub(super) fn refused(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.to_owned())
}

/// A number as Python's `repr` writes it: the shortest digits that give it back.
pub(super) fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let number = f64::try_from(value.clone())?;
    if !number.is_finite() {
        let sign = if number.is_sign_negative() { "-" } else { "" };
        return Ok(if number.is_nan() { "nan".to_owned() } else { format!("{sign}inf") });
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    Ok(match exponent {
        -4..16 => format!("{number:?}"),
        _ => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    })
}

/// Python's `%`: of a text, what it formats; of numbers, the remainder, which has the divisor's
/// sign.
pub(super) fn remainder(state: &mut State, left: Value, right: Value) -> Result<Value, Error> {
    if left.as_str().is_some() {
        walk(state, &right)?;
        let mut arguments = vec![left];
        match right.kind() {
            ValueKind::Seq if right.is_tuple() => arguments.extend(right.try_iter()?),
            ValueKind::Map => {
                let named =
                    right.try_iter()?.map(|key| Ok((key.to_string(), right.get_item(&key)?)));
                arguments.push(Value::from(named.collect::<Result<Kwargs, Error>>()?));
            }
            _ => arguments.push(right),
        }
        return state.apply_filter("format", &arguments);
    }
    let is_whole = |value: &Value| value.is_integer() || value.kind() == ValueKind::Bool;
    let remainder = if is_whole(&left) && is_whole(&right) {
        let (left, right) = (i128::try_from(left)?, i128::try_from(right)?);
        let remainder = left.checked_rem(right);
        remainder.map(|rest| {
            Value::from(if rest != 0 && (rest < 0) != (right < 0) { rest + right } else { rest })
        })
    } else {
        let (left, right) = (f64::try_from(left)?, f64::try_from(right)?);
        let rest = left % right;
        let rest = if rest != 0.0 && (rest < 0.0) != (right < 0.0) { rest + right } else { rest };
        (right != 0.0).then(|| Value::from(rest))
    };
    remainder.ok_or_else(|| refused("a remainder of a division by zero"))
}

/// Python's `range`.
pub(super) fn range(first: i64, second: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    let (start, end) = second.map_or((0, first), |end| (first, end));
    let (start, end, step) = (i128::from(start), i128::from(end), i128::from(step.unwrap_or(1)));
    if step == 0 {
        return Err(refused("range: the step is 0"));
    }
    let count = (end - start + step - step.signum()) / step;
    match usize::try_from(count.max(0)) {
        Ok(count) if count <= MAX_RANGE => {
            let numbers =
                (0..count as i128).map(|index| Value::from((start + index * step) as i64));
            Ok(Value::from(numbers.collect::<Vec<_>>()))
        }
        _ => Err(refused("range: too many numbers")),
    }
}

/// Python's methods of texts, lists and dictionaries that the engine does not know itself. What
/// they make is charged for before it is made.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return pycompat::unknown_method_callback(state, value, name, arguments);
    };
    let argument = |index: usize| arguments.get(index).and_then(Value::as_str);
    charge_method(state, text, name, arguments)?;
    let width = || {
        let width = arguments.first().and_then(Value::as_i64).unwrap_or(0).max(0);
        charge_bytes(state, usize::try_from(width).unwrap_or(usize::MAX))?;
        Ok::<_, Error>((width as usize).saturating_sub(text.chars().count()))
    };
    let fill = || argument(1).unwrap_or(" ");
    match name {
        "removeprefix" => {
            Ok(text.strip_prefix(argument(0).unwrap_or_default()).unwrap_or(text).into())
        }
        "removesuffix" => {
            Ok(text.strip_suffix(argument(0).unwrap_or_default()).unwrap_or(text).into())
        }
        "partition" => parts(text.split_once(separator(arguments)?), [text, "", ""], argument(0)),
        "rpartition" => parts(text.rsplit_once(separator(arguments)?), ["", "", text], argument(0)),
        "split" => {
            let (separator, limit) = split_options(arguments)?;
            let arguments = [separator.map_or(Value::from(()), Value::from), limit];
            pycompat::unknown_method_callback(state, value, name, &arguments)
        }
        "rsplit" => {
            let (separator, limit) = split_options(arguments)?;
            let limit = limit.as_i64().and_then(|limit| usize::try_from(limit).ok());
            Ok(rsplit(text, separator.as_deref(), limit.unwrap_or(usize::MAX)))
        }
        "index" | "rindex" => {
            let find = if name == "index" { "find" } else { "rfind" };
            let at = pycompat::unknown_method_callback(state, value, find, arguments)?;
            if at.as_i64() == Some(-1) { Err(refused("substring not found")) } else { Ok(at) }
        }
        "ljust" => Ok(format!("{text}{}", fill().repeat(width()?)).into()),
        "rjust" => Ok(format!("{}{text}", fill().repeat(width()?)).into()),
        "zfill" => {
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            Ok(format!("{sign}{}{digits}", "0".repeat(width()?)).into())
        }
        "center" => {
            let (width, wanted) =
                (width()?, arguments.first().and_then(Value::as_i64).unwrap_or(0));
            // Python puts the odd space on the left of a text of odd width.
            let left = width / 2 + (width & wanted as usize & 1);
            Ok(format!("{}{text}{}", fill().repeat(left), fill().repeat(width - left)).into())
        }
        "swapcase" => {
            let swap = |c: char| match c.is_uppercase() {
                true => c.to_lowercase().collect::<String>(),
                false => c.to_uppercase().collect(),
            };
            Ok(text.chars().map(swap).collect::<String>().into())
        }
        "casefold" => Ok(text.to_lowercase().into()),
        _ => pycompat::unknown_method_callback(state, value, name, arguments),
    }
}

/// Charges for what some of a text's methods make.
fn charge_method(
    state: &mut State,
    text: &str,
    name: &str,
    arguments: &[Value],
) -> Result<(), Error> {
    let argument = |index: usize| arguments.get(index).and_then(Value::as_str);
    match (name, argument(0), argument(1)) {
        ("replace", Some(old), Some(new)) => {
            let times = if old.is_empty() { text.len() + 1 } else { text.matches(old).count() };
            charge_bytes(state, times.saturating_mul(new.len()))?;
        }
        ("split" | "rsplit" | "splitlines", separator, _) => {
            let parts = match separator.filter(|separator| !separator.is_empty()) {
                Some(separator) => text.matches(separator).count(),
                None => text.chars().filter(|c| c.is_whitespace()).count(),
            };
            charge_bytes(state, 2 * BYTES_PER_FUEL * parts)?;
        }
        ("join", _, _) => arguments.iter().try_for_each(|parts| charge_join(state, text, parts))?,
        ("format", _, _) => charge_format(state, text, arguments)?,
        _ => {}
    }
    Ok(())
}

/// Jinja's filter: `str.center`.
pub(super) fn center(
    state: &mut State,
    text: &Value,
    width: Option<Value>,
) -> Result<Value, Error> {
    method(state, text, "center", &[width.unwrap_or_else(|| Value::from(80))])
}

/// Jinja's filter: the first `length` characters of a text, or somewhat more, whole words unless
/// `killwords`.
pub(super) fn truncate(
    text: &str,
    positional: Rest<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let mut positional = positional.0.into_iter();
    let mut option = |name: &str| match positional.next() {
        Some(value) => Ok(Some(value)),
        None => options.get::<Option<Value>>(name),
    };
    let size = |value: Option<Value>, default| value.map_or(Ok(default), usize::try_from);
    let length = size(option("length")?, 255)?;
    let kills_words = option("killwords")?.is_some_and(|value| value.is_true());
    let end = option("end")?.map_or_else(|| "...".to_owned(), |end| end.to_string());
    let leeway = size(option("leeway")?, 5)?;
    options.assert_all_used()?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let kept = length.saturating_sub(end.chars().count());
    let kept: String = text.chars().take(kept).collect();
    let words = kept.rsplit_once(' ').map_or(kept.as_str(), |(words, _)| words);
    Ok(format!("{}{end}", if kills_words { &kept } else { words }))
}

/// Jinja's filter: the bytes of a text as a URL may hold them.
pub(super) fn urlencode(text: &Value) -> String {
    let mut encoded = String::new();
    for byte in text.to_string().bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' | b'/' => {
                encoded.push(byte.into());
            }
            _ => encoded.extend(format!("%{byte:02X}").chars()),
        }
    }
    encoded
}

/// Jinja's filter: how many runs of letters and digits a text has.
pub(super) fn wordcount(text: &str) -> usize {
    let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    words.filter(|word| !word.is_empty()).count()
}

/// Charges for what `text.join(parts)` makes.
fn charge_join(state: &State, text: &str, parts: &Value) -> Result<(), Error> {
    for part in parts.try_iter()? {
        charge_bytes(state, 8 + text.len() + part.as_str().map_or(0, str::len))?;
    }
    Ok(())
}

/// Charges for what `text.format(arguments)` makes: each field may be any of the arguments, as wide
/// as the largest number in the text.
fn charge_format(state: &State, text: &str, arguments: &[Value]) -> Result<(), Error> {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let widest = numbers.map(|digits| digits.parse().unwrap_or(usize::MAX)).max().unwrap_or(0);
    let mut bytes = widest;
    for argument in arguments {
        bytes = bytes.saturating_add(walk(state, argument)?);
    }
    let fields = text.matches('{').count();
    charge_bytes(state, bytes.saturating_mul(fields))
}

fn separator(arguments: &[Value]) -> Result<&str, Error> {
    let separator = arguments.first().and_then(Value::as_str).filter(|text| !text.is_empty());
    separator.ok_or_else(|| refused("a separator is needed"))
}

fn parts(
    found: Option<(&str, &str)>,
    otherwise: [&str; 3],
    separator: Option<&str>,
) -> Result<Value, Error> {
    let [before, middle, after] = match found {
        Some((before, after)) => [before, separator.unwrap_or_default(), after],
        None => otherwise,
    };
    Ok(Value::from([before, middle, after].map(Value::from).to_vec()))
}

/// The separator and the limit of `str.split(sep=None, maxsplit=-1)`.
fn split_options(arguments: &[Value]) -> Result<(Option<String>, Value), Error> {
    let (positional, options): (&[Value], Kwargs) = from_args(arguments)?;
    let option = |index: usize, name: &str| match positional.get(index) {
        Some(value) => Ok(Some(value.clone())),
        None => options.get::<Option<Value>>(name),
    };
    let separator = option(0, "sep")?.and_then(|value| value.as_str().map(str::to_owned));
    let limit = option(1, "maxsplit")?.unwrap_or_else(|| Value::from(-1));
    options.assert_all_used()?;
    if separator.as_deref() == Some("") {
        return Err(refused("a separator is needed"));
    }
    Ok((separator, limit))
}

/// `str.rsplit`
fn rsplit(text: &str, separator: Option<&str>, limit: usize) -> Value {
    let mut parts = Vec::new();
    let mut rest = text;
    while parts.len() < limit {
        let cut = match separator {
            Some(separator) => rest.rsplit_once(separator),
            None => {
                rest = rest.trim_end();
                rest.rsplit_once(char::is_whitespace)
            }
        };
        let Some((before, part)) = cut else { break };
        parts.push(part);
        rest = before;
    }
    let rest = if separator.is_none() { rest.trim_end() } else { rest };
    if separator.is_some() || !rest.is_empty() {
        parts.push(rest);
    }
    Value::from(parts.into_iter().rev().map(Value::from).collect::<Vec<_>>())
}
