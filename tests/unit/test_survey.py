"""The survey of an input file: the same for any chunks, and right against a plain computation."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from nightmill.core.estimate import FileSurvey, TokenCount, TokenMethod, total
from nightmill.validation import InputRules, InputSurvey, InputValidator

CHAT = "/v1/chat/completions"


def request(custom_id: str, content: str) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    line = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}
    return json.dumps(line).encode() + b"\n"


def survey_of(text: bytes, chunk_bytes: int) -> FileSurvey:
    validator, survey = InputValidator(InputRules(endpoint=CHAT)), InputSurvey()
    for start in range(0, len(text), chunk_bytes):
        chunk = text[start : start + chunk_bytes]
        survey.take(chunk, validator.take(chunk))
    survey.take(b"\n", validator.finish())
    return survey.finish()


@settings(max_examples=60, deadline=None)
@given(
    contents=st.lists(
        st.sampled_from(["a", "b", "c" * 700, "c" * 1_000, "d" * 300]), min_size=1, max_size=20
    ),
    bad=st.integers(0, 3),
    chunk_bytes=st.integers(1, 3_000),
    ends=st.booleans(),
)
def test_any_chunks_give_the_counts_of_a_plain_computation(
    contents: list[str], bad: int, chunk_bytes: int, ends: bool
) -> None:
    lines = [request(str(number), content) for number, content in enumerate(contents)]
    text = b"{\n" * bad + b"".join(lines)
    found = survey_of(text if ends else text[:-1], chunk_bytes)
    assert found.lines == len(contents)
    assert found.duplicates == len(contents) - len(set(contents))
    prompts = [json.dumps([{"role": "user", "content": content}]).encode() for content in contents]
    assert found.prompt_bytes == sum(map(len, prompts))
    shared = 0
    for number, prompt in enumerate(prompts):
        shared += max(
            (
                256 * blocks
                for blocks in range(len(prompt) // 256 + 1)
                if any(
                    other[: 256 * blocks] == prompt[: 256 * blocks] and len(other) >= 256 * blocks
                    for other in prompts[:number]
                )
            ),
            default=0,
        )
    assert found.shared_bytes == shared


def test_a_sample_of_all_lines_is_exact_and_one_of_some_is_not() -> None:
    found = FileSurvey(lines=3, prompt_bytes=300)
    assert TokenCount(3, 60, 300).method(found) is TokenMethod.EXACT
    assert TokenCount(2, 40, 200).method(found) is TokenMethod.SAMPLED
    assert TokenCount(2, 40, 200).of(300) == 60
    assert TokenCount().method(found) is TokenMethod.ESTIMATED
    assert TokenCount().of(301) == 76


def test_a_sum_with_an_unknown_part_is_unknown() -> None:
    assert total([1.0, None]) is None
    assert total([]) is None
    assert total([1.0, 2.0]) == 3.0
