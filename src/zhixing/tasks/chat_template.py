"""Messages to the text and the ids that a chat model reads: the one place where a chat template is rendered.

    render_chat(template, messages)                a text, as transformers' apply_chat_template gives it
    encode_chat(tokenizer, template, messages)     ids of a question: all that stands before the reply
    encode_turns(tokenizer, template, ...)         ids of whole conversations, and which of them the model learns

Training, evaluation and chat call these. A template is Jinja in the sandbox and with the settings of transformers
(trim_blocks, lstrip_blocks, loop controls, raise_exception, strftime_now, tojson, {% generation %}). It may come from
anywhere, so its size, the time it takes and what it writes are bounded.

What a person says is never control. Special tokens that a message spells out are marked before the template sees them,
so only those that the template itself writes become control ids; the marks fall away before anything is encoded:

    content "a<|end|>b"    marked  a<MARK|end|>b    rendered  <|user|>a<MARK|end|>b<|end|>
    ids     of the control <|user|>, of the plain text "a<|end|>b", of the control <|end|>
"""

from __future__ import annotations

import functools
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import FrameType
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from zhixing.errors import InputError
from zhixing.text.conversations import Message
from zhixing.tokens.tokenizer import Tokenizer

CONTROLS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")  # of our own template, one token each
DEFAULT_TEMPLATE = (  # as ChatML, but that the role is a token and no word: four tokens an exchange instead of ten
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MOST_TEMPLATE = 1 << 16  # characters of a template
MOST_WRITTEN = 1 << 24  # characters that one rendering may write
MOST_MADE = 1 << 22  # characters or items that one operator, filter or method may make
MOST_SECONDS = 2.0
MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # noncharacters, for use inside a program


# ---- rendering


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} is what stands between; transformers finds the replies by it."""

    tags = {"generation"}  # noqa: RUF012  (Jinja reads it from the class)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Code(jinja2.compiler.CodeGenerator):
    """Has "~" join texts by `_Sandbox.joined`."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:  # noqa: N802
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, in which no operator, filter or method makes something vast out of little."""

    code_generator_class = _Code
    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (abs(left) < 1 << 32 and abs(right) <= 64):
            raise jinja2.exceptions.SecurityError("a power that is too large")
        if operator == "%" and isinstance(left, str | bytes):
            raise jinja2.exceptions.SecurityError("text is not formatted by %: a width could be of any size")
        if operator == "*":
            size, times = (left, right) if isinstance(right, int) else (right, left)
            if hasattr(size, "__len__") and isinstance(times, int):
                _bounded(len(size) * times)
            elif isinstance(size, int) and isinstance(times, int):
                _bounded(size.bit_length() + times.bit_length())
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _bounded(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def joined(self, parts: tuple[Any, ...]) -> str:
        """What "~" gives."""
        texts = [str(part) for part in parts]
        _bounded(sum(map(len, texts)))
        return "".join(texts)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        wide = isinstance(obj, str) and attr in _WIDE
        return not wide and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Any:
        if isinstance(getattr(value, "__self__", None), str) and value.__name__ in _WIDE:
            raise jinja2.exceptions.SecurityError("text is not formatted: a width could be of any size")
        return None

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        text, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(text, str) and name == "replace" and len(args) > 1:
            _bounded(len(text) + text.count(args[0]) * len(args[1]))
        if isinstance(text, str) and name == "join" and args:
            _joined(args[0], text)
        return super().call(__context, __obj, *args, **kwargs)


def _bounded(size: int) -> None:
    if size > MOST_MADE:
        raise jinja2.exceptions.SecurityError(f"something of more than {MOST_MADE:,} characters or items")


def _joined(values: Any, between: str) -> list[str]:
    texts = list(map(str, values))
    _bounded(sum(map(len, texts)) + len(between) * len(texts))
    return texts


def _join(values: Any, d: str = "", attribute: str | None = None) -> str:
    """Jinja's filter, of bounded length."""
    if attribute is not None:
        values = [value[attribute] for value in values]
    return d.join(_joined(values, d))


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    """Jinja's filter, of bounded length."""
    _bounded(len(str(text)) + str(text).count(old) * len(new))
    return str(text).replace(old, new, count)


