"""Cleaning by hand-made tables, the false alarms included, and near duplicates against the exact Jaccard index."""

from __future__ import annotations

import random
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhixing.text import cleaning
from zhixing.text.cleaning import (
    jaccard,
    luhn,
    mask_personal_data,
    minhash,
    near_duplicates,
    normalize,
    remove_controls,
    shingles,
    text_key,
)

# ---- normal forms and controls


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("none", "e\u0301，ﬁ", "e\u0301，ﬁ"),
        ("NFC", "e\u0301，ﬁ", "é，ﬁ"),
        ("NFKC", "e\u0301，ﬁ", "é,fi"),
        ("NFC", "\uf900", "\u8c48"),  # a compatibility ideograph that NFC folds too
        ("NFC", "各，自「在」", "各，自「在」"),
    ],
)
def test_normalize(form: str, text: str, expected: str) -> None:
    assert normalize(text, form) == (expected, int(text != expected))  # type: ignore[arg-type]


def test_controls_go_and_tab_and_line_end_stay() -> None:
    assert remove_controls("a\tb\nc\x00\x07\x0b\x1b[0m\x7f\x85\ufeffd") == ("a\tb\nc[0md", 7)
    assert remove_controls("孔子\u3000é🙂\u200d") == ("孔子\u3000é🙂\u200d", 0)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_controls_are_gone_after_one_pass(text: str) -> None:
    cleaned, removed = remove_controls(text)
    assert len(cleaned) + removed == len(text)
    assert not {c for c in cleaned if unicodedata.category(c) == "Cc"} - {"\n", "\t"}


# ---- duplicates


def test_exact_duplicates_share_a_key() -> None:
    assert text_key("a b\n c ") == text_key(" a b c")
    assert text_key("a b c") != text_key("a b C")
    assert len(text_key("")) == 16


def test_jaccard_of_small_sets() -> None:
    a, b = np.array([1, 2, 3], np.uint32), np.array([2, 3, 4, 5], np.uint32)
    assert jaccard(a, b) == 2 / 5
    assert jaccard(a, a) == 1.0
    assert jaccard(a, np.array([], np.uint32)) == 0.0


def test_shingles_are_counted_by_hand() -> None:
    assert len(shingles("abcdefg")) == 3  # abcde bcdef cdefg
    assert len(shingles("abcdeabcdeabcde")) == 5
    assert len(shingles("春眠不覺曉")) == 3  # three characters each where most are Chinese
    assert len(shingles("ab")) == len(shingles("")) == 1
    assert shingles("The Cat\nSat").tolist() == shingles("thecatsat").tolist()


def test_minhash_estimates_the_jaccard_index() -> None:
    """Over 60 pairs, the mean error is within three standard errors of none, and each within four of its own."""
    rng = np.random.default_rng(0)
    errors = []
    for share in np.linspace(0.05, 0.95, 60):
        common = int(1000 * share)
        pool = rng.integers(0, 1 << 32, 2000 - common, np.uint32)
        a, b = np.unique(pool[:1000]), np.unique(np.r_[pool[:common], pool[1000:]])
        exact = jaccard(a, b)
        estimate = float((minhash(a) == minhash(b)).mean())
        spread = (exact * (1 - exact) / cleaning.HASHES) ** 0.5
        assert abs(estimate - exact) < 4 * spread + 0.01
        errors.append(estimate - exact)
    assert abs(np.mean(errors)) < 0.02


def _changed(text: str, share: float, rng: random.Random, alphabet: str) -> str:
    return "".join(rng.choice(alphabet) if rng.random() < share else c for c in text)


@pytest.mark.parametrize(
    "alphabet", ["abcdefghijklmnopqrst uvwxyz", "春眠不覺曉處聞啼鳥夜來風雨聲花落知多少明月松間照清泉石上流"]
)
def test_near_duplicates_are_those_above_the_threshold(alphabet: str) -> None:
    """Against the exact index of all pairs: all from 0.85 are found, none below 0.8."""
    rng = random.Random(2)
    originals = ["".join(rng.choices(alphabet, k=400)) for _ in range(12)]
    texts = originals + [_changed(o, share, rng, alphabet) for o in originals for share in (0.005, 0.01, 0.03, 0.3)]
    found = near_duplicates(lambda: texts)
    sets = [shingles(text) for text in texts]
    exact = {
        (later, earlier): jaccard(sets[later], sets[earlier]) for later in range(len(texts)) for earlier in range(later)
    }
    surely = {later for (later, _), index in exact.items() if index >= 0.85}
    perhaps = {later for (later, _), index in exact.items() if index >= 0.8}
    assert surely <= set(found) <= perhaps
    assert 12 <= len(found) < len(texts) - 12
    assert all(earlier not in found for earlier in found.values())  # the one that stays is named


def test_no_documents_and_one_document_have_no_duplicates() -> None:
    assert near_duplicates(list) == {}
    assert near_duplicates(lambda: ["one"]) == {}
    assert near_duplicates(lambda: ["one", "two", "one", "ONE"]) == {2: 0, 3: 0}


