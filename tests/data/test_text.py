import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from bert_convolutions.data.text import normalize


def test_steps() -> None:
    assert normalize("  The\tUNITED \u3000 States ``so'' \n") == 'the united states "so"'
    assert normalize("Café Ÿ Ångström ﬁn №5") == "cafe y angstrom fin no5"
    assert normalize("ΟΔΟΣ") == "οδοσ", "letter by letter: no final sigma"
    assert normalize("") == normalize(" \u2003\t") == ""


@given(st.text())
def test_neither_capitals_nor_accents_nor_outer_space_remain(text: str) -> None:
    normalized = normalize(text)
    assert normalized == normalized.lower()
    assert not any(unicodedata.combining(character) for character in normalized)
    assert "``" not in normalized


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_ascii_takes_the_same_steps(text: str) -> None:
    assert normalize(text) == normalize(text + " é")[:-1].rstrip(" ") or "`" in text or "'" in text
