//! The template language: Jinja with all that `transformers` gives a template, on a budget.
//!
//! Everything that a template has the engine do is paid for with fuel (see [`charged`]): it ends,
//! and what it holds in memory is bounded by the fuel as well. It runs on a stack of its own, which
//! is enough for whatever fits a source.

use std::error::Error as _;
use std::thread;

use minijinja::machinery::{self, CompiledTemplate, TemplateConfig, Token};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest};
use minijinja::{AutoEscape, Environment, ErrorKind, State, Value};

use super::{charged, python, tojson};

pub(super) const ENDLESS: &str = "the chat template runs for too long or makes too much text";

/// The longest published templates have some 20 kB.
const MAX_SOURCE_BYTES: usize = 1 << 18;
/// Names, operators and constants in one `{{ }}` or `{% %}`: published templates have some hundred.
/// The compiler takes time with the square of a chain's length.
const MAX_BLOCK_TOKENS: usize = 4096;
/// Steps that a template may take, and more for each byte of a conversation. Published ones take
/// fewer than two hundred for a message. With the most, it makes some hundred MB in a second.
const FUEL: u64 = 1_000_000;
const FUEL_PER_BYTE: u64 = 4;
const MAX_FUEL: u64 = 4_000_000;
/// The engine bounds how deep expressions and calls nest, but not how long a chain of operators is:
/// this is enough for the longest that fit a tag.
const STACK_BYTES: usize = 64 << 20;

/// Marks the error that a template raised itself.
#[derive(Debug)]
struct Raised;

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("raised by the template")
    }
}

impl std::error::Error for Raised {}

/// What a template is run with, beside its variables.
pub(super) struct Surroundings {
    /// The time that `strftime_now` tells.
    pub now: jiff::Zoned,
    /// What `tojson` writes as it is.
    pub guard: Option<char>,
    /// The bytes of the conversation, which decide how much a template may do.
    pub bytes: usize,
}

/// Whether a template can be compiled. The error is one line.
pub(super) fn check(source: &str) -> Result<(), String> {
    with_deep_stack(|| prepared(source).and_then(|source| compile(&source).map(drop)))
}

/// The text that a template makes of variables, a map.
pub(super) fn render(
    source: &str,
    variables: Value,
    surroundings: Surroundings,
) -> Result<String, String> {
    with_deep_stack(|| {
        let source = prepared(source)?;
        let template = compile(&source)?;
        let environment = environment(surroundings);
        let mut text = String::new();
        machinery::eval(
            &environment,
            &template.instructions,
            variables,
            &template.blocks,
            &mut machinery::make_string_output(&mut text),
            AutoEscape::None,
        )?;
        Ok(text)
    })
}

fn compile(source: &str) -> Result<CompiledTemplate<'_>, minijinja::Error> {
    let config = TemplateConfig {
        syntax_config: syntax()?,
        default_auto_escape: std::sync::Arc::new(|_| AutoEscape::None),
    };
    let mut template = CompiledTemplate::new("chat template", source, &config)?;
    charged::charge(&mut template);
    Ok(template)
}

/// Everything that `transformers` gives a template.
fn environment(surroundings: Surroundings) -> Environment<'static> {
    let Surroundings { now, guard, bytes } = surroundings;
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL.saturating_add(FUEL_PER_BYTE * bytes as u64).min(MAX_FUEL)));
    environment.set_debug(false);
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(python::write);
    // What Jinja does not have, or nobody needs, and is not paid for.
    ["chain", "zip", "split", "lines", "pprint"]
        .iter()
        .for_each(|name| environment.remove_filter(name));
    environment.remove_global("debug");
    environment.add_filter("center", python::center);
    environment.add_filter("urlencode", python::urlencode);
    environment.add_filter("truncate", python::truncate);
    environment.add_filter("wordcount", python::wordcount);
    let tojson = move |state: &State, value: &Value, positional: Rest<Value>, options: Kwargs| {
        tojson::tojson(state, value, &positional, options, guard)
    };
    environment.add_filter("tojson", tojson);
    environment.add_function("range", python::range);
    environment.add_function("raise_exception", raise_exception);
    environment
        .add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.0));
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_function("strftime_now", move |state: &State, format: String| {
        strftime(state, &format, &now)
    });
    charged::add_to(&mut environment);
    environment
}

