"""The client against a real HTTP server that fails in every way that servers fail: a failure never becomes a text."""

import asyncio
import contextlib
import json

import pytest
from aiohttp import web

from mathmill.errors import UserError
from mathmill.generation.client import (
    CompletionClient,
    InFlight,
    RequestRefusedError,
    ServerLostError,
    seeds_are_honoured,
    served_model,
)

FIELDS = frozenset({"model", "prompt", "max_tokens", "temperature", "top_p", "stop", "seed"})
GOOD = {
    "choices": [{"text": "hello", "finish_reason": "stop", "stop_reason": "</llm-code>"}],
    "usage": {"prompt_tokens": 2, "completion_tokens": 3},
}


@contextlib.asynccontextmanager
async def served(answers, **options):
    """A server that gives these answers one after the other (the last for ever), and a client of it."""
    asked = []

    async def complete(request):
        asked.append(json.loads(await request.read()))
        answer = answers[min(len(asked), len(answers)) - 1]
        answer = answer(asked[-1]) if callable(answer) else answer
        if answer == "truncated":
            response = web.StreamResponse(headers={"Content-Length": "500"})
            await response.prepare(request)
            await response.write(b'{"choices": [')
            request.transport.close()
            return response
        return answer if isinstance(answer, web.Response) else web.json_response(answer)

    app = web.Application()
    app.router.add_post("/v1/completions", complete)

    async def models(request):
        return web.json_response({"data": [{"id": "toy"}]})

    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    try:
        async with CompletionClient(url, "toy", fields=FIELDS, **{"patience_s": 1.0, **options}) as client:
            client.asked = asked
            yield client
    finally:
        await runner.cleanup()


def ask(client, **options):
    return client.complete(
        "say", **{"max_tokens": 8, "temperature": 1.0, "top_p": 0.9, "stop": ["."], "seed": 7, **options}
    )


def with_choice(**changes):
    return {**GOOD, "choices": [{**GOOD["choices"][0], **changes}]}


