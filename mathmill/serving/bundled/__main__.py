"""Serve a model folder: python -m mathmill.serving.bundled MODEL --help"""

import argparse
import os
import signal
import sys
from pathlib import Path

from mathmill.options import ended_by
from mathmill.parent import hide_environment
from mathmill.serving.bundled import TOKEN_VARIABLE


def read_arguments() -> argparse.Namespace:
    """The command line. The API token comes by environment only: a command line is for every user of a node to read."""
    parser = argparse.ArgumentParser(
        prog="python -m mathmill.serving.bundled",
        description=f"Serve a Llama-shaped Hugging Face folder over OpenAI's completions API, in numpy. "
        f"With {TOKEN_VARIABLE} in the environment, requests must send it as their bearer token.",
    )
    parser.add_argument("model", type=Path, help="folder with config.json, model.safetensors and tokenizer.json")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0: a free one, printed (default)")
    parser.add_argument("--served_name", help="name that requests must give (default: the folder's name)")
    parser.add_argument("--context_length", type=int, help="tokens of prompt and text together (default: the model's)")
    parser.add_argument("--stand_by", action="store_true", help="serve nothing: a further node of a server on several")
    parser.add_argument("--max_running", type=int, default=64, help="samples decoded at once (default %(default)s)")
    return parser.parse_args()


def main() -> int:
    """Load and serve; the exit code."""
    hide_environment()
    arguments = read_arguments()
    if arguments.stand_by:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        while True:
            signal.pause()
    # One BLAS thread is fastest for products this small, and leaves the other cores to the job's other steps. Read
    # by OpenBLAS when numpy is first imported, hence the imports below.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    import asyncio

    from mathmill.serving.bundled.llama import Llama
    from mathmill.serving.bundled.server import Server, load_tokenizer

    tokenizer = load_tokenizer(arguments.model)
    model = Llama(arguments.model, arguments.context_length)
    name = arguments.served_name or arguments.model.resolve().name
    server = Server(model, tokenizer, name, os.environ.get(TOKEN_VARIABLE) or None, max(arguments.max_running, 1))
    return asyncio.run(server.serve(arguments.host, arguments.port))


if __name__ == "__main__":
    ended_by(main)
