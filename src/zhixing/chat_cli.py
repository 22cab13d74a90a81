"""`zhixing chat`: talk with a model in the terminal, or through a pipe, a line in and a line out.

What begins with / is a command: /system TEXT, /reset, /save FILE, /help, /quit. A line that should begin with / for the
model begins with //. Ctrl-C stops the answer; at the prompt it drops the line. Ctrl-D leaves.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zhixing.errors import InputError
from zhixing.progress import say

if TYPE_CHECKING:
    from zhixing.dialogue import Chat

HELP = """\
/system TEXT   what the model is told before everything else; without a text: nothing
/reset         forget the conversation (what /system says stays)
/save FILE     write the conversation as a line of jsonl
/help          this
/quit          leave (Ctrl-D too)
//...          a line that begins with /
Ctrl-C stops an answer."""


def chat_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The folder of a chat run.")],
    system: Annotated[str, typer.Option(help="What the model is told before everything else.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens an answer.")] = 128,
    temperature: Annotated[float | None, typer.Option(help="0: the likeliest token; else as the run says.")] = None,
    top_k: Annotated[int, typer.Option(help="Only the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float | None, typer.Option(help="Only the likeliest tokens of this share.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: less of what was said.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers.")] = None,
) -> None:
    """Talk with a model. From a pipe each line is answered by a line; /help lists the commands."""
    from zhixing.dialogue import load_dialogue

    chat = load_dialogue(run)
    chat.system = system
    how = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "repetition_penalty": repetition_penalty, "seed": seed,
    }  # fmt: skip
    chat.settings(**how)  # type: ignore[arg-type]  # what cannot be used is refused before anything is said
    if sys.stdin.isatty() and sys.stdout.isatty():
        _talk(chat, how)
    else:
        _answer_lines(chat, how)


def _talk(chat: Chat, how: dict[str, Any]) -> None:
    """A person at a terminal."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() then has a history and moves in its line
    say("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            say("\n(Ctrl-D or /quit leaves)")
            continue
        if not line.strip():
            continue
        try:
            if line.startswith("/") and not line.startswith("//"):
                if not obey(chat, line):
                    return
                continue
            _show(chat, line.removeprefix("/") if line.startswith("//") else line, how)
        except InputError as error:
            say(error.message())


def _show(chat: Chat, line: str, how: dict[str, Any]) -> None:
    """Print the answer as it comes; Ctrl-C ends it, and what was said until then counts as the answer."""
    pieces: Any = None
    try:
        pieces = chat.stream(line, **how)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
    except KeyboardInterrupt:
        print(" ...")
    finally:
        if pieces is not None:
            pieces.close()


def _answer_lines(chat: Chat, how: dict[str, Any]) -> None:
    """Lines from a pipe, one conversation; a line that cannot be answered ends it with an InputError."""
    for number, line in enumerate(_lines(), 1):
        if not line.strip():
            continue
        if line.startswith("/") and not line.startswith("//"):
            if not obey(chat, line):
                return
            continue
        try:
            reply = chat(line.removeprefix("/") if line.startswith("//") else line, **how)
        except InputError as error:
            where = f"stdin, line {number}"
            raise InputError(error.what, where=where, why=error.why, mend=error.mend) from None
        typer.echo(" ".join(reply.text.split()))
        sys.stdout.flush()


def _lines() -> Iterator[str]:
    for number, raw in enumerate(iter(sys.stdin.buffer.readline, b""), 1):
        try:
            yield raw.decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
        except UnicodeDecodeError as error:
            where = f"stdin, line {number}, byte {error.start}"
            raise InputError("the text is not UTF-8", where=where, mend="convert it") from None


def obey(chat: Chat, line: str) -> bool:
    """Do what a command says; False if it is to leave. InputError: no such command, a file that cannot be written."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/quit":
        return False
    if name == "/help":
        say(HELP)
    elif name == "/system":
        chat.system = rest
        say(f"system: {rest}" if rest else "no system message")
    elif name == "/reset":
        chat.reset()
        say("the conversation is forgotten")
    elif name == "/save":
        if not rest:
            raise InputError("/save needs the name of a file", mend="/save talk.jsonl")
        if not any(message.role == "assistant" for message in chat.messages):
            raise InputError("there is nothing to save yet")
        try:
            path = Path(rest).expanduser()
            if path.exists():
                raise InputError(f"{rest} is there already", mend="take another name; nothing was written")
            chat.save(path)
        except (OSError, RuntimeError) as error:  # ~somebody unknown is a RuntimeError
            raise InputError(f"{rest} cannot be written", why=getattr(error, "strerror", None) or str(error)) from None
        say(f"saved {len(chat.messages)} messages in {rest}")
    else:
        raise InputError(f"there is no command {name}", mend="/help lists them")
    return True