FAULTS = {
    "an empty body with status 200": web.Response(body=b""),
    "an error text with status 200": {"object": "error", "message": "CUDA out of memory"},
    "a page of a proxy": web.Response(text="<html>busy</html>"),
    "a body cut short": "truncated",
    "too many requests": web.Response(status=429),
    "a server error": web.Response(status=500, text="boom"),
    "no choices": {**GOOD, "choices": []},
    "no text": {**GOOD, "choices": [{"finish_reason": "stop"}]},
    "a null text": with_choice(text=None),
    "an unknown finish reason": with_choice(finish_reason="error"),
    "no finish reason": with_choice(finish_reason=None),
    "no tokens": {**GOOD, "usage": {"prompt_tokens": 2, "completion_tokens": 0}},
    "no usage": {"choices": GOOD["choices"]},
    "not text": web.Response(body=b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_tried_again_and_never_a_text(fault):
    async def scene():
        async with served([FAULTS[fault], GOOD]) as client:
            completion = await ask(client)
            assert (completion.text, completion.num_tokens, completion.stopped_by) == ("hello", 3, "</llm-code>")
            assert len(client.asked) == 2
            assert sum(client.failures.values()) == 1

    asyncio.run(scene())


def test_a_request_sends_only_fields_that_the_server_accepts():
    async def scene():
        async with served([GOOD]) as client:
            client._fields = FIELDS - {"seed"}
            await ask(client)
            assert set(client.asked[0]) == FIELDS - {"seed"}

    asyncio.run(scene())


@pytest.mark.slow
def test_a_request_that_alone_fails_is_refused_while_others_are_answered():
    def answer(asked):
        return web.Response(status=500) if asked["prompt"] == "bad" else GOOD

    async def scene():
        async with served([answer], attempts=4) as client:

            async def others():
                while True:
                    await ask(client)
                    await asyncio.sleep(0.01)

            busy = asyncio.create_task(others())
            with pytest.raises(RequestRefusedError, match="status 500, 4 times while others were answered"):
                await client.complete("bad", max_tokens=8, temperature=0, top_p=1, stop=[], seed=0)
            busy.cancel()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("status", "text", "too_long"),
    [(400, "This model's maximum context length is 4096 tokens", True), (422, "unknown field 'top_q'", False)],
)
def test_a_refusal_is_not_tried_again(status, text, too_long):
    async def scene():
        async with served([web.Response(status=status, text=text)]) as client:
            with pytest.raises(RequestRefusedError, match=text[:20]) as refused:
                await ask(client)
            assert refused.value.too_long is too_long
            assert len(client.asked) == 1

    asyncio.run(scene())


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_strangers_server_is_left_at_once(status):
    async def scene():
        async with served([web.Response(status=status)]) as client:
            with pytest.raises(ServerLostError, match="another job's server"):
                await ask(client)

    asyncio.run(scene())


def test_a_dead_server_is_lost_after_our_patience():
    async def scene():
        async with CompletionClient("http://127.0.0.1:9", "toy", fields=FIELDS, patience_s=0.5) as client:
            with pytest.raises(ServerLostError, match="has answered nobody for"):
                await ask(client)

    asyncio.run(scene())


@pytest.mark.slow
def test_a_rate_limit_never_costs_a_request_while_others_are_answered():
    count = iter(range(10**6))

    def answer(asked):
        return GOOD if next(count) % 2 else web.Response(status=429)

    async def scene():
        async with served([answer], attempts=2, patience_s=60) as client:
            texts = await asyncio.gather(*(ask(client) for _ in range(20)))
            assert {one.text for one in texts} == {"hello"}

    asyncio.run(scene())


def test_one_failure_after_a_quiet_spell_is_tried_again():
    async def scene():
        async with served([GOOD, web.Response(status=503), GOOD], patience_s=0.2) as client:
            await ask(client)
            await asyncio.sleep(0.4)
            assert (await ask(client)).text == "hello"

    asyncio.run(scene())


def test_a_server_that_refuses_a_plain_request_is_told_in_its_own_words():
    async def scene():
        async with served([web.Response(status=400, text="unsupported parameter: seed")]) as client:
            with pytest.raises(UserError, match="refuses a plain request: status 400: unsupported parameter: seed"):
                await seeds_are_honoured(client, needed=False)

    asyncio.run(scene())


@pytest.mark.slow
def test_a_server_that_is_down_for_a_while_costs_no_request():
    async def scene():
        async with served([*[lambda asked: web.Response(status=503)] * 5, GOOD], attempts=2, patience_s=60) as client:
            assert (await ask(client)).text == "hello"

    asyncio.run(scene())


@pytest.mark.slow
def test_the_last_request_that_alone_fails_is_refused_and_not_the_server_given_up():
    def answer(asked):
        return GOOD if asked["prompt"] == "The" else web.Response(status=500)

    async def scene():
        async with served([answer], attempts=3, patience_s=60) as client:
            with pytest.raises(RequestRefusedError, match="3 times while others were answered"):
                await ask(client)

    asyncio.run(scene())


def test_places_in_flight_are_never_more_than_the_limit_and_none_is_lost():
    async def scene():
        limit, most = InFlight(4, first=4), 0

        async def use(n):
            nonlocal most
            async with limit.place():
                most = max(most, limit.now)
                await asyncio.sleep(0.001)

        tasks = [asyncio.create_task(use(n)) for n in range(100)]
        await asyncio.sleep(0.003)
        for task in tasks[::3]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert most == 4
        assert limit.now == 0

    asyncio.run(scene())


def test_the_limit_doubles_until_the_first_congestion():
    limit = InFlight(256, first=16)
    for _ in range(100):
        limit.went_well()
    assert limit.limit == 116
    limit.was_congested()
    assert limit.limit == pytest.approx(81.2)
    limit.went_well()
    assert limit.limit < 82
    limit.was_congested()
    assert limit.limit > 81


def by_seed(asked):
    return with_choice(text=f"text {asked['seed']}")


@pytest.mark.parametrize(("server", "honoured"), [(by_seed, True), (None, False)])
def test_the_probe_tells_whether_seeds_are_honoured(server, honoured):
    count = iter(range(1000))

    async def scene():
        async with served([server or (lambda asked: with_choice(text=f"random {next(count)}"))]) as client:
            assert await seeds_are_honoured(client) is honoured

    asyncio.run(scene())


def test_a_server_that_gives_copies_is_refused():
    async def scene():
        async with served([GOOD]) as client:
            with pytest.raises(UserError, match="same text for five different seeds"):
                await seeds_are_honoured(client)

    asyncio.run(scene())


def test_the_served_model_is_asked_for_and_an_unreachable_server_is_named():
    async def scene():
        async with served([GOOD]) as client:
            assert await served_model(client.url + "/v1/", None) == "toy"
        with pytest.raises(UserError, match=r"no server answers at http://127.0.0.1:9 .*--server_address"):
            await served_model("http://127.0.0.1:9", None)

    asyncio.run(scene())