# ---- personal data


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to ann.lee+news@mail.example.co.uk.", "write to [mail]."),
        ("邮箱zhang_san@example.cn，谢谢", "邮箱[mail]，谢谢"),
        ("打13812345678找我", "打[phone]找我"),
        ("手机：+86 138 1234 5678。", "手机：[phone]。"),
        ("86-139-1234-5678", "[phone]"),
        ("call +44 20 7946 0958 now", "call [phone] now"),
        ("call +1 (415) 555-2671", "call [phone]"),
        ("(415) 555-2671 or 415-555-2671", "[phone] or [phone]"),
        ("from 192.168.10.254, then 8.8.8.8.8", "from [ip], then 8.8.8.8.8"),
        ("http://203.0.113.77:8080/", "http://[ip]:8080/"),
        ("at 2001:db8::8a2e:370:7334 and fe80::1", "at [ip] and [ip]"),
        ("card 4111 1111 1111 1111, exp 12/27", "card [card], exp 12/27"),
        ("5500-0055-5555-5559", "[card]"),
        ("378282246310005", "[card]"),
        ("卡号6212345678901232。", "卡号[card]。"),
        ("export OPENAI=sk-proj-abcdEFGH1234ijklMNOP5678", "export OPENAI=[key]"),
        ("ghp_" + "a1B2" * 9, "[key]"),
        ("AKIAIOSFODNN7EXAMPLE", "[key]"),
        ("api_key = 'f3Kx9pQ2mZ7vB1nW'", "api_key = '[key]'"),
        ('"password": "tr0ub4dor&3xyzQW"', '"password": "tr0ub4dor&3xyzQW"'),  # cut at &: too short to judge
        ('"password": "tr0ub4dor-3xyzQW"', '"password": "[key]"'),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nab+/\n-----END RSA PRIVATE KEY-----", "[key]"),
    ],
)
def test_personal_data_is_masked(text: str, masked: str) -> None:
    assert mask_personal_data(text)[0] == masked


@pytest.mark.parametrize(
    "text",
    [
        "on 2024-05-17 at 12:30:45, or 17.05.2024, or 1945-1949",
        "ISBN 978-0-306-40615-7 and 9780306406157",
        "version 1.2.3.4, 10.15.7 and v2.13.0.1",
        "1.2.3.4",
        "256.1.1.1 and 300.400.500.600",
        "std::vector<int>::iterator and a::b",
        "a ratio of 16:9, Genesis 1:1, 3:16-18",
        "4111 1111 1111 1112 has a wrong check digit",
        "0000 0000 0000 0000",
        "12345678901234567890123",
        "pi is 3.14159265358979323846",
        "the year 13812 and 138123456789 things",
        "call 911, pay $1,234,567.89, page 12345678",
        "1790 to 2021, 10,000,000 people, 23812345678",
        "user @ host, @name, a@b, someone@localhost",
        "token: the smallest unit of text that a model sees",
        "password = your-password-goes-here",
        "secret: none of your business, api_key=<YOUR_API_KEY>",
        "sk-learn and task-based",
        "学号20240517001，房间1234567，第13章",
        "公元1949年10月1日，13.8亿人",
        "0x1234567890abcdef, 6.02214076e23",
        "e.g. 415-555-26711 and 1415-555-2671",
    ],
)
def test_what_only_looks_like_personal_data_stays(text: str) -> None:
    assert mask_personal_data(text) == (text, {})


def test_each_kind_is_counted() -> None:
    text = "a@example.org b@example.org 192.168.0.1 13812345678 4111111111111111 hf_" + "Ab3" * 12
    assert mask_personal_data(text)[1] == {"mail": 2, "ip": 1, "phone": 1, "card": 1, "key": 1}


def test_real_prose_holds_no_personal_data() -> None:
    """Six novels and 12,629 poems: not one false alarm."""
    from zhixing.recipe import DataSettings
    from zhixing.text.readers import read_documents

    for name in ("austen", "tang"):
        documents = read_documents(name, DataSettings())
        assert sum(sum(mask_personal_data(text)[1].values()) for text in documents) == 0


def test_luhn_finds_every_single_wrong_digit() -> None:
    number = "79927398713"
    assert luhn(number)
    for i in range(len(number)):
        for digit in "0123456789":
            assert luhn(number[:i] + digit + number[i + 1 :]) == (digit == number[i])


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("0123456789 .-+()@:abcdefAZ=/_，年"), max_size=200))
def test_masking_twice_is_masking_once(text: str) -> None:
    once, _ = mask_personal_data(text)
    assert mask_personal_data(once) == (once, {})


def test_masking_is_quick_on_nasty_text() -> None:
    """A pattern that backtracks over 100,000 characters would take minutes."""
    import time

    for unit in (
        "a.",
        "1-",
        "1 ",
        "a@",
        "+1",
        "1.",
        ":a",
        "0:",
        "sk-",
        "key=",
        "eyJ-",
        "password:",
        "-----BEGIN PRIVATE KEY-----",
        "a@b.",
    ):
        began = time.process_time()
        mask_personal_data(unit * (100_000 // len(unit)))
        assert time.process_time() - began < 4, unit
