"""Golden renderings of chat templates by transformers; golden_text.py writes them to text.json.

The templates and conversations are our own; the templates use what published ones use.
"""

import datetime

import jinja2
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

DATE = datetime.datetime(2024, 7, 26, 12, 0, 0)

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
}


def message(role, content):
    return {"role": role, "content": content}


QUESTION = [message("user", "What is 17 + 25?")]
TALK = [
    message("system", "You are the miller's helper."),
    message("user", "The river rises."),
    message("assistant", "<think>\nHow high?\n</think>\n\nThen we open the gate."),
    message("user", "And then?"),
]
SPACED = [
    message("system", "\n  Be brief. \n"),
    message("user", "  \tWhat\n  is this?\u00a0\n\n"),
    message("assistant", "\n A {{ template }}? {% no %} \n"),
    message("user", ""),
]
WORLD = [
    message("user", "Größe <b>&amp;</b> 'a' \"b\" \\ / 河水 😀 e\u0301 \u2028 \x7f"),
    message("assistant", "<|eot_id|><|start_header_id|>system<|end_header_id|>\n\nno"),
]
TOOL = [*QUESTION, message("assistant", "calc(17 + 25)"), message("ipython", "{\"value\": 42}")]
BAD_ORDER = [message("assistant", "Hello."), message("user", "Hello!")]
BAD_ROLE = [message("user", "Hi."), message("narrator", "It rains.")]
DOUBLED = [
    message("user", "One."),
    message("user", "Two."),
    message("system", "Late."),
    message("assistant", "stop"),
    message("user", "Never seen."),
]
NO_USER = [message("system", "Wait."), message("assistant", "I wait.")]

# The conversations for each template, and whether the assistant's header is asked for.
CONVERSATIONS = {
    "llama-3.0": [(QUESTION, True), (TALK, True), (SPACED, False), (BAD_ROLE, True)],
    "llama-3.1": [(QUESTION, True), (TALK, True), (SPACED, True), (WORLD, False), (TOOL, True)],
    "llama-3.2-strftime": [(QUESTION, True), (TALK, True), (SPACED, False)],
    "date-formats": [(QUESTION, False), (WORLD, False)],
    "llama-2": [(TALK, False), (SPACED, True), (BAD_ORDER, True), (BAD_ROLE, True)],
    "tools-tojson": [(QUESTION, True), (WORLD, False), (SPACED, False)],
    "whitespace": [(QUESTION, True), (TALK, False), (SPACED, True), (BAD_ROLE, False)],
    "namespace-loop": [(QUESTION, True), (TALK, True), (DOUBLED, True), (NO_USER, False)],
    "string-methods": [(QUESTION, True), (TALK, True), (WORLD, False), (NO_USER, True)],
    "generation": [(QUESTION, True), (TALK, True), (WORLD, False)],
}


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return DATE


def template_goldens():
    """What apply_chat_template renders, or the message of raise_exception, at the fixed date."""
    chat_template_utils.datetime = FixedClock
    goldens = []
    for name, template in TEMPLATES.items():
        bos, eos = ("<s>", "</s>") if name == "llama-2" else ("<|begin_of_text|>", "<|eot_id|>")
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE()),
            bos_token=bos,
            eos_token=eos,
            chat_template=template,
        )
        cases = []
        for messages, add_generation_prompt in CONVERSATIONS[name]:
            case = {
                "messages": messages,
                "add_generation_prompt": add_generation_prompt,
                "bos_token": bos,
                "eos_token": eos,
                "date": DATE.strftime("%d %b %Y"),
            }
            try:
                case["rendered"] = tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            except jinja2.TemplateError as error:
                # Only what raise_exception raises is of this very class and no subclass.
                if type(error) is not jinja2.TemplateError:
                    raise
                case["error"] = str(error)
            cases.append(case)
        goldens.append({"name": name, "template": template, "cases": cases})
    return goldens
