"""The real `openai` package against `sharp serve`: chat, streams, completions with log probabilities, errors, and many at once."""
# Quick: `cargo xtask test` runs it.

import asyncio
import json
import math

import _server
from support import scratch

scratch.inside("openai==3.57.0")

import openai  # noqa: E402


def chat(client):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    ask = dict(model="small", messages=messages, max_tokens=24, temperature=0.8, seed=11)
    whole = client.chat.completions.create(**ask)
    choice = whole.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == choice.message.content, (text, choice.message.content)
    assert len(chunks) > 5
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    # The client's own helper puts a stream together again.
    with client.chat.completions.stream(**ask) as stream:
        final = stream.until_done().current_completion_snapshot
    assert final.choices[0].message.content == text
    scored = client.chat.completions.create(**{**ask, "temperature": 0}, logprobs=True, top_logprobs=4)
    for token in scored.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 4 and token.logprob == max(t.logprob for t in token.top_logprobs)
    several = client.chat.completions.create(**ask, n=3)
    assert [c.index for c in several.choices] == [0, 1, 2] and several.choices[0].message.content == text


def completions(client):
    prompt = "The rain in Spain"
    answer = client.completions.create(
        model="small", prompt=prompt, max_tokens=5, temperature=0, echo=True, logprobs=3
    )
    choice = answer.choices[0]
    assert choice.text.startswith(prompt)
    logprobs = choice.logprobs
    # One token a byte: offsets and tokens can be told from the text.
    assert logprobs.tokens[: len(prompt)] == list(prompt)
    assert logprobs.text_offset[: len(prompt)] == list(range(len(prompt)))
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    for top in logprobs.top_logprobs[1:]:
        assert len(top) == 3 and sum(math.exp(v) for v in top.values()) <= 1 + 1e-6
    # What was generated greedily is the likeliest at its place.
    for value, top in list(zip(logprobs.token_logprobs, logprobs.top_logprobs))[len(prompt) :]:
        assert value == max(top.values())
    stream = client.completions.create(model="small", prompt=prompt, max_tokens=30, seed=2, stream=True)
    streamed = "".join(part.choices[0].text for part in stream)
    whole = client.completions.create(model="small", prompt=prompt, max_tokens=30, seed=2)
    assert streamed == whole.choices[0].text
    extra = {"top_k": 1}
    first = client.completions.create(model="small", prompt=prompt, max_tokens=9, extra_body=extra)
    again = client.completions.create(model="small", prompt=prompt, max_tokens=9, temperature=0)
    assert first.choices[0].text == again.choices[0].text


def errors(client, url):
    def fails(kind, call, **wanted):
        try:
            call()
        except kind as error:
            for name, value in wanted.items():
                assert getattr(error, name) == value, (name, getattr(error, name), value)
            assert error.body["message"]
            return
        raise AssertionError(f"no {kind.__name__}")

    complete = client.completions.create
    fails(openai.NotFoundError, lambda: complete(model="other", prompt="x"), code="model_not_found")
    fails(openai.BadRequestError, lambda: complete(model="small", prompt="x", temperature=-1), param="temperature")
    fails(
        openai.BadRequestError,
        lambda: complete(model="small", prompt="x" * 5000, max_tokens=1),
        code="context_length_exceeded",
    )
    fails(
        openai.BadRequestError,
        lambda: client.chat.completions.create(model="small", messages=[], max_tokens=1),
        param="messages",
    )
    stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
    fails(openai.AuthenticationError, lambda: stranger.models.list(), code="invalid_api_key")


async def many(url):
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="key", timeout=120)

    async def one(i):
        ask = dict(model="small", prompt=f"Number {i % 10}", max_tokens=12, temperature=0)
        if i % 2:
            return i % 10, (await client.completions.create(**ask)).choices[0].text
        stream = await client.completions.create(**ask, stream=True)
        return i % 10, "".join([part.choices[0].text async for part in stream])

    answers = await asyncio.gather(*(one(i) for i in range(200)))
    assert len(answers) == 200 and len(set(answers)) == 10, "the same request had different answers"


def main():
    _, packed = _server.small_model(_server.scratch())
    with _server.serve(packed, environment={"SHARP_API_KEY": "key"}) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0)
        assert [model.id for model in client.models.list()] == ["small"]
        assert client.models.retrieve("small").id == "small"
        chat(client)
        completions(client)
        errors(client, url)
        asyncio.run(many(url))
        assert json.loads(_server.get(f"{url}/health"))["status"] == "ok"
    print(f"openai {openai.__version__}: chat, streams, log probabilities, errors, 200 requests at once")


main()