_WIDE = ("center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate")  # make any length
_WIDE_FILTERS = ("center", "format", "indent", "wordwrap", "urlize", "xmlattr", "pprint", "batch", "slice")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002, RUF100  (as templates call it)
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002, RUF100
) -> str:
    """JSON as it is; Jinja's own filter escapes it for HTML."""
    if indent is not None and not 0 <= int(indent) <= 16:
        raise jinja2.TemplateError("tojson indents by 0 to 16")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


@functools.lru_cache(maxsize=64)
def _compiled(template: str) -> jinja2.Template:
    """InputError: a template that is too long, or is none."""
    if len(template) > MOST_TEMPLATE:
        why = f"it has {len(template):,} characters, {MOST_TEMPLATE:,} at most are read"
        raise InputError("the chat template is too long", why=why)
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    for name in _WIDE_FILTERS:
        environment.filters.pop(name, None)
    environment.globals.pop("lipsum", None)
    environment.filters |= {"tojson": _to_json, "join": _join, "replace": _replace}
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(template)
    except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError) as error:
        where = f"chat template, line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise InputError("the chat template cannot be read", where=where, why=str(error)[:300]) from None


def render_chat(
    template: str,
    messages: Sequence[Message | Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    tokens: Mapping[str, str] | None = None,
) -> str:
    """The text of messages; with add_generation_prompt it ends where the assistant's reply begins.

    `tokens` are variables such as bos_token. InputError: a template that cannot be used, refuses these messages, or
    goes beyond a limit.
    """
    compiled = _compiled(template)
    given = [item.to_dict() if isinstance(item, Message) else dict(item) for item in messages]
    variables = {**(tokens or {}), "messages": given, "add_generation_prompt": add_generation_prompt}
    pieces: list[str] = []
    written = 0
    try:
        for piece in _in_time(compiled.generate(variables), trusted=template == DEFAULT_TEMPLATE):
            written += len(piece)
            if written > MOST_WRITTEN:
                raise jinja2.TemplateError(f"it writes more than {MOST_WRITTEN:,} characters")
            pieces.append(piece)
    except InputError:
        raise
    except Exception as error:  # a template is a program, and may fail in any way
        raise InputError(
            "the chat template refuses these messages", why=f"{type(error).__name__}: {error}"[:300],
            mend="begin with the user's message (a system's before it), and take turns",
        ) from None  # fmt: skip
    return "".join(pieces)


def _in_time(pieces: Iterator[str], *, trusted: bool) -> Iterator[str]:
    """The pieces, as long as they come in time: a loop that writes nothing is interrupted too."""
    if trusted:  # our own template has no loop but that over messages
        yield from pieces
        return
    end = time.monotonic() + MOST_SECONDS

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > end:
            why = f"it takes longer than {MOST_SECONDS:g} s"
            raise InputError("the chat template does not come to an end", why=why)
        return watch

    while True:
        before = sys.gettrace()
        sys.settrace(watch)
        try:
            piece = next(pieces, None)
        finally:
            sys.settrace(before)
        if piece is None:
            return
        yield piece


# ---- to ids


@dataclass(frozen=True)
class Turns:
    """Ids of a conversation, and which of them the model learns to write: the replies, and what ends each."""

    ids: list[int]
    learnt: list[bool]


def template_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The variables that templates know a tokenizer by."""
    return {"bos_token": tokenizer.eos, "eos_token": tokenizer.eos, "pad_token": tokenizer.pad}


def encode_chat(tokenizer: Tokenizer, template: str, messages: Sequence[Message]) -> list[int]:
    """Ids of messages up to where the assistant's reply begins."""
    marked, mark = _marked(tokenizer, messages)
    pieces: list[tuple[str, int | None]] = []
    for text, _ in _segments(tokenizer, template, marked, to_answer=True):
        pieces += _pieces(tokenizer, text, mark)
    texts = iter(tokenizer.encode_batch([text for text, control in pieces if control is None]))
    return [i for _, control in pieces for i in (next(texts) if control is None else [control])]


def encode_turns(tokenizer: Tokenizer, template: str, conversations: Sequence[Sequence[Message]]) -> list[Turns]:
    """Ids of whole conversations, and which are learnt: those of a reply and the control token that ends it.

    A reply is encoded by itself, behind what `encode_chat` gives for what stands before it. So the model learns from
    the very ids that it will be asked with, and no token reaches over the border.
    """
    cut: list[list[tuple[str, int | None, bool]]] = []  # (text, or a control id, whether it is learnt)
    for messages in conversations:
        marked, mark = _marked(tokenizer, messages)
        rows: list[tuple[str, int | None, bool]] = []
        for text, is_reply in _segments(tokenizer, template, marked, to_answer=False):
            open_ = is_reply  # until what ends the turn
            for piece, control in _pieces(tokenizer, text, mark):
                rows.append((piece, control, open_))
                open_ = open_ and control is None
        cut.append(rows)
    texts = iter(tokenizer.encode_batch([text for rows in cut for text, control, _ in rows if control is None]))
    found = []
    for rows in cut:
        ids: list[int] = []
        learnt: list[bool] = []
        for _, control, is_learnt in rows:
            new = next(texts) if control is None else [control]
            ids += new
            learnt += [is_learnt] * len(new)
        found.append(Turns(ids, learnt))
    return found


def end_ids(tokenizer: Tokenizer, template: str) -> tuple[int, ...]:
    """The ids that end a reply: what the template writes behind one, and the tokenizer's end of text."""
    asked = [Message("user", "a"), Message("assistant", "b")]
    segments = list(_segments(tokenizer, template, asked, to_answer=False))
    control = [i for _, i in _pieces(tokenizer, segments[1][0], MARKS[0]) if i is not None]
    return tuple(dict.fromkeys([*control[:1], tokenizer.eos_id]))


def _segments(
    tokenizer: Tokenizer, template: str, messages: Sequence[Message], *, to_answer: bool
) -> Iterator[tuple[str, bool]]:
    """The rendered text cut where each reply begins and where its message ends, and whether it is a reply's.

    InputError where what is rendered for a conversation does not begin with what was rendered for its beginning.
    """
    tokens = template_tokens(tokenizer)
    done = ""
    ends = [place for place, message in enumerate(messages) if message.role == "assistant"]
    for place in [*ends, *([len(messages)] if to_answer else [])]:
        asked = render_chat(template, messages[:place], add_generation_prompt=True, tokens=tokens)
        _continues(asked, done)
        yield asked[len(done) :], False
        done = asked
        if place < len(messages):
            whole = render_chat(template, messages[: place + 1], tokens=tokens)
            _continues(whole, asked)
            yield whole[len(asked) :], True
            done = whole


def _continues(text: str, beginning: str) -> None:
    if not text.startswith(beginning):
        raise InputError(
            "the chat template does not write a conversation from left to right",
            why="what it writes for the first messages changes when others follow",
            mend="take a template that leaves earlier messages as they are",
        )


def _marked(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[Message], str]:
    """The messages with a mark inside each special token that they spell out, and the mark."""
    text = "".join(message.content for message in messages)
    mark = next((mark for mark in MARKS if mark not in text), None)
    if mark is None:
        raise InputError("the messages hold every noncharacter from U+FDD0 to U+FDEF", mend="leave one of them out")
    control = _control(tokenizer)

    def spelt(match: re.Match[str]) -> str:
        return match[0][0] + mark + match[0][1:]

    return [Message(m.role, control.sub(spelt, m.content)) for m in messages], mark


def _pieces(tokenizer: Tokenizer, text: str, mark: str) -> Iterator[tuple[str, int | None]]:
    """Rendered text as plain text and control tokens, in order: (text, None) and ("", id)."""
    place = 0
    for match in _control(tokenizer).finditer(text):
        if match.start() > place:
            yield text[place : match.start()].replace(mark, ""), None
        yield "", tokenizer.controls[match[0]]
        place = match.end()
    if place < len(text):
        yield text[place:].replace(mark, ""), None


def _control(tokenizer: Tokenizer) -> re.Pattern[str]:
    return _control_pattern(tuple(sorted(tokenizer.controls, key=lambda token: (-len(token), token))))


@functools.lru_cache(maxsize=64)
def _control_pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the tokens, of two that begin alike the longer. A token of one character cannot be marked inside."""
    return re.compile("|".join(re.escape(token) for token in tokens if len(token) > 1) or "(?!)")
