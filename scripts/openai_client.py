#!/usr/bin/env python3
"""What OpenAI's own client gets from `chaski serve` with the demo model.

    python3 scripts/openai_client.py http://127.0.0.1:8080/v1

It needs the package in tests/openai.txt. The last line says that all is right.
"""

import sys

import openai

QUESTION = [{"role": "user", "content": "What is 27 + 58?"}]
ANSWER = "27 + 58 = 85."
TOOL = {
    "type": "function",
    "function": {"name": "level", "parameters": {"type": "object", "properties": {}}},
}


def chat(client, model):
    whole = client.chat.completions.create(model=model, messages=QUESTION, temperature=0)
    assert whole.choices[0].message.content == ANSWER, whole
    assert whole.choices[0].finish_reason == "stop", whole
    usage = whole.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
    scored = client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, logprobs=True, top_logprobs=2)
    tokens = scored.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == ANSWER, tokens
    assert all(len(token.top_logprobs) == 2 for token in tokens), tokens
    stream = client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, stream=True,
        stream_options={"include_usage": True})
    text, usages = "", []
    for chunk in stream:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usages += [chunk.usage] if chunk.usage else []
    assert text == ANSWER, text
    assert [one.completion_tokens for one in usages] == [usage.completion_tokens], usages
    # The demo's template does not tell it of tools.
    told = client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, tools=[TOOL])
    assert told.choices[0].message.content == ANSWER, told
    assert not told.choices[0].message.tool_calls, told
    drawn = [
        client.chat.completions.create(
            model=model, messages=QUESTION, temperature=2, seed=7, max_completion_tokens=20,
            extra_body={"top_k": 9, "min_p": 0.01})
        for _ in range(2)
    ]
    assert drawn[0].choices[0].message.content == drawn[1].choices[0].message.content, drawn


def completions(client, model):
    two = client.completions.create(
        model=model, prompt=["27 + 58 = ", "1 + 1 = "], max_tokens=2, temperature=0, echo=True,
        logprobs=1)
    assert two.choices[0].text == "27 + 58 = 85", two
    assert two.choices[0].logprobs.token_logprobs[0] is None, two


def responses(client, model):
    whole = client.responses.create(
        model=model, input="What is 27 + 58?", temperature=0, store=False)
    assert whole.output_text == ANSWER, whole
    with client.responses.stream(model=model, input=QUESTION, temperature=0) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        last = stream.get_final_response()
    assert "".join(deltas) == ANSWER, deltas
    assert last.output_text == ANSWER and last.status == "completed", last


def refusals(client, model):
    for wanted, ask in [
        (openai.NotFoundError, dict(model="none", messages=QUESTION)),
        (openai.BadRequestError, dict(model=model, messages=[])),
        (openai.BadRequestError, dict(model=model, messages=QUESTION, temperature=-1)),
        (openai.BadRequestError, dict(
            model=model, messages=QUESTION, tools=[TOOL], tool_choice="required")),
    ]:
        try:
            client.chat.completions.create(**ask)
        except wanted as error:
            assert error.body["message"], error
        else:
            raise AssertionError(f"{ask} was answered")


def main():
    client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=120)
    [model] = [model.id for model in client.models.list()]
    for part in [chat, completions, responses, refusals]:
        part(client, model)
        print(part.__name__)
    print("all right")


if __name__ == "__main__":
    main()
