//! Chat templates as nobody should write them: all that the language has, at random, where it may
//! stand.

use crate::dice::Dice;

const NAMES: [&str; 12] = [
    "ns.a",
    "ns.b",
    "ns",
    "messages",
    "messages[0]",
    "messages[0].content",
    "bos_token",
    "x",
    "y",
    "tools",
    "loop",
    "nothing",
];
const CONSTANTS: [&str; 16] = [
    "1",
    "0",
    "-1",
    "2.5",
    "100000",
    "9223372036854775807",
    "1e308",
    "'ab'",
    "''",
    "'<|eot_id|>'",
    "true",
    "none",
    "[]",
    "{}",
    "()",
    "'{:>9999999}{}{0}'",
];
const OPERATORS: [&str; 20] = [
    "+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in",
    "and", "or", "is", "if",
];
const FILTERS: [&str; 54] = [
    "abs",
    "attr('a')",
    "batch(2)",
    "batch(0)",
    "bool",
    "capitalize",
    "center",
    "center(9999999)",
    "default(1)",
    "dictsort",
    "escape",
    "first",
    "float",
    "format(1, 2)",
    "groupby('role')",
    "groupby(0)",
    "indent",
    "indent(99999999)",
    "int",
    "items",
    "join",
    "join(ns.a)",
    "last",
    "length",
    "list",
    "lower",
    "map('upper')",
    "map('string')",
    "map(attribute='a')",
    "max",
    "min",
    "reject",
    "replace('a', ns.a)",
    "reverse",
    "round",
    "round(999999)",
    "round(-9)",
    "safe",
    "select('in', ns.a)",
    "selectattr('a', 'eq', ns.a)",
    "slice(3)",
    "slice(0)",
    "sort",
    "string",
    "sum",
    "sum(start='')",
    "title",
    "tojson",
    "tojson(indent=999)",
    "trim",
    "truncate(3)",
    "unique",
    "upper",
    "urlencode",
];
const METHODS: [&str; 26] = [
    "append(1)",
    "center(-3, 'ab')",
    "count(1)",
    "count('')",
    "endswith('a')",
    "find('a')",
    "format(ns.a, a=1)",
    "get('a')",
    "index('b')",
    "items()",
    "join(ns.a)",
    "keys()",
    "ljust(9999999, 'ab')",
    "lstrip('a')",
    "partition('')",
    "replace('', ns.a)",
    "rsplit('a', 2)",
    "split('a', 99999999999)",
    "split('')",
    "splitlines(true)",
    "startswith(('a', 1))",
    "title()",
    "upper()",
    "values()",
    "zfill(-5)",
    "cycle()",
];
const TESTS: [&str; 14] = [
    "defined",
    "divisibleby(0)",
    "divisibleby(3)",
    "eq(ns.a)",
    "even",
    "filter",
    "in(ns.a)",
    "iterable",
    "lower",
    "mapping",
    "number",
    "sameas(ns.a)",
    "string",
    "test",
];
const CALLS: [&str; 14] = [
    "range(100000)",
    "range(-1, 9223372036854775807, 2)",
    "range(5, 0, 0)",
    "dict(a=ns.a)",
    "dict(ns.a)",
    "namespace(a=ns.a)",
    "cycler(ns.a)",
    "cycler()",
    "joiner(', ')",
    "strftime_now('%c%')",
    "f(ns.a)",
    "f()",
    "raise_exception('no\\nno')",
    "loop(ns.a)",
];

fn expression(dice: &mut Dice, depth: usize) -> String {
    if depth == 0 {
        let words = if dice.one_in(2) { &NAMES[..] } else { &CONSTANTS[..] };
        return (*dice.pick(words)).to_owned();
    }
    let mut part = || expression(dice, depth - 1);
    let (a, b) = (part(), part());
    match dice.below(11) {
        0 | 1 => format!("({a} {} {b})", dice.pick(&OPERATORS)),
        2 => format!("[{a}, {b}]"),
        3 => format!("{{{a}: {b}}}"),
        4 => format!("({a})[{b}]"),
        5 => format!("({a})[{b}:{}:{}]", dice.pick(&CONSTANTS), dice.pick(&["", "-1", "0", "2"])),
        6 => format!("({a}).{}", dice.pick(&METHODS)),
        7 => format!("({a} is {})", dice.pick(&TESTS)),
        8 => (*dice.pick(&CALLS)).to_owned(),
        _ => format!("({a}|{})", dice.pick(&FILTERS)),
    }
}

fn statements(dice: &mut Dice, depth: usize) -> String {
    let mut text = String::new();
    for _ in 0..1 + dice.below(3) {
        let nesting = 1 + dice.below(2);
        let value = expression(dice, nesting);
        let inner = if depth > 0 { statements(dice, depth - 1) } else { "<|eot_id|>".to_owned() };
        text += &match dice.below(if depth > 0 { 14 } else { 7 }) {
            0 | 1 => format!("{{{{ {value} }}}}"),
            2 | 3 => format!("{{% set ns.a = {value} %}}"),
            4 => format!(
                "{{% set ns.a = {} %}}",
                dice.pick(&["[ns.a, ns.a]", "ns.a + ns.a", "ns.a ~ ns.a", "{1: ns.a}"])
            ),
            5 => format!("{{% set x, y = {value} %}}"),
            6 => format!("{{% set x = {value} %}}"),
            7 | 8 => format!("{{% for x in {value} %}}{inner}{{% endfor %}}"),
            9 => format!("{{% for i in range(1000) %}}{inner}{{% endfor %}}"),
            10 => format!("{{% if {value} %}}{inner}{{% else %}}no{{% endif %}}"),
            11 => format!("{{% macro f(x=1, y=2) %}}{inner}{{% endmacro %}}"),
            12 => format!(
                "{{% set ns.b %}}{inner}{{% endset %}}{{% filter upper %}}{inner}{{% endfilter %}}"
            ),
            _ => format!(
                "{{% for x in [{value}] recursive %}}{inner}{{{{ loop([x]) }}}}{{% endfor %}}"
            ),
        };
    }
    text
}

/// A template, and now and then a broken one.
pub fn wild_template(dice: &mut Dice) -> String {
    let start = dice.pick(&["[1]", "'ab'", "{'a': [1]}", "messages"]);
    let mut source = format!("{{% set ns = namespace(a={start}, b=0) %}}") + &statements(dice, 2);
    if dice.one_in(8) {
        source = source.chars().take(dice.below(source.len())).collect();
    }
    source
}
