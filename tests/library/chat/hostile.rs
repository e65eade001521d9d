//! Templates that would not end, or would end the process; and that what bounds them changes no
//! meaning.

use super::*;

/// A template that makes `a`, twice as large in each of a hundred steps, and ends in `end`.
fn doubling(start: &str, step: &str, end: &str) -> String {
    format!(
        "{{% set ns = namespace(a={start}) %}}{{% for i in range(100) %}}\
         {{% set ns.a = {step} %}}{{% endfor %}}{{{{ {end} }}}}"
    )
}

/// Each template is refused in one line, when it is loaded or when it is run.
fn refused(sources: &[String]) {
    for source in sources {
        let model = model(source);
        let chat = Chat::load(&model.source, &model.tokenizer, ChatStyle::Template);
        let encoded = chat.and_then(|chat| chat.encode(&model.tokenizer, &talk()[..].into(), true));
        let source: String = source.chars().take(200).collect();
        let error = encoded.expect_err(&source).to_string();
        assert!(error.contains("/tokenizer_config.json: the chat template"), "{source}: {error}");
        assert!(!error.contains("cannot be run"), "{source}: {error}");
        assert!(!error.contains('\n') && error.len() < 500, "{source}: {error}");
    }
}

#[test]
fn endless_and_huge_templates_end() {
    let nested = |open: &str, close: &str| {
        format!("{{{{ {}1{} }}}}", open.repeat(20_000), close.repeat(20_000))
    };
    let loops = "{% for i in range(100000) %}".repeat(4) + "x" + &"{% endfor %}".repeat(4);
    refused(&[
        loops.clone(),
        loops.replace('x', ""),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}".to_owned(),
        doubling("'ab'", "ns.a ~ ns.a", "ns.a"),
        doubling("'ab'", "ns.a + ns.a", "ns.a"),
        doubling("'ab'", "ns.a.replace('a', ns.a)", "ns.a"),
        doubling("'ab'", "ns.a | replace('a', ns.a)", "ns.a"),
        doubling("'aa'", "ns.a.replace('a', ns.a)", "ns.a"),
        doubling("'ab'", "ns.a.join([ns.a, ns.a])", "ns.a"),
        "{{ 'x'.ljust(99999999999) }}{{ '{:>99999999999}'.format(1) }}".to_owned(),
        doubling("[1]", "[ns.a, ns.a]", "ns.a"),
        doubling("[1]", "[ns.a, ns.a]", "ns.a | tojson"),
        doubling("[1]", "{'x': ns.a, 'y': ns.a}", "ns.a | tojson(indent=2)"),
        "{{ 'x' * 90000000 * 90000000 }}".to_owned(),
        "{{ '%99999999999d' | format(1) }}".to_owned(),
        "{{ range(99999999999) | list }}".to_owned(),
        nested("(", ")"),
        nested("[", "]"),
        "{% if 1 %}".repeat(20_000) + &"{% endif %}".repeat(20_000),
        "x".repeat(2 << 20),
        "{{ ".to_owned() + &"-".repeat(170_000) + "1 }}",
    ]);
}

/// Small in memory and endless to walk: views of views, and values that hold others more than once.
#[test]
fn what_is_endless_to_walk_is_not_walked() {
    refused(&[
        doubling("[1]", "ns.a + ns.a", "ns.a[99999999999999]"),
        doubling("[1]", "ns.a * 2", "ns.a | last"),
        doubling("[1]", "(ns.a + ns.a + ns.a)[1:]", "2 in ns.a"),
        doubling("[1]", "ns.a + ns.a", "ns.a | length"),
        doubling("[1]", "[ns.a, ns.a]", "ns.a == [1]"),
        doubling("[1]", "(ns.a, ns.a)", "{ns.a: 1}"),
        doubling("[1]", "[ns.a, ns.a]", "{1: 1}[ns.a]"),
        doubling("[1]", "[ns.a, ns.a]", "ns.a ~ ''"),
        doubling("[1]", "[ns.a, ns.a]", "ns.a | string"),
        doubling("[1]", "[ns.a, ns.a]", "','.join(ns.a)"),
        doubling("[1]", "[ns.a, ns.a]", "[ns.a] | unique | list"),
        doubling("[1]", "dict(x=ns.a, y=ns.a)", "ns.a is eq ns.a"),
        doubling("[1]", "[ns.a, ns.a]", "'%s' % ns.a"),
    ]);
}

/// Values that hold themselves, and values that nest without end.
#[test]
fn what_nests_without_end_is_refused() {
    refused(&[
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}".to_owned(),
        "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns == namespace(a=1) }}".to_owned(),
        "{% set ns = namespace(a=namespace()) %}{% set ns.a.b = ns %}{{ [ns] | string }}"
            .to_owned(),
        doubling("[1]", "[ns.a]", "ns.a").replace("100", "100000"),
        doubling("[1]", "ns.a | batch(1)", "ns.a").replace("100", "100000"),
        doubling("[1]", "ns.a | groupby(0)", "ns.a").replace("100", "100000"),
        doubling("1", "namespace(a=ns.a)", "1").replace("100", "100000"),
        doubling("1", "cycler(ns.a)", "1").replace("100", "100000"),
        "{% for i in range(9) %}{{ loop.changed(loop) }}{% set x = [loop] %}{% endfor %}"
            .to_owned(),
        "{% macro f() %}{% endmacro %}{{ [f] }}".to_owned(),
    ]);
}

