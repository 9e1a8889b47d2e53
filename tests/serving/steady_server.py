"""A server of steady speed for trials, whatever the machine does: put as `vllm` on PATH, asked as vLLM is.

SLOTS requests at a time, SECONDS each; a text names the server and says the seed. It is asked for its model by name and token.
"""

import argparse
import asyncio
import os

from aiohttp import web

SLOTS, SECONDS = int(os.environ.get("STEADY_SLOTS", "8")), float(os.environ.get("STEADY_SECONDS", "0.4"))


async def serve(arguments: argparse.Namespace) -> None:
    slots = asyncio.Semaphore(SLOTS)

    async def complete(request: web.Request) -> web.Response:
        asked = await request.json()
        if request.headers.get("Authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            return web.json_response({"error": "token"}, status=401)
        if asked["model"] != arguments.served_model_name:
            return web.json_response({"error": "model"}, status=404)
        async with slots:
            await asyncio.sleep(SECONDS)
        text = f"server {arguments.served_model_name} seed {asked['seed']} \\boxed{{1}}"
        choices = [{"index": 0, "text": text, "finish_reason": "stop", "stop_reason": None}]
        return web.json_response({"choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": 10}})

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": arguments.served_model_name, "max_model_len": 4096}]})

    async def health(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/health", health), web.get("/v1/models", models), web.post("/v1/completions", complete)])
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, arguments.host, int(arguments.port), backlog=1024).start()
    print("weights loaded", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("host", "port", "served-model-name"):
        parser.add_argument(f"--{flag}")
    asyncio.run(serve(parser.parse_known_args()[0]))


if __name__ == "__main__":
    main()
