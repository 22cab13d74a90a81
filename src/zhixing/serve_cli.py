"""`zhixing serve`: models behind HTTP, for any OpenAI client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zhixing.progress import say

if TYPE_CHECKING:
    from zhixing.serving.library import Library
    from zhixing.serving.server import Running


def serve_command(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN...", help="Folders of runs; NAME=RUN gives one another name.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; beyond this machine a key is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="API keys, one a line, of 16 or more characters.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Clients may load and unload the runs in it by name.")
    ] = None,
    trainings: Annotated[
        Path | None, typer.Option("--runs", metavar="FOLDER", help="Clients may see how the trainings in it go.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A name by which clients reach this machine.")
    ] = None,
    most_rows: Annotated[int, typer.Option(min=1, max=1024, help="Texts written at once, of each model.")] = 32,
    most_tokens: Annotated[
        int, typer.Option(min=64, max=1 << 24, help="Tokens that these hold together, of each model.")
    ] = 16 * 1024,
    most_waiting: Annotated[int, typer.Option(min=1, max=65536, help="Requests in the queue, of each model.")] = 64,
) -> None:
    """Serve models to any OpenAI client, until Ctrl-C. What happens is logged as JSON, a line each, without prompts."""
    from zhixing.decoding.engine import EngineLimits
    from zhixing.serving.limits import ServerLimits
    from zhixing.serving.server import serve

    engine = EngineLimits(most_rows=most_rows, most_tokens=most_tokens, most_waiting=most_waiting)

    def ready(running: Running) -> None:
        say(told(running.address, running.library, key=api_key_file is not None))

    serve(
        runs or [],
        host=host,
        port=port,
        api_key_file=api_key_file,
        root=root,
        trainings=trainings,
        allow_hosts=allow_host or (),
        limits=ServerLimits(engine=engine),
        ready=ready,
    )


def told(address: str, library: Library, *, key: bool) -> str:
    """Where it listens, what it serves, and what to type next."""
    lines = [f"listening at {address}"]
    lines += [f"  {hosted.id}  {hosted.task}" for hosted in library.models]
    name = library.models[0].id if library.models else "MODEL"
    task = library.models[0].task if library.models else "generation"
    asked: dict[str, object] = {"model": name}
    if task == "embedding":
        route, call, shown = (
            "/v1/embeddings",
            f'embeddings.create(model="{name}", input="你好")',
            "data[0].embedding[:4]",
        )
        asked["input"] = "你好"
    elif task == "generation":
        text = "人工智能的发展趋势："
        route, call = "/v1/completions", f'completions.create(model="{name}", prompt="{text}", max_tokens=100)'
        shown = "choices[0].text"
        asked |= {"prompt": text, "max_tokens": 100}
    else:
        text = {"dialogue": "你好", "translation": "Open the file."}.get(task, "Not a dull minute in it.")
        messages = json.dumps([{"role": "user", "content": text}], ensure_ascii=False)
        route, call = "/v1/chat/completions", f'chat.completions.create(model="{name}", messages={messages})'
        shown = "choices[0].message.content"
        asked["messages"] = json.loads(messages)
    bearer = " -H 'Authorization: Bearer KEY'" if key else ""
    body = json.dumps(asked, ensure_ascii=False)
    return "\n".join(
        [
            *lines,
            "",
            f"curl {address}{route}{bearer} -H 'Content-Type: application/json' -d '{body}'",
            "",
            "from openai import OpenAI",
            f'client = OpenAI(base_url="{address}/v1", api_key="{"KEY" if key else "none"}")',
            f"print(client.{call}.{shown})",
        ]
    )