#[test]
fn long_texts_are_not_made() {
    refused(&[
        doubling("'ab'", "ns.a.join(ns.a)", "ns.a"),
        doubling("'ab '", "ns.a + ns.a", "ns.a.split() | length"),
        "{{ '{:>1000000000000}'.format(1) }}".to_owned(),
        "{{ '{:.1000000000000}'.format(1.5) }}".to_owned(),
        doubling("'{0}'", "ns.a + ns.a", "ns.a.format('long' * 1000)"),
        "{{ '%*d' % (1000000000000, 1) }}".to_owned(),
        "{{ '%.1000000000000f' % 1.5 }}".to_owned(),
        "{{ (['ab'] * 90000) | sum(start='') }}".to_owned(),
        "{{ ('a' * 9000) | list | map('center', 90000) | list | length }}".to_owned(),
        "{{ 'a\nb' | indent(1000000000000) }}".to_owned(),
        "{{ strftime_now('%c' * 30000000) }}".to_owned(),
        "{{ messages | tojson(indent=1000) | length }}".repeat(1000),
    ]);
}

#[test]
fn what_an_engine_trips_over_is_refused() {
    refused(&[
        "{{ range(-9223372036854775808, 9223372036854775807, 1) }}".to_owned(),
        "{{ range(9223372036854775807, -9223372036854775808, -9223372036854775808) }}".to_owned()
            + "{{ range(1, 9, 0) }}",
        "{% for i in [1] %}{{ loop.cycle() }}{% endfor %}".to_owned(),
        "{{ 1 % 0 }}".to_owned(),
        "{{ (-170141183460469231731687303715884105727 - 1) % -1 }}{{ 1.5 % 0.0 }}".to_owned(),
        "{% block a %}{{ self.a() }}{% endblock %}".to_owned(),
        "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}".to_owned(),
        "{% macro f() %}{% call f() %}{% endcall %}{% endmacro %}{{ f() }}".to_owned(),
        "{{ debug() }}".to_owned(),
    ]);
}

/// What is paid for is what the engine does: its own meaning is left to every operator and call.
#[test]
fn templates_mean_what_they_do_in_python() {
    for (source, rendered) in [
        (
            "{{ [1, 2] + [3] }}{{ [1] * 2 }}{{ 'ab' * 2 }}{{ [1, 2, 3][1:] }}",
            "[1, 2, 3][1, 1]abab[2, 3]",
        ),
        (
            "{{ 1 < 2 < 3 }}{{ 1 == 1 != 1 }}{{ 2 in [1, 2] }}{{ 'a' not in 'cab' }}",
            "TrueFalseTrueFalse",
        ),
        (
            "{{ {'a': 1}['a'] }}{{ {'a': {'b': 2}}.a.b }}{{ [1, 2][-1] }}{{ x is defined }}",
            "122False",
        ),
        (
            "{{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7.5 % 2 }} {{ -7.5 % 2 }} {{ true % 2 }}",
            "1 2 -2 1.5 0.5 1",
        ),
        (
            "{{ '%s is %d' % ('a', 5) }} {{ '%5.1f|' % 2.25 }} {{ '%(a)s' % {'a': 'x'} }}",
            "a is 5   2.2| x",
        ),
        (
            "{{ range(3) | list }}{{ range(5, 0, -2) | list }}{{ range(2, 2) | list }}",
            "[0, 1, 2][5, 3, 1][]",
        ),
        (
            "{% set ns = namespace(l=[]) %}{% for i in range(3) %}{% set ns.l = ns.l + [i] %}\
             {% endfor %}{{ ns.l }}",
            "[0, 1, 2]",
        ),
        (
            "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ caller() }}{% endmacro %}{% call f(1) %}x{% endcall %}",
            "12x",
        ),
        (
            "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{{ loop.cycle('x', 'y') }}{% endfor %}",
            "a1xb2y",
        ),
        (
            "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}",
            "123",
        ),
        ("{% set a, b = [1, 2] %}{{ b }}{{ a }}{% set c = (1, [2, 3]) %}{{ c | length }}", "212"),
        ("{{ '{} {x:>3}'.format('a', x=1) }}{{ dict(a=1, **{'b': 2}) }}", "a   1{'a': 1, 'b': 2}"),
        (
            "{{ [3, 1, 2] | sort | map('string') | join }}{{ [1, 2, 3] | select('odd') | list }}",
            "123[1, 3]",
        ),
        (
            "{% set l = [{'a': 1}, {'a': 2}] %}{{ l | selectattr('a', 'equalto', 2) | list }}\
             {{ l | map(attribute='a') | sum }}",
            "[{'a': 2}]3",
        ),
        (
            "{{ [1, 2, 3] | batch(2) | list }}{{ 'a b' .split() }}{{ [[1], [2]] | sum(start=[]) }}",
            "[[1, 2], [3]]['a', 'b'][1, 2]",
        ),
        (
            "{% if x is not defined and 'a' is string and [] is sequence %}y{% endif %}\
             {{ 5 is divisibleby(5) }}",
            "yTrue",
        ),
    ] {
        let model = model(source);
        let ids = model.encode(ChatStyle::Template, &[]);
        assert_eq!(model.tokenizer.decode(&ids, true).unwrap(), rendered, "{source}");
    }
}