/// Runs `work` on a stack of [`STACK_BYTES`], and waits for it.
fn with_deep_stack<T: Send>(
    work: impl FnOnce() -> Result<T, minijinja::Error> + Send,
) -> Result<T, String> {
    let work = || work().map_err(|error| describe(&error));
    thread::scope(|scope| {
        let thread =
            thread::Builder::new().name("chat template".to_owned()).stack_size(STACK_BYTES);
        let thread = thread
            .spawn_scoped(scope, work)
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        thread.join().unwrap_or_else(|_| Err("the chat template cannot be run".to_owned()))
    })
}

/// A source as the engine compiles it in time, without what is not Jinja's.
///
/// `{% generation %}` marks what the assistant says, for training: a block of no variables takes
/// its place, since what is set inside is not seen outside either. The compiler computes what has
/// no variables: lists that are multiplied there cost nothing and are walked for ever, so numbers
/// beside a `*` are made no constants.
fn prepared(source: &str) -> Result<String, minijinja::Error> {
    let too_long = |what: String| minijinja::Error::new(ErrorKind::SyntaxError, what);
    if source.len() > MAX_SOURCE_BYTES {
        return Err(too_long(format!("over {MAX_SOURCE_BYTES} bytes")));
    }
    let tokens = machinery::tokenize(source, false, syntax()?).collect::<Result<Vec<_>, _>>()?;
    let mut prepared = String::with_capacity(source.len());
    let mut end = 0;
    for block in
        tokens.split_inclusive(|(token, _)| matches!(token, Token::VariableEnd | Token::BlockEnd))
    {
        if block.len() > MAX_BLOCK_TOKENS {
            return Err(too_long(format!("over {MAX_BLOCK_TOKENS} words in one tag")));
        }
        let multiplies = block.iter().any(|(token, _)| matches!(token, Token::Mul));
        for (at, (token, span)) in block.iter().enumerate() {
            let before = at.checked_sub(1).map(|at| &block[at].0);
            let is_alone = matches!(before, Some(Token::BlockStart))
                && matches!(block.get(at + 1), Some((Token::BlockEnd, _)));
            let word = match token {
                Token::Ident("generation") if is_alone => "with".to_owned(),
                Token::Ident("endgeneration") if is_alone => "endwith".to_owned(),
                Token::Int(number) if multiplies && !matches!(before, Some(Token::Dot)) => {
                    format!("({number}|int)")
                }
                _ => continue,
            };
            prepared.push_str(&source[end..span.start_offset as usize]);
            prepared.push_str(&word);
            end = span.end_offset as usize;
        }
    }
    prepared.push_str(&source[end..]);
    Ok(prepared)
}

fn syntax() -> Result<SyntaxConfig, minijinja::Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    let error = minijinja::Error::new(ErrorKind::InvalidOperation, message);
    Err(error.with_source(Raised))
}

/// As Python's, of a time without a zone, in the C locale: what is no directive is written as it
/// is.
fn strftime(state: &State, format: &str, now: &jiff::Zoned) -> Result<String, minijinja::Error> {
    // A directive of two letters makes up to some twenty.
    charged::charge_bytes(state, format.len().saturating_mul(16))?;
    let mut known = String::new();
    let mut rest = format;
    while let Some((before, directive)) = rest.split_once('%') {
        known.push_str(before);
        let flags = directive.len() - directive.trim_start_matches(['-', '_', '0', '^', '#']).len();
        let letter = directive[flags..].chars().next();
        let after = flags + letter.map_or(0, char::len_utf8);
        match letter {
            Some('c') => known.push_str("%a %b %e %H:%M:%S %Y"),
            Some('x') => known.push_str("%m/%d/%y"),
            Some('X') => known.push_str("%H:%M:%S"),
            Some('f') => known.push_str("%6f"),
            Some('Z' | 'z') => {}
            Some(
                'a' | 'A' | 'b' | 'B' | 'C' | 'd' | 'D' | 'e' | 'F' | 'g' | 'G' | 'h' | 'H' | 'I'
                | 'j' | 'k' | 'l' | 'm' | 'M' | 'n' | 'p' | 'P' | 'r' | 'R' | 's' | 'S' | 't' | 'T'
                | 'u' | 'U' | 'V' | 'w' | 'W' | 'y' | 'Y' | '%',
            ) => {
                known.push('%');
                known.push_str(&directive[..after]);
            }
            _ => {
                known.push_str("%%");
                known.push_str(&directive[..after]);
            }
        }
        rest = &directive[after..];
    }
    known.push_str(rest);
    jiff::fmt::strtime::format(&known, now).map_err(|error| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}"))
    })
}

