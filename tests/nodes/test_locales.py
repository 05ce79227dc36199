"""The pack's words in the page's languages: every node in every one, and no stumbling block to the page."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from likeness.nodes import NODES

PACK = Path(__file__).parents[2]
LOCALES = PACK / "locales"
LANGUAGES = ["en", "ja", "ko", "zh"]
OWN_SCRIPT = {"ja": "[\u3040-\u30ff\u4e00-\u9fff]", "ko": "[\uac00-\ud7af]", "zh": "[\u4e00-\u9fff]"}
SCHEMAS = {schema.node_id: schema for schema in (cls.GET_SCHEMA() for cls in NODES)}
ENGLISH = {
    name: {"display_name": schema.display_name, "description": schema.description}
    for name, schema in SCHEMAS.items()
}


def read(language: str, name: str) -> dict[str, Any]:
    return dict(json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8")))


def words(record: Any) -> Iterator[str]:
    if isinstance(record, dict):
        for value in record.values():
            yield from words(value)
    else:
        yield record


def test_there_are_no_other_languages() -> None:
    assert sorted(path.name for path in LOCALES.iterdir()) == LANGUAGES


def test_english_is_what_the_schemas_say() -> None:
    """UPDATE_GOLDEN=1 rewrites the file."""
    if os.environ.get("UPDATE_GOLDEN"):
        text = json.dumps(ENGLISH, indent=1, ensure_ascii=False) + "\n"
        (LOCALES / "en" / "nodeDefs.json").write_text(text, encoding="utf-8")
    assert read("en", "nodeDefs") == ENGLISH


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_its_words(language: str) -> None:
    found = read(language, "nodeDefs")
    assert set(found) == set(SCHEMAS)
    for entry in found.values():
        assert set(entry) == {"display_name", "description"} and all(text.strip() for text in entry.values())
    names = [entry["display_name"] for entry in found.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("language", OWN_SCRIPT)
def test_the_words_are_in_that_language(language: str) -> None:
    for record in (read(language, "nodeDefs"), read(language, "settings")):
        assert all(re.search(OWN_SCRIPT[language], text) for text in words(record))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_setting_has_its_words(language: str) -> None:
    script = (PACK / "js" / "settings.js").read_text(encoding="utf-8")
    ids = re.findall(r'= "(Likeness\.\w+)"', script)
    assert len(ids) >= 3
    assert set(read(language, "settings")) == {name.replace(".", "_") for name in ids}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", ["nodeDefs", "settings"])
def test_nothing_is_a_placeholder_to_the_page(language: str, name: str) -> None:
    """vue-i18n reads braces, @ and | as commands."""
    assert not [text for text in words(read(language, name)) if re.search(r"[{}@|]", text)]
