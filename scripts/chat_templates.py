"""Chat templates, by what they try or whose they are: for golden_templates.py."""

TEMPLATES = {
    # Llama 3.0: one expression with trim, BOS before the first message.
    "llama-3.0": """\
{% set loop_messages = messages %}{% for message in loop_messages %}\
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' \
+ message['content'] | trim + '<|eot_id|>' %}\
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}\
{{ content }}{% endfor %}\
{% if add_generation_prompt %}\
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}""",
    # Llama 3.1: a dated system block whatever the messages, branches for tools that stay unused.
    "llama-3.1": """\
{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system message, or an empty one. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("One tool call at a time, please.") }}
        {%- endif %}
        {{- message.tool_calls[0].function | tojson }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    # Llama 3.2: today's date through strftime_now, and other formats of it.
    "llama-3.2-strftime": """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "1 Jan 2000" %}
    {%- endif %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " ~ date_string ~ "\\n\\n" }}
{%- for message in messages if message.role == 'system' %}
    {{- message.content | trim }}
{%- endfor %}
{{- "<|eot_id|>" }}
{%- for message in messages | rejectattr('role', 'equalto', 'system') %}
    {{- "<|start_header_id|>%s<|end_header_id|>\\n\\n" | format(message.role) }}
    {{- message.content | trim ~ "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
""",
    "date-formats": """\
{{ strftime_now('%x|%X|%c|%D|%F|%T|%R|%I:%M %p|%j|%-d|%e|%U|%w|%f|%Q|%%|%Z') }} {{ strftime_now('%Y年%m月%d日') }}
{{ strftime_now('%Y-%m-%d') }} {{ strftime_now("%B %d, %Y") }} {{ strftime_now('%A, %d/%m/%y') }}
{% for message in messages %}
{{ message.role }}: {{ message.content }}
{% endfor %}
""",
    # Llama 2: [INST], the system message folded into the first question, strict alternation.
    "llama-2": """\
{% if messages[0]['role'] == 'system' %}\
{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}\
{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}\
{% for message in loop_messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if loop.index0 == 0 and system_message != false %}\
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}\
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}\
{% endfor %}""",
    # Literals as tools: tojson in its forms, mappings, membership.
    "tools-tojson": """\
{%- set tools = [
    {"type": "function", "function": {"name": "get_level", "description": "A <river> & more",
     "parameters": {"type": "object", "properties": {"river": {"type": "string"},
     "deep": {"type": "number", "default": 1.5}}, "required": ["river"], "empty": [], "none": {}}}},
    {"name": "später", "arguments": {"n": 3, "on": true, "off": false, "nil": none,
     "q": "it's \\"so\\""}},
] %}
{{- bos_token }}
{%- for tool in tools %}
    {%- if tool is mapping and 'function' in tool %}
        {%- set tool = tool.function %}
    {%- endif %}
    {{- tool.name ~ " (" ~ tool | length ~ ")\\n" }}
    {{- tool | tojson }}
    {{- "\\n" }}
    {{- tool | tojson(indent=4) }}
    {{- "\\n" }}
    {%- for key, value in tool.items() %}
        {{- key ~ ":" ~ ("map" if value is mapping else "text" if value is string) ~ " " }}
    {%- endfor %}
    {{- "\\n" }}
    {{- tool.get('arguments', {}) | tojson(indent=2) ~ "\\n" }}
{%- endfor %}
{%- for message in messages %}
    {{- message | tojson }}
    {{- "\\n" ~ message.content | tojson ~ "\\n" }}
    {{- 'tool_calls' in message or message.tool_calls is defined and message.tool_calls }}
    {%- if message.content is iterable and message.content is string %}{{ "\\n" }}{% endif %}
{%- endfor %}
""",
    # Newlines and indentation that only trim_blocks and lstrip_blocks take away.
    "whitespace": """\
{# A comment on its own line. #}
{% for message in messages %}
    {% if message.role == 'user' %}
  Q: {{ message.content }}
    {% elif message.role == 'assistant' %}
  A: {{ message.content }} {% if loop.last %}(end){% endif %}

    {% else %}
  {{- ' ' + message.content -}}   
    {%+ if true %}kept{% endif +%}
    {% endif %}
{% endfor %}
   {% raw %}{{ not a variable }}{% endraw %}

{% set block %}
  several
  lines
{% endset %}
[{{ block }}]
{% if add_generation_prompt %}
  A:{% endif %}

""",
    "namespace-loop": """\
{%- set ns = namespace(system='', count=0, seen=false) -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {%- set ns.system = ns.system ~ message.content -%}
        {%- continue -%}
    {%- endif -%}
    {%- set ns.count = ns.count + 1 -%}
    {%- if message.content == 'stop' -%}{%- break -%}{%- endif -%}
    {%- if loop.previtem is defined and loop.previtem.role == message.role -%}
        {{- '+' -}}
    {%- endif -%}
    {{- loop.index ~ '/' ~ loop.length ~ ' ' ~ message.role[0] ~ ': ' ~ message.content -}}
    {%- if loop.first -%}{{ ' <first>' }}{%- endif -%}
    {%- if not loop.last -%}
        {{- ' -> ' ~ loop.nextitem.role ~ ', ' ~ loop.revindex0 ~ ' left\\n' -}}
    {%- endif -%}
{%- else -%}
    {{- 'nothing' -}}
{%- endfor -%}
{{- '\\n' ~ ns.count ~ ' ' ~ (ns.system or 'no system') -}}
{%- for message in messages[::-1] %}{{ ' ' ~ message.role }}{% endfor -%}
{%- for i in range(2, messages | length, 2) %}{{ ' ' ~ i }}{% endfor -%}
{{- ' last=' ~ messages[-1].role ~ ' two=' ~ messages[:2] | map(attribute='role') | join('+') -}}
""",
    "string-methods": """\
{%- macro header(role) -%}
    {{- '### ' ~ role.title() ~ ' ' ~ role | upper ~ ' ' ~ role | capitalize ~ ':\\n' -}}
{%- endmacro -%}
{%- for message in messages -%}
    {%- set text = message.content.strip() -%}
    {{- header(message.role) -}}
    {%- if '</think>' in text -%}
        {%- set thought = text.split('</think>')[0].rstrip('\\n') -%}
        {%- set thought = thought.split('<think>')[-1].lstrip('\\n') -%}
        {%- set text = text.split('</think>')[-1].lstrip() -%}
        {{- '(' ~ thought | length ~ ') ' -}}
    {%- endif -%}
    {{- text.replace('river', 'RIVER') ~ '|' ~ text[:5] ~ '|' ~ text[-3:] ~ '|' ~ text[::-1] -}}
    {{- '|' ~ text.startswith('The') | string | lower -}}
    {{- '|long' if text | length > 20 else '|short' -}}
    {{- '|' ~ text.lower().split() | join('_') ~ '|' ~ text.upper().endswith('.') | int -}}
    {{- '|' ~ message.name | default('anon') -}}
    {{- '|' ~ text.find('e') ~ '|' ~ text.count('e') ~ '\\n' -}}
{%- endfor -%}
{%- if messages | selectattr('role', 'equalto', 'user') | list | length == 0 -%}
    {{- raise_exception('No user said "anything": ' ~ messages | length ~ ' messages') -}}
{%- endif -%}
""",
    # `generation` only marks what the assistant says; it leaves no trace in the text.
    "generation": """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {%- generation %}
        {{- message.content | trim + '<|eot_id|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
        {{- message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{% for message in messages if message.role == 'assistant' %}
  {% generation %}
  {{ message.content }}
  {% endgeneration %}
{% endfor %}
{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}""",
    # ChatML as SmolLM2 and many tunes have it, with a system message of its own.
    "chatml": """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "tojson-options": """\
{%- set value = {"b": [1, 2.5, 1e16, 1e-7, 0.0001, 123456789.125, -0.0], "a": {"é": "ü\\n\\t\\x7f😀\\u2028"},
    "c": [], "d": {}, "10": none, "9": true} -%}
{{- value | tojson }}
{{ value | tojson(indent=2) }}
{{ value | tojson(indent=0) }}
{{ value | tojson(indent="\\t") }}
{{ value | tojson(indent=none, separators=(',', ':')) }}
{{ value | tojson(separators=[' ; ', ' = '], indent=1) }}
{{ value | tojson(sort_keys=true) }}
{{ value | tojson(ensure_ascii=true) }}
{{ value | tojson(true, 3) }}
{{ value | tojson(ensure_ascii=false, indent=4, separators=(", ", ": "), sort_keys=true) }}
{{ messages | tojson }} {{ "<b>&'" | tojson }} {{ 'x' | tojson | length }} {{ [none, 1 == 1] | tojson }}
""",
    # What a model with tools writes: everything that the conversation holds.
    "tools": """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif -%}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor -%}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.content is string %}{% set content = message.content %}
    {%- else %}{% set content = '' %}{% endif %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {{- '<|im_start|>assistant' ~ ('\\n' ~ content if content else '') }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{% set tool_call = tool_call.function %}{% endif %}
            {{- '\\n<tool_call>\\n{"name": "' ~ tool_call.name ~ '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{ tool_call.arguments }}
            {%- else %}{{ tool_call.arguments | tojson }}{% endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response id="' ~ (message.tool_call_id or '') ~ '">\\n' ~ content ~ '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
    {%- elif not (loop.first and tools and message.role == 'system') %}
        {{- '<|im_start|>' ~ message.role ~ (' name=' ~ message.name if message.name else '') ~ '\\n' }}
        {%- if message.reasoning_content %}{{ '<think>' ~ message.reasoning_content ~ '</think>\\n' }}{% endif %}
        {{- content ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if documents %}
    {%- for document in documents %}{{ '[' ~ loop.index ~ '] ' ~ document.title ~ ': ' ~ document.text ~ '\\n' }}{% endfor %}
{%- endif %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
""",
    # Both kinds of content, as models with vision have it.
    "parts": """\
{%- for message in messages %}
    {{- message.role ~ ': ' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- elif message.content %}
        {%- for part in message.content %}
            {%- if part.type == 'text' %}{{ part.text }}{% endif %}
        {%- endfor %}
    {%- endif %}
    {{- '|' ~ ('content' in message) ~ '\\n' }}
{%- endfor %}
""",
    "python-methods": """\
{%- set s = '  The river, the River; 12\\n' -%}
{{ [s.strip(), s.lstrip(), s.rstrip(), 'xxaxx'.strip('x'), 'xya'.lstrip('yx')] }}
{{ ['a,b,c'.split(sep=',', maxsplit=1), 'a,b,c'.rsplit(',', maxsplit=1), 'a/b é'|urlencode] }}
{{ ['a,b,,c'.split(','), 'a b  c'.split(), 'a,b,c'.split(',', 1), 'a,b,c'.rsplit(',', 1), ' a b '.rsplit()] }}
{{ ['a=b=c'.partition('='), 'a=b=c'.rpartition('='), 'abc'.partition('x')] | map('join', '|') | join(' ') }}
{{ ['prefix-x'.removeprefix('prefix-'), 'x.gguf'.removesuffix('.gguf'), 'abc'.removeprefix('x')] }}
{{ [s.find('river'), s.rfind('r'), s.find('zzz'), s.count('r'), 'abc'.index('c')] }}
{{ ['abc'.startswith(('x', 'a')), 'abc'.endswith('c'), 'aBc'.swapcase(), 'aBc'.upper(), 'ABC'.lower()] }}
{{ ['7'.zfill(3), '-7'.zfill(4), 'x'.ljust(3, '.'), 'x'.rjust(3), 'ab'.center(5, '*'), 'abc'.center(6, '*')] }}
{{ ['abc'.isalpha(), '12'.isdigit(), 'a1'.isalnum(), ' '.isspace(), 'AB'.isupper(), 'ab'.islower()] }}
{{ ['hello world'.title(), 'hello World'.capitalize(), 'a\\nb\\r\\nc'.splitlines(), '-'.join(['a', 'b'])] }}
{{ ['aaa'.replace('a', 'b', 2), 'abc'.replace('', '-'), '{} {}'.format(1, 'x'), '{0:>4}|{n}'.format('a', n=2)] }}
{%- set d = {'x': 1, 'y': [2, 3]} %}
{{ d.items() | list }} {{ d.keys() | list }} {{ d.values() | list }} {{ d.get('x') }} {{ d.get('z', 9) }}
{%- for key, value in d.items() %} {{ key }}={{ value }}{% endfor %}
{{ [1, 2, 1].count(1) }} {{ s[2:5] }}|{{ s[::-1] | trim }}|{{ 'abcdef'[1:-1:2] }}|{{ 'abcdef'[-3:] }}|{{ [1, 2, 3][1:] }}
{%- for message in messages %} {{ message.content.split('</think>')[-1].lstrip('\\n') }}{% endfor %}
""",
    "values": """\
{{ true }} {{ none }} {{ 1.0 }} {{ 1e16 }} {{ 1e-7 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ 2 ** 10 }} {{ 7 / 2 }}
{{ [1, 'a', none, true, 1.5] }} {{ {'a': 'it\\'s', 'b': [none]} }} {{ ('a', 1) }} {{ 'q"' ~ 1 ~ none ~ 2.50 }}
{{ undefined_name }}|{{ undefined_name | default('d') }}|{{ '' | default('e', true) }}|{{ messages[0].nothing }}
{{ 'a' * 3 }} {{ 'a' + 'b' }} {{ [1] + [2] }} {{ 'b' in 'abc' }} {{ 3 not in [1, 2] }} {{ 1 < 2 < 3 }} {{ not none }}
{{ 'yes' if messages | length > 0 else 'no' }}{{ 'x' if false }} {{ (1 == 1.0) }} {{ 'a' < 'b' }} {{ none == undefined_name }}
{{ "%s is %d and %.2f" | format('x', 3, 1.5) }}
{{ range(3) | list }} {{ range(1, 7, 2) | list }} {{ dict(a=1, b='x') }} {{ namespace(a=1).a }}
""",
    "tests-and-filters": """\
{{ [1 is integer, 1.0 is float, true is boolean, 'x' is string, [] is sequence, {} is mapping, 'x' is iterable] }}
{{ [none is none, x is defined, x is undefined, 3 is odd, 4 is even, 6 is divisibleby 3, 1 is number, 'a' is lower] }}
{{ [1 is eq 1, 2 is gt(1), 'a' is in ['a'], true is true, false is false, messages is sameas messages] }}
{{ [3, 1, 2] | sort }} {{ ['b', 'A', 'c'] | sort }} {{ [3, 1] | sort(reverse=true) }} {{ [1, 2, 2, 3] | unique | list }}
{{ [1, 2, 3, 4, 5] | batch(2) | list }} {{ [1, 2, 3] | sum }} {{ [1, 5, 3] | max }} {{ [4, 2] | min }} {{ [1, 2] | first }}
{{ messages | map(attribute='role') | list }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ messages | rejectattr('role', 'in', ['user']) | map(attribute='role') | join(',') }} {{ [0, 1, '', 'a'] | select | list }}
{{ ['a', 'b'] | map('upper') | join('+') }} {{ 'abc' | reverse }} {{ [1, 2] | reverse | list }} {{ 'a-b' | replace('-', '_') }}
{{ '  x ' | trim }}|{{ 'xxaxx' | trim('x') }}|{{ 'hello world' | title }} {{ 'hELLO' | capitalize }} {{ 'a b c' | wordcount }}
{{ 3.7 | int }} {{ '5' | int + 1 }} {{ 'x' | int(7) }} {{ '2.5' | float }} {{ 2.567 | round(2) }} {{ -3 | abs }} {{ 5 | string ~ 'x' }}
{{ {'b': 1, 'a': 2} | dictsort }} {{ {'a': 1} | items | list }} {{ 'a\\nb' | indent(2) }} {{ 'a\\nb' | indent(4, true) }}
{{ [{'k': 'x', 'v': 1}, {'k': 'y', 'v': 2}, {'k': 'x', 'v': 3}] | groupby('k') | map('first') | list }} {{ 'abc' | list }}
{{ '<a>' | escape }} {{ '<a>' | e }} {{ '<a>' | safe }} {{ 'abc' | length }} {{ 'x' | center(5) }}|{{ [1, 2, 3] | last }}
{{ 'foo bar baz qux' | truncate(9) }} {{ 'foo bar baz qux' | truncate(9, true) }} {{ 'foo bar baz qux' | truncate(11) }}
{{ 'foo bar baz qux' | truncate(11, false, '…', 0) }} {{ 'foobarbaz' | truncate(4, leeway=1) }} {{ 'a, b-c d' | wordcount }}
""",
    "scopes": """\
{%- macro say(what, times=2, end='.') -%}{{ what * times }}{{ end }}{%- endmacro -%}
{{ say('a') }} {{ say('b', 1) }} {{ say(what='c', end='!') }}
{%- set x = 1 %}{% for i in [1, 2] %}{% set x = i %}{% endfor %}{{ x }}
{%- set ns = namespace(found=false, n=0) %}
{%- for message in messages %}{% set ns.n = ns.n + message.content | length %}{% set ns.found = true %}{% endfor -%}
{{ ns.n }} {{ ns.found }}
{%- for a, b in [[1, 2], [3, 4]] %} {{ a + b }}{% else %} none{% endfor %}
{%- for x in [] %}{{ x }}{% else %} empty{% endfor %}
{%- for x in [1, 2, 3, 4] if x is even %} {{ loop.index }}:{{ x }}{{ ',' if not loop.last }}{% endfor %}
{%- for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %} {{ x }}{{ loop.cycle('a', 'b') }}{% endfor %}
{%- with y = 5, z = 6 %} {{ y + z }}{% endwith %}
{%- set block %}in {{ messages | length }}{% endset %} [{{ block }}] {{ block | upper }}
{%- filter upper %} shout {{ 1 }}{% endfilter %}
{%- macro wrap() %}<{{ caller() }}>{% endmacro %}{% call wrap() %}inner{% endcall %}
{%- set a, b = 1, 2 %} {{ a }}{{ b }} {{ loop is defined }}
{%- for item in [[1, [2, 3]], [4]] recursive %}{% if item is iterable %}({{ loop(item) }}){% else %}{{ item }}{% endif %}{% endfor %}
{%- if messages[0].role == 'system' and messages | length > 1 %} both{% elif not messages %} no{% else %} one{% endif %}
{% raw %}{{ raw }}{% endraw %} {# gone #}{{- '!' }}
""",
}
