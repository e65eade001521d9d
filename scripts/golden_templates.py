"""Golden renderings of chat templates by transformers; golden_text.py writes them to text.json.

The templates and conversations are our own; the templates use what published ones use.
"""

import copy
import datetime

import jinja2
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from chat_templates import TEMPLATES

DATE = datetime.datetime(2024, 7, 26)


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

CALL = {"id": "c1", "type": "function", "function": {
    "name": "level", "arguments": {"river": "<|im_end|> Ob", "deep": 1.5, "at": None}}}
SCHEMA = {"type": "function", "function": {
    "name": "level", "description": "How high <it> is, \"now\"", "parameters": {
        "type": "object", "properties": {"river": {"type": "string"}}, "required": ["river"]}}}
CALLS = [
    message("system", "Be brief."),
    {**message("user", "How high?"), "name": "Ana"},
    {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "{\"m\": 3}"},
    {"role": "tool", "tool_call_id": None, "content": "none"},
    {"role": "assistant", "content": "3 m.", "reasoning": "It says so.", "tool_calls": None},
]
STRINGS = [*QUESTION, {"role": "assistant", "tool_calls": [{"function": {
    "name": "level", "arguments": "{\"river\": \"Ob\"}"}}]}]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "One. "}, {"type": "text", "text": "Two."}]},
    {"role": "assistant", "content": None},
    message("user", "Three."),
]
MORE = {"tools": [SCHEMA], "documents": [{"title": "T", "text": "<doc>"}], "enable_thinking": False}

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
    "chatml": [(QUESTION, True), (TALK, True), (SPACED, False)],
    "tojson-options": [(QUESTION, True), (WORLD, False)],
    "tools": [(QUESTION, True), (CALLS, True), (CALLS, True, MORE), (STRINGS, False, MORE)],
    "parts": [(PARTS, True), (QUESTION, True)],
    "python-methods": [(TALK, True)],
    "values": [(QUESTION, True)],
    "tests-and-filters": [(TALK, True)],
    "scopes": [(TALK, True), (QUESTION, False)],
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
        for messages, add_generation_prompt, *more in CONVERSATIONS[name]:
            more = more[0] if more else {}
            case = {
                "messages": messages,
                **({"more": more} if more else {}),
                "add_generation_prompt": add_generation_prompt,
                "bos_token": bos,
                "eos_token": eos,
                "date": DATE.strftime("%d %b %Y"),
            }
            try:
                case["rendered"] = tokenizer.apply_chat_template(
                    copy.deepcopy(messages),
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **more,
                )
            except jinja2.TemplateError as error:
                # Only what raise_exception raises is of this very class and no subclass.
                if type(error) is not jinja2.TemplateError:
                    raise
                case["error"] = str(error)
            cases.append(case)
        goldens.append({"name": name, "template": template, "cases": cases})
    return goldens
