"""Small runs of every kind, and a real server of them in a thread, for the tests of serving."""

from __future__ import annotations

import io
import select
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from zhixing.decoding.engine import EngineLimits
from zhixing.interchange.chat_directory import StoredChat, write_chat
from zhixing.interchange.classifier_directory import StoredClassifier, write_classifier
from zhixing.interchange.model_directory import write_model_directory
from zhixing.interchange.seq2seq_directory import StoredSeq2Seq, write_seq2seq
from zhixing.models.bert import Bert, BertSettings
from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.marian import Marian, MarianSettings
from zhixing.models.textcnn import TextCNNClassifier, TextCNNSettings
from zhixing.serving.limits import ServerLimits
from zhixing.serving.log import Log
from zhixing.serving.server import Running, serve
from zhixing.tasks.chat_template import CONTROLS, DEFAULT_TEMPLATE, end_ids
from zhixing.tokens.tokenizer import train_tokenizer

CHINESE = "打开这个文件。你好。床前明月光，疑是地上霜。春眠不觉晓，处处闻啼鸟。" * 20
KEY = "a-key-of-the-tests-0123456789"


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def write_runs(folder: Path, text: str) -> Path:
    """lm, chat, en-zh, short, mood, bert: random weights. What they say means nothing, and is always the same.

    Those of lm are large, so that what it writes changes with every token of its prompt.
    """
    torch.manual_seed(0)
    pieces = train_tokenizer([text[:20_000], CHINESE], "bpe", 400)
    pieces.add_controls(CONTROLS)
    size = pieces.vocab_size
    plain = train_tokenizer([text[:20_000], CHINESE], "bpe", 400)
    model = GPT(
        GPTSettings(plain.vocab_size, d_model=32, n_layers=2, n_heads=2, n_kv_heads=2, d_ff=64, max_len=64), seeded()
    )
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(8)
    write_model_directory(folder / "lm", model.eval(), plain)
    gpt = GPTSettings(size, d_model=32, n_layers=2, n_heads=2, n_kv_heads=2, d_ff=64, max_len=128)
    stored = StoredChat(GPT(gpt, seeded()).eval(), pieces, DEFAULT_TEMPLATE)
    (folder / "chat").mkdir(parents=True)
    write_chat(folder / "chat", stored, end_ids(pieces, DEFAULT_TEMPLATE))
    both = train_tokenizer([text[:20_000], CHINESE], "bpe", 400)
    both.end_texts()
    marian = MarianSettings(both.vocab_size, d_model=32, n_encoder_layers=1, n_layers=1, n_heads=2, d_ff=64, max_len=48,
                            dropout=0.0)  # fmt: skip
    writer = Marian(marian, seeded()).eval()
    write_seq2seq(folder / "en-zh", StoredSeq2Seq(writer, both, "translation", "en", "zh"), num_beams=2)
    write_seq2seq(folder / "short", StoredSeq2Seq(writer, both, "summarization"), num_beams=2)
    words = train_tokenizer([text[:20_000]], "bpe", 300)
    cnn = TextCNNClassifier(TextCNNSettings(words.vocab_size, 2, d_model=16, max_len=64, n_filters=4), seeded()).eval()
    labels = ("negative", "positive")
    write_classifier(folder / "mood", StoredClassifier(cnn, words, labels, "single_label_classification", 1.0))
    wordpiece = train_tokenizer([text[:20_000]], "wordpiece", 300)
    bert = Bert(BertSettings(wordpiece.vocab_size, d_model=32, n_layers=1, n_heads=2, d_ff=64, max_len=64), seeded())
    write_model_directory(folder / "bert", bert.eval(), wordpiece)
    return folder


class Served:
    """A server in a thread: `with Served(["lm=runs/mine"]) as server`."""

    def __init__(
        self, runs: list[str], *, root: Path | None = None, trainings: Path | None = None, key_file: Path | None = None,
        engine: EngineLimits | None = None, page: Path | None = None, **limits: Any,
    ) -> None:  # fmt: skip
        self.log = io.StringIO()
        self._running: Running | None = None
        self._failed: BaseException | None = None
        begun = threading.Event()

        def started(running: Running) -> None:
            self._running = running
            begun.set()

        def run() -> None:
            try:
                serve(
                    runs, port=0, root=root, trainings=trainings, api_key_file=key_file, log=Log(self.log), ready=started,
                    limits=ServerLimits(engine=engine or EngineLimits(), **limits),
                    **({} if page is None else {"page": page}),
                )  # fmt: skip
            except BaseException as error:
                self._failed = error
                begun.set()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        assert begun.wait(60)
        if self._failed is not None:
            raise self._failed

    @property
    def running(self) -> Running:
        assert self._running is not None
        return self._running

    @property
    def url(self) -> str:
        return self.running.address

    def rows(self, model: str) -> int:
        """Slots that are taken."""
        return self.running.library.get(model).engine.metrics().rows

    def raw(self, data: bytes, *, ends: bool = False, seconds: float = 10.0) -> bytes:
        """What the server says to some bytes, until it closes the connection.

        `ends`: we close our side of it after a first answer, or when none comes: it waits for no rest and no more.
        """
        host, port = self.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=seconds) as connection:
            answer = b""
            try:
                connection.sendall(data)
                if ends:
                    if select.select([connection], [], [], 0.05)[0]:
                        answer = connection.recv(65536)
                    connection.shutdown(socket.SHUT_WR)
                while chunk := connection.recv(65536):
                    answer += chunk
            except OSError as error:  # it has closed the connection first
                if isinstance(error, TimeoutError):
                    raise
            return answer

    def stop(self) -> None:
        self.running.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
