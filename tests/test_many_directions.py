"""One translator for several directions: told by a tag what to write, which is a token and never a text.

Pairs of known words in three languages teach a tiny model in seconds; a page in two languages is in one part of both.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import cast

import pytest
import torch

import zhixing
from pages import words_of
from phrases import WORDS, lay, phrases
from zhixing import seq2seq
from zhixing.cli import main
from zhixing.errors import InputError
from zhixing.evaluation.seq2seq_report import render_seq2seq_report
from zhixing.files import verify_manifest
from zhixing.interchange.seq2seq_directory import StoredSeq2Seq, write_seq2seq
from zhixing.models.marian import DecoderBlock
from zhixing.recipe import PairSet, load_recipe, pair_set, pair_sets, parse_recipe
from zhixing.seq2seq import Translator, encode_pairs
from zhixing.tasks.generation import source_ids
from zhixing.tasks.rewriting import fit_sources
from zhixing.text.pairs import Pair, PairCounts, Pairs, read_directions, split_pairs
from zhixing.tokens.tokenizer import Tokenizer, train_tokenizer

GERMAN = {
    "open": "öffne", "close": "schließe", "save": "sichere", "print": "drucke", "the": "jenes", "a": "ein", "red": "rotes",
    "blue": "blaues", "large": "großes", "small": "kleines", "file": "Papier", "table": "Brett", "page": "Blatt",
    "cell": "Feld",
}  # fmt: skip
DIRECTIONS = ["en>zh", "zh>en", "en>de"]
SMALL = (
    "data.heldout_fraction=0.12", "task.validation_fraction=0.05", "data.max_ratio=0", "tokenizer.vocab_size=420", "model.d_model=32",
    "model.n_layers=1", "model.n_heads=2", "model.max_len=48", "train.max_tokens_per_batch=900", "train.max_steps=250",
    "train.eval_steps=125", "train.learning_rate=0.01", "train.warmup_steps=10", "train.bf16=false", "train.threads=2",
    "train.label_smoothing_factor=0", "eval.num_beams=2", "eval.length_penalty=1.0",
)  # fmt: skip


def german(english: str) -> str:
    return " ".join(GERMAN[word] for word in english.split())


def lay_sets(folder: Path, *, grouped: bool = True) -> list[str]:
    """Two sets whose English is three quarters the same, as values of data.directions."""
    rows = phrases(400)
    for number, row in enumerate(rows):
        row["group"] = f"page {number // 2}" if grouped else ""
    lay(folder / "chinese.jsonl", rows[:320])
    lay(folder / "german.jsonl", [{**row, "target": german(row["source"])} for row in rows[80:]])
    return [f"en<>zh {folder / 'chinese.jsonl'}", f"en>de {folder / 'german.jsonl'}"]


def read(directions: list[str]) -> Pairs:
    return read_directions([found for text in directions if (found := pair_set(text))])


# ---- data ------------------------------------------------------------------------------------------------------------


def test_what_a_direction_is_called() -> None:
    assert pair_set("en>de a file.tsv") == PairSet("a file.tsv", "en", "de")
    assert pair_set(" en<>zh-CN  a.en,b.zh ") == PairSet("a.en,b.zh", "en", "zh-CN", both_ways=True)
    for text in ("a.tsv", "en>en a.tsv", "en->de a.tsv", "en>de", "<>zh a.tsv", "english>de a.tsv", "en>d a"):
        assert pair_set(text) is None, text
    recipe = load_recipe("libreoffice-many")
    assert parse_recipe(recipe.to_toml(), "again") == recipe
    assert [(s.source_language, s.target_language, s.both_ways) for s in pair_sets(recipe)] == [
        ("en", "zh", True), ("en", "de", False), ("en", "fr", False)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["data.source=a.tsv"], "data.source cannot be used"),
        (["data.target_language=zh"], "data.target_language cannot be used"),
        (["task.test=a.tsv"], "task.test cannot be used"),
        (["task.kind=summarization"], "only a translator has directions"),
        (['data.directions=["libreoffice-help-en-zh"]'], "'libreoffice-help-en-zh' does not say from which language"),
        (["data.directions=[1]"], "a list of strings"),
    ],
)
def test_a_recipe_that_cannot_be(settings: list[str], says: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("libreoffice-many", settings)
    assert says in caught.value.message()


def test_pairs_of_several_sets(tmp_path: Path) -> None:
    directions = lay_sets(tmp_path)
    pairs = read(directions)
    assert {name: len(numbers) for name, numbers in pairs.directions().items()} == dict.fromkeys(DIRECTIONS, 320)
    there, back = pairs[0], pairs[320]
    assert (there.source, there.target, there.group) == (back.target, back.source, back.group)
    assert (there.direction, back.direction, pairs[640].direction) == ("en>zh", "zh>en", "en>de")
    again = read([*directions, directions[0].replace("en<>zh", "en>zh")])
    assert again.pairs == pairs.pairs and again.counts.repeated == 320
    turned = read([directions[1].replace("en>de", "en<>de"), directions[0]])
    assert turned.fingerprint() != pairs.fingerprint() and list(turned.directions()) == [
        "en>de",
        "de>en",
        *DIRECTIONS[:2],
    ]
    with pytest.raises(InputError, match="wrong way round"):
        read([directions[0].replace("en<>zh", "zh>en")])


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_direction_learns_what_another_is_tested_on(tmp_path: Path, grouped: bool, seed: int) -> None:
    pairs = read(lay_sets(tmp_path, grouped=grouped))
    train, held, report = split_pairs(pairs, 0.2, seed)
    texts: list[dict[str, set[str]]] = []
    for part in (train, held):
        found = defaultdict(set)
        for pair in part:
            found[pair.source_language].add(pair.source)
            found[pair.target_language].add(pair.target)
        texts.append(found)
    for language in ("en", "zh", "de"):
        assert not texts[0][language] & texts[1][language]
    assert not {pair.group for pair in train} & {pair.group for pair in held} - {""}
    assert list(held.directions()) == list(train.directions()) == DIRECTIONS
    assert min(map(len, held.directions().values())) > 15, "a unit is torn: most held-out pairs were removed as repeats"
    assert report.repeats == 0, "what is the same hangs together, so nothing of it was torn apart"
    assert len(train) + len(held) + report.near == len(pairs)


def test_what_another_direction_says_is_removed() -> None:
    """Pages apart, but the English of one direction's page is that of another direction's."""
    rows = [("en", "de", f"sentence number {n * 7919:x}", f"satz {n * 104729:x}", f"page {n}") for n in range(40)]
    rows += [("zh", "en", f"句子{n * 15485863:x}", f"Sentence  number {n * 7919:x}", f"other {n}") for n in range(40)]
    pairs = [Pair(source, target, group, a, b) for a, b, source, target, group in rows]
    given = Pairs("test", pairs, [str(n) for n in range(80)], PairCounts())
    train, held, report = split_pairs(given, 0.3, 0)
    english = [{p.source if p.source_language == "en" else p.target for p in part} for part in (train, held)]
    assert report.repeats > 5
    assert not {" ".join(s.lower().split()) for s in english[0]} & {" ".join(s.lower().split()) for s in english[1]}


# ---- tags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "char", "word"])
def test_a_tag_is_one_token_and_no_text(kind: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["open the file >>de<< <<", "打开文件"] * 3, kind, 400)  # type: ignore[arg-type]
    tokenizer.end_texts()
    before = tokenizer.vocab_size
    assert tokenizer.tags == {} and tokenizer.for_language("") is tokenizer
    tokenizer.add_languages(["de", "zh-CN"])
    tokenizer.add_languages(["de"])
    assert tokenizer.tags == {"de": before, "zh-CN": before + 1} and tokenizer.vocab_size == before + 2
    reader = tokenizer.for_language("de")
    for text in (">>de<< open", ">>zh-CN<<", "open >>de<< the"):
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.tags.values()) and reader.encode(text) == ids
        assert source_ids(reader, [text]) == [[before, *ids, tokenizer.eos_id]]
    assert tokenizer.decode([before, *tokenizer.encode("open")]) == "open"
    assert tokenizer.cut_tag(">>de<< open") == ("", ">>de<< open")
    assert tokenizer.for_language("zh-CN").with_ends([7]) == [before + 1, 7, tokenizer.eos_id]
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.tags == tokenizer.tags and again.fingerprint() == tokenizer.fingerprint()
    assert again.for_language("de").with_ends(again.encode(">>de<<"))[0] == before


def test_a_long_text_and_its_tag_fit_what_the_model_reads() -> None:
    tokenizer = train_tokenizer(["open the file"], "char", 50)
    tokenizer.end_texts()
    tokenizer.add_languages(["de"])
    reader = tokenizer.for_language("de")
    for how, rest in (("truncate", "open t"), ("split", "open the file")):
        ((*parts,),), longer = fit_sources(reader, ["open the file"], 8, how)  # type: ignore[arg-type]
        assert longer == 1 and "".join(parts).replace(" ", "") == rest.replace(" ", "")
        assert all(len(ids) <= 8 for ids in source_ids(reader, parts))
    assert fit_sources(reader, ["open t"], 8, "error") == ([["open t"]], 0)
    with pytest.raises(InputError, match="7 tokens, the model reads 6"):
        fit_sources(reader, ["open th"], 8, "error")


def test_each_source_that_is_learnt_begins_with_its_tag(tmp_path: Path) -> None:
    pairs = read(lay_sets(tmp_path))
    tokenizer = train_tokenizer([side for pair in pairs for side in (pair.source, pair.target)], "bpe", 400)
    tokenizer.end_texts()
    tokenizer.add_languages(["de", "en", "zh"])
    longest = max(len(tokenizer.encode(side)) for pair in pairs for side in (pair.source, pair.target))
    sources, targets, left_out = encode_pairs(pairs, tokenizer, longest + 2, cut_sources=False)
    assert left_out == 0
    for pair, source, target in zip(pairs, sources, targets, strict=True):
        assert source == [tokenizer.tags[pair.target_language], *tokenizer.encode(pair.source), tokenizer.eos_id]
        assert target == [*tokenizer.encode(pair.target), tokenizer.eos_id]
    lengths = [len(source) - len(target) for source, target in zip(sources, targets, strict=True)]
    one = lengths.index(max(lengths))  # its tag counts where the model can read so much and no more
    assert lengths[one] > 1 and encode_pairs(pairs.pick([one]), tokenizer, len(sources[one]), cut_sources=False)[2] == 0
    assert encode_pairs(pairs.pick([one]), tokenizer, len(sources[one]) - 1, cut_sources=False)[2] == 1


# ---- a whole run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Translator:
    folder = tmp_path_factory.mktemp("many")
    directions = f"data.directions={json.dumps(lay_sets(folder))}"
    return cast(Translator, zhixing.train("libreoffice-many", directions, *SMALL, out=str(folder / "run")))


def test_it_translates_each_direction(run: Translator) -> None:
    scores = json.loads((run.path / "scores.json").read_text(encoding="utf-8"))["directions"]
    assert list(scores) == DIRECTIONS
    for name, found in scores.items():
        value = found["model"]["bleu"]["value"]
        assert value > 90, name
        assert value > found["baselines"]["translation memory"]["bleu"]["value"]
        assert value > found["baselines"]["copy"]["bleu"]["value"]
        tokenize = "tok:zh" if name.endswith("zh") else "tok:13a"
        assert tokenize in found["model"]["signatures"]["bleu"] and found["model"]["language"] == name[-2:]
    assert run.evaluate()["directions"]["en>de"]["model"]["bleu"]["value"] == pytest.approx(
        scores["en>de"]["model"]["bleu"]["value"]
    )


def test_the_run_says_its_directions(run: Translator) -> None:
    verify_manifest(run.path)
    facts = json.loads((run.path / "facts.json").read_text(encoding="utf-8"))["data"]
    assert list(facts["directions"]) == DIRECTIONS
    for part in ("train", "validation", "test"):
        assert sum(counts[part] for counts in facts["directions"].values()) == facts[part]["pairs"]
    assert 'language: ["en", "zh", "de"]' in (run.path / "README.md").read_text(encoding="utf-8")
    words = words_of((run.path / "report.html").read_text(encoding="utf-8"))
    assert "A Marian model that translates English to Chinese, Chinese to English, English to German" in words
    assert "英语译中文、中文译英语、英语译德语" in words
    shown = [found for found in re.findall(r"zhixing \w+ [^\n]*", words) if str(run.path) in found]
    assert any("--to zh" in command for command in shown) and any(
        "'en>zh my-pairs.tsv'" in command for command in shown
    )
    scores = json.loads((run.path / "scores.json").read_text(encoding="utf-8"))["directions"]
    for found in scores.values():
        for row in (found["model"], *found["baselines"].values()):
            assert f"{row['bleu']['value']:.1f}" in words
        assert found["model"]["signatures"]["bleu"] in words


def test_the_language_is_that_which_is_asked_for(run: Translator) -> None:
    assert run.target_languages == ["de", "en", "zh"]
    texts = ["open the red file", "save a small blue table", "print the large cell"]
    for text in texts:
        assert run(text, target_language="de").text == german(text)
        assert run(text, target_language="zh").text == "".join(WORDS[word] for word in text.split())
    back = "".join(WORDS[word] for word in texts[0].split())
    assert run(back, target_language="en").text == texts[0]
    assert [a.text for a in run(texts, target_language="de")] == [german(text) for text in texts]
    assert run.write(texts, "de") == [german(text) for text in texts]
    best = run(texts[0], target_language="de", n_best=2)
    assert best.alternatives[0][0] == german(texts[0])


def test_every_sentence_of_a_document_is_in_that_language(run: Translator) -> None:
    lines = ["open the red file", "", "close a small table", "print the large page"]
    for language, said in (("de", german), ("zh", lambda line: "".join(WORDS[word] for word in line.split()))):
        assert run("\n".join(lines), target_language=language).text.split("\n") == [said(line) for line in lines]
    assert run("\n", target_language="de").text == "\n" and run([], target_language="de") == []


def test_a_tag_in_a_text_commands_nothing(run: Translator) -> None:
    """The characters of a tag are read as such; what is written stays in the language that was asked for."""
    for text in (">>de<< open the red file", "open the red file >>de<<"):
        answer = run(text, target_language="zh")
        assert answer.source == text and not set("öffne") & set(answer.text)
        assert any(word in answer.text for word in WORDS.values())
        with pytest.raises(InputError, match="several languages, and none is given"):
            run(text)


def test_a_language_that_is_unknown_or_not_given(run: Translator) -> None:
    with pytest.raises(InputError) as caught:
        run("open the red file", target_language="fr")
    assert "'fr'" in caught.value.message() and "it writes de, en, zh" in caught.value.message()
    with pytest.raises(InputError) as caught:
        run("open the red file")
    assert "it knows de, en, zh" in caught.value.message() and "--to de" in caught.value.message()
    with pytest.raises(InputError, match="does not write 'xx'"):
        run.write(["open the red file"], "xx")
    with pytest.raises(InputError, match="languages of 'pairs"):
        run.evaluate("pairs.tsv")


def test_a_model_of_one_direction(run: Translator) -> None:
    tokenizer = train_tokenizer([*WORDS, *WORDS.values()], "bpe", 300)
    tokenizer.end_texts()
    one = Translator(Path("nowhere"), dataclasses.replace(run.stored, tokenizer=tokenizer, target_language="zh"))
    assert one.told("open", "zh") == one.told("open") == ("", "open") and one.target_languages == ["zh"]
    with pytest.raises(InputError, match="does not write 'de'"):
        one.told("open", "de")
    silent = Translator(Path("nowhere"), dataclasses.replace(run.stored, tokenizer=tokenizer))
    assert silent.told(">>de<< open") == ("", ">>de<< open")
    with pytest.raises(InputError, match="does not write 'de'"):
        silent.told("open", "de")
    tokenizer.add_languages(["en"])  # of many directions into one language
    into_one = Translator(Path("nowhere"), dataclasses.replace(run.stored, tokenizer=tokenizer))
    assert into_one.told("打开") == ("en", "打开")


def test_the_command_line(run: Translator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        return (code, *capsys.readouterr())

    here = str(run.path)
    assert command("translate", here, "open the red file", "--to", "de")[1] == german("open the red file") + "\n"
    page = tmp_path / "read.html"
    code, out, _ = command(
        "translate", here, "open the red file\nsave a small page", "--to", "zh", "--alignment", str(page)
    )
    assert code == 0 and out == "打开这个红色文件\n保存一个小页面\n"
    assert page.read_text(encoding="utf-8").count("<svg") == 2
    code, _, said = command("translate", here, "open the red file")
    assert code == 2 and "de, en, zh" in said and "--to de" in said
    code, _, said = command("translate", here, "open the red file", "--to", "nl")
    assert code == 2 and "de, en, zh" in said
    new = lay(tmp_path / "new.jsonl", [{**row, "target": german(row["source"])} for row in phrases(30, seed=9)])
    code, out, _ = command("evaluate", here, f"en>de {new}", "--json")
    found = json.loads(out)["directions"]
    assert code == 0 and list(found) == ["en>de"] and found["en>de"]["model"]["n"] == 30
    code, out, _ = command("evaluate", here)
    assert code == 0 and all(f"{name}\n" in out for name in DIRECTIONS) and out.count("this model") == 3
    code, _, said = command("evaluate", here, str(new))
    assert code == 2 and "'en>de" in said


def test_what_was_read_is_shown_without_the_tag(run: Translator) -> None:
    source = "open the red file"
    read_tokens, written, weights = run.alignment(source, german(source), "de")
    assert "".join(read_tokens) == source and "".join(written) == german(source)
    assert weights.shape == (len(written), len(read_tokens))
    assert (weights.sum(axis=1) <= 1 + 1e-5).all()


def test_transformers_writes_the_same_behind_the_tag(run: Translator) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(run.path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.path)
    for text in ("open the red file", "save a small blue table"):
        for language in ("de", "zh"):
            ids = [tokenizer.convert_tokens_to_ids(f">>{language}<<"), *tokenizer(text)["input_ids"]]
            assert ids == source_ids(run.tokenizer.for_language(language), [text])[0]
            with torch.no_grad():
                found = model.generate(torch.tensor([ids]), num_beams=2, max_new_tokens=40, early_stopping=True)
            assert tokenizer.decode(found[0], skip_special_tokens=True) == run(text, target_language=language).text
    assert len(tokenizer(">>de<< open")["input_ids"]) > len(tokenizer("open")["input_ids"]) + 1, "in a text it is text"


def test_a_report_of_hostile_directions(tmp_path: Path) -> None:
    name = "<script>pwned=1</script>>'zh\" onload=pwned=1"
    scores = {"directions": {name: {"model": {"bleu": {"value": 20}}, "baselines": {"copy": 3}}, "en>zh": None}}
    (tmp_path / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    example = {"source": "a", "reference": "b", "output": "c", "group": "", "direction": name}
    (tmp_path / "examples.jsonl").write_text(json.dumps(example) + "\n", encoding="utf-8")
    page = render_seq2seq_report(tmp_path)
    assert "<script" not in page and not re.search(r"<[^>]*onload=", page)
    assert "20.0" in words_of(page) and "has not been scored" in words_of(page)


# ---- checkpoints of OPUS-MT ------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that learnt nothing does not end: texts of 24 tokens do."""
    monkeypatch.setattr(seq2seq, "MOST_NEW_TOKENS", 24)