/// An error of the template, on one line.
fn describe(error: &minijinja::Error) -> String {
    let causes =
        std::iter::successors(Some(error as &dyn std::error::Error), |error| (*error).source());
    for cause in causes {
        let kind = cause.downcast_ref::<minijinja::Error>().map(minijinja::Error::kind);
        if kind == Some(ErrorKind::OutOfFuel) {
            return ENDLESS.to_owned();
        }
    }
    let is_raised = error.source().is_some_and(|source| source.is::<Raised>());
    match error.detail() {
        Some(message) if is_raised => format!("the chat template says: {message}"),
        _ => format!("the chat template: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn rendered(source: &str) -> Result<String, String> {
        let now = jiff::civil::date(2024, 7, 26).to_zoned(jiff::tz::TimeZone::UTC).unwrap();
        render(source, Value::from(()), Surroundings { now, guard: None, bytes: 0 })
    }

    #[test]
    fn the_longest_chains_fit_the_stack() {
        for (before, link, after) in [
            ("1", "+1", ""),
            ("1", "|e", ""),
            ("1", ".a", ""),
            ("1", "~1", ""),
            ("1", "()", ""),
            ("1", "<1", ""),
            ("1", "[1]", ""),
            ("1", " is a", ""),
            ("1", " if 1", ""),
            ("1", " and 1", ""),
            ("", "-", "1"),
            ("", "not ", "1"),
            ("", "- - not ", "1"),
            ("1", "**1", ""),
            ("1", " else 1 if 1", ""),
            ("", "(", ""),
            ("1", "{1:1}", ""),
            ("", "1,", ""),
            ("", "{1:", "1"),
            ("", "-(", "1"),
        ] {
            let words = link.split_inclusive([' ', '-', '(', '[']).count().max(2);
            let source =
                format!("{{{{ {before}{}{after} }}}}", link.repeat(MAX_BLOCK_TOKENS / words - 4));
            drop(rendered(&source.repeat(MAX_SOURCE_BYTES / source.len())));
        }
        for tag in [
            "{%if 1%}",
            "{%for x in y%}",
            "{%macro f()%}",
            "{%set x%}",
            "{%call f()%}",
            "{%if 1%}{%else%}",
        ] {
            drop(rendered(&tag.repeat(MAX_SOURCE_BYTES / tag.len())));
        }
        assert_eq!(rendered(&format!("{{{{ {}1 }}}}", "-".repeat(4000))), Ok("1".to_owned()));
        let error = rendered(&format!("{{{{ {}1 }}}}", "-".repeat(5000))).unwrap_err();
        assert!(error.contains("over 4096 words in one tag"), "{error}");
    }

    /// What the compiler would compute of constants is not walked there.
    #[test]
    fn constants_take_no_time() {
        let source = "{% if 5 in [1] * 99999999 %}{% endif %}\
            {% if [1] * 99999999 == [1] * 99999998 %}{% endif %}";
        assert_eq!(rendered(&source.repeat(1000)), Err(ENDLESS.to_owned()));
        assert_eq!(
            rendered("{{ 'ab' * 2 }}{{ [1, [2, 3]].1.0 * 3 }}{{ -2 * 3 }}"),
            Ok("abab6-6".to_owned())
        );
    }

    #[test]
    fn generation_tags_are_blocks() {
        let source = "{%- generation -%} a {%+ endgeneration %}{% generation_x %}{% set generation = 1 %}\
            {{ generation }}{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}";
        let expected = "{%- with -%} a {%+ endwith %}{% generation_x %}{% set generation = 1 %}\
            {{ generation }}{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}";
        assert_eq!(prepared(source).unwrap(), expected);
    }
}
