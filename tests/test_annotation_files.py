"""Annotation files of every dataset: any bytes in, either items or a typed error out."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avprompt.datasets import ave, avsbench, kinetics_sounds, llp, music_avqa, vggsound
from avprompt.errors import AnnotationError, AVPromptError, ConfigError, DatasetError
from avprompt.media.text import is_name, plain, read_text, whole

QUESTION = {
    "video_id": "00000001",
    "question_id": 7,
    "type": '["Audio", "Counting"]',
    "question_deleted": 0,
    "question_content": "How many <Object> sound?",
    "templ_values": '["flute"]',
    "anser": "two",
}
LABEL = json.dumps([1] * 10)
#: dataset -> its files with one right row each, and what reads them
FILES: dict[str, tuple[dict[str, str], Callable[[Path], object]]] = {
    "ave": (
        {
            "Annotations.txt": "Bark&abc&good&0&10\n",
            "trainSet.txt": "Bark&abc&good&0&10\n",
            "valSet.txt": "Bark&abc&good&0&10\n",
            "testSet.txt": "Bark&abc&good&0&10\n",
            "categories.txt": "Bark\n",
        },
        ave.read_splits,
    ),
    "llp": (
        {
            "AVVP_train.csv": "filename\tevent_labels\nabcdefghijk_1_11\tDog\n",
            "AVVP_val_pd.csv": "filename\tevent_labels\nbbcdefghijk_1_11\tDog\n",
            "AVVP_test_pd.csv": "filename\tevent_labels\ncbcdefghijk_1_11\tDog\n",
            "AVVP_eval_audio.csv": "filename\tonset\toffset\tevent_labels\nbbcdefghijk_1_11\t0\t3\tDog\n",
            "AVVP_eval_visual.csv": "filename\tonset\toffset\tevent_labels\nbbcdefghijk_1_11\t0\t3\tDog\n",
        },
        llp.read_splits,
    ),
    "avs_s4": (
        {"Single-source/s4_meta_data.csv": "name,split,category\nabc,train,dog\n"},
        lambda root: avsbench.read_splits(root, "s4"),
    ),
    "avs_ms3": (
        {"Multi-sources/ms3_meta_data.csv": "name,split\nabc,train\n"},
        lambda root: avsbench.read_splits(root, "ms3"),
    ),
    "kinetics_sounds": (
        {
            **{
                f"{split}.csv": f"label,youtube_id,time_start,time_end,split\nsinging,a{split},1,11,{split}\n"
                for split in ("train", "val", "test")
            },
            "classes.txt": "singing\n",
        },
        kinetics_sounds.read_splits,
    ),
    "music_avqa": (
        {
            **{f"json/avqa-{split}.json": json.dumps([QUESTION]) for split in ("train", "val", "test")},
            "ques_vocab.txt": "<pad>\nHow\n",
            "ans_vocab.txt": "two\n",
        },
        lambda root: (music_avqa.read_splits(root), music_avqa.read_vocabulary(root, source="files")),
    ),
    "vggsound": (
        {
            vggsound.CATEGORY_FILE: "Bark\n",
            vggsound.LABEL_FILE: f'split,category,video_id,label\ntrain,Bark,7,"{LABEL}"\n',
        },
        lambda root: vggsound.read_splits(
            root / vggsound.LABEL_FILE, vggsound.read_categories(root / vggsound.CATEGORY_FILE)
        ),
    ),
}
EACH = [(dataset, name) for dataset, (files, _) in FILES.items() for name in files]


def write(root: Path, dataset: str, **changed: bytes) -> None:
    for name, text in FILES[dataset][0].items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(changed.get(name, text.encode()))


@st.composite
def changed(draw: st.DrawFn, text: bytes) -> bytes:
    """A right file with some of its bytes replaced, taken out or doubled, or fields replaced by strange ones."""
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, len(text)))
        last = draw(st.integers(first, min(len(text), first + 12)))
        odd = st.sampled_from(
            [
                b"\r",
                b"\x00",
                b'"',
                b",",
                b"\t",
                b"&",
                b"9" * 5000,
                "²٣".encode(),
                b"\\ud800",
                b"../",
                b"[" * 3000,
                b"{}",
                b"NaN",
                b"\xe2\x80\xa8",
                b"\x0c",
                b"null",
                b"-1",
                b"1e400",
            ]
        )
        text = text[:first] + draw(st.one_of(st.binary(max_size=6), odd, st.just(text[first:last] * 2))) + text[last:]
    return text


@pytest.mark.parametrize(("dataset", "name"), EACH)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:.*no questions to train on")
def test_any_bytes_give_items_or_a_typed_error(tmp_path: Path, dataset: str, name: str, data: st.DataObject) -> None:
    right = FILES[dataset][0][name].encode()
    write(tmp_path, dataset, **{name: data.draw(st.one_of(st.binary(max_size=60), changed(right)))})
    try:
        FILES[dataset][1](tmp_path)
    except AVPromptError as error:
        assert str(tmp_path) in str(error)


@pytest.mark.parametrize("dataset", FILES)
def test_right_files_are_read(tmp_path: Path, dataset: str) -> None:
    write(tmp_path, dataset)
    assert FILES[dataset][1](tmp_path)


@pytest.mark.parametrize(("dataset", "name"), EACH)
def test_files_in_other_encodings_name_file_byte_and_cure(tmp_path: Path, dataset: str, name: str) -> None:
    right = FILES[dataset][0][name]
    for content, place, what in (
        (right.encode() + "中文".encode("gbk"), len(right), "-f GBK -t UTF-8"),
        (right.encode() + b"caf\xe9 ", len(right) + 3, "-f LATIN1 -t UTF-8"),
        (right.encode("utf-16"), 0, "UTF-16.*Save it as UTF-8"),
        (right.encode("utf-16-le"), 1, "Save it as UTF-8"),
        (gzip.compress(right.encode()), 0, "gunzip"),
        (b"<!DOCTYPE html><html>", 0, "web page"),
    ):
        write(tmp_path, dataset, **{name: content})
        with pytest.raises(AnnotationError, match=f"(?s){Path(name).name}, byte {place}.*{what}"):
            FILES[dataset][1](tmp_path)


@pytest.mark.parametrize(("dataset", "name"), EACH)
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"[]"])
def test_an_empty_file_is_an_error(tmp_path: Path, dataset: str, name: str, content: bytes) -> None:
    """One that decides about nothing would make every target zero."""
    if content == b"[]" and not name.endswith(".json"):
        content = b"\r\n"
    write(tmp_path, dataset, **{name: content})
    with pytest.raises(AnnotationError):
        FILES[dataset][1](tmp_path)


@pytest.mark.parametrize(("dataset", "name"), [pair for pair in EACH if pair[1].endswith(".csv")])
def test_a_header_alone_is_an_error(tmp_path: Path, dataset: str, name: str) -> None:
    write(tmp_path, dataset, **{name: FILES[dataset][0][name].encode().split(b"\n")[0] + b"\n"})
    with pytest.raises(AnnotationError, match="a header and no row"):
        FILES[dataset][1](tmp_path)


@pytest.mark.parametrize(("dataset", "name"), EACH)
def test_line_ends_and_marks_do_not_matter(tmp_path: Path, dataset: str, name: str) -> None:
    write(tmp_path, dataset)
    expected = FILES[dataset][1](tmp_path)
    for end in (b"\r\n", b"\r"):
        content = b"\xef\xbb\xbf" + FILES[dataset][0][name].encode().replace(b"\n", end)
        write(tmp_path, dataset, **{name: content})
        assert FILES[dataset][1](tmp_path) == expected


def test_text_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetError, match="got no such file"):
        read_text(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="got a folder"):
        read_text(tmp_path)
    (tmp_path / "a").write_bytes(b"x" * 100)
    monkeypatch.setattr("avprompt.media.text.LIMIT", 99)
    with pytest.raises(ConfigError, match="100 bytes; expected a text file of at most 99 bytes"):
        read_text(tmp_path / "a", error=ConfigError)


def test_names_and_numbers() -> None:
    assert [whole(text) for text in ("7", "007", "", "-1", "1.0", "²", "٣", "9" * 10)] == [7, 7] + [None] * 6
    for name in ("-abc", "圆盘", "a b", "e" * 255, "é"):
        assert is_name(name) and plain(name) == name
    for name in ("", ".a", "a/b", "a\\b", "a\nb", "a\0", "\ud800", "é" * 128):
        assert not is_name(name)
    assert plain("a\r\udcff") == "a\\r\\udcff"


def test_music_avqa_v2(shared: Path) -> None:
    """Lists and strings mixed, fields missing."""
    questions = music_avqa.read_questions(shared / "data/music_avqa_v2/test_balance.json")
    assert len(questions) == 10819 and len({question.answer for question in questions}) == 42
    assert max(len(question.words) for question in questions) == 14
    assert sum(question.question_id.startswith("record ") for question in questions) == 1724
    assert sum(question.id.endswith("_flip") for question in questions) == 69


@pytest.mark.parametrize(
    "change",
    [{"templ_values": ["flute"]}, {"type": ["Audio", "Counting"]}, {"question_id": "7"}, {"question_deleted": None}],
)
def test_questions_in_the_forms_of_both_versions(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "q.json"
    path.write_text(json.dumps([QUESTION, {**QUESTION, **change}]))
    one, two = music_avqa.read_questions(path)
    assert one == two
    path.write_text(
        json.dumps([{key: value for key, value in QUESTION.items() if key not in ("question_id", "question_deleted")}])
    )
    assert music_avqa.read_questions(path)[0].question_id == "record 1"