@pytest.fixture(scope="module")
def opus(tmp_path_factory: pytest.TempPathFactory) -> Translator:
    """A folder as OPUS-MT's are, with >>cmn<< and >>eng<< in its vocabulary; the weights are random."""
    from test_marian import make
    from test_sentencepiece import lay_marian, small

    folder = lay_marian(tmp_path_factory.mktemp("opus"), small(model_type="unigram"), small(model_type="bpe"))
    tokenizer = Tokenizer.load(folder)
    model = make(seed=3, vocab_size=tokenizer.vocab_size, start_id=tokenizer.pad_id, n_layers=1, n_encoder_layers=1)
    attention = cast(DecoderBlock, model.decoder[0]).cross_attention
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "norm" in name:
                parameter.fill_(float(name.endswith("weight")))
        for part in (attention.q, attention.out):  # so that the source matters
            part.weight.mul_(3)
        model.logits_bias[[tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id or 0]] -= 20
        model.logits_bias[list(tokenizer.tags.values())] -= 20
    write_seq2seq(folder, StoredSeq2Seq(model, tokenizer, "translation", "en", "zh"), num_beams=2)
    return cast(Translator, zhixing.load(folder))


@pytest.mark.usefixtures("short")
def test_a_tag_before_a_document_holds_for_all_of_it(opus: Translator) -> None:
    assert opus.target_languages == ["cmn", "eng"]
    sentences = ["Open the red file.", "A small blue page and a red one.", "The table is on the page."]
    document = f"{sentences[0]} {sentences[1]}\n\n{sentences[2]}"
    plain, tagged, asked = opus(document), opus(f">>cmn<< {document}"), opus(document, target_language="cmn")
    assert tagged.text == asked.text and tagged.source == f">>cmn<< {document}"
    alone = [opus(f">>cmn<< {sentence}").text for sentence in sentences]
    assert tagged.text.replace("\n", "") == "".join(alone), "the first sentence alone had the tag"
    assert opus.write([f">>cmn<< {sentence}" for sentence in sentences]) == opus.write(sentences, "cmn")
    without = [opus(sentence).text for sentence in sentences]
    assert all(a != b for a, b in zip(alone, without, strict=True)), "the tag changes nothing: the test shows nothing"
    assert plain.text.replace("\n", "") == "".join(without)
    mixed = opus([document, f">>eng<< {document}", f">>cmn<< {document}"])
    assert [answer.text for answer in mixed] == [
        plain.text, opus(document, target_language="eng").text, tagged.text
    ]  # fmt: skip


@pytest.mark.usefixtures("short")
def test_a_tag_inside_a_text_of_opus_is_text(opus: Translator) -> None:
    tag = opus.tokenizer.tags["eng"]
    reader = opus.tokenizer.for_language("cmn")
    assert source_ids(reader, [">>eng<< the red file"])[0].count(tag) == 0
    assert source_ids(opus.tokenizer, [">>eng<< the red file"])[0][0] == tag, "transformers' way stays"
    asked = opus(">>eng<< the red file", target_language="cmn")
    assert asked.text == opus(["x", ">>eng<< the red file"], target_language="cmn")[1].text
    assert asked.text != opus(">>eng<< the red file").text
    assert opus.told(">>xxx<< the red file") == ("", ">>xxx<< the red file"), "a language that it has not is text"
    with pytest.raises(InputError, match="it writes cmn, eng"):
        opus("the red file", target_language="deu")
    with pytest.raises(InputError, match="not every language's tag"):
        opus.tokenizer.add_languages(["deu"])
