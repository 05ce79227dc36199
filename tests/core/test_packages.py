import pytest
from likeness.core.errors import MissingPackage
from likeness.core.packages import require


def test_what_is_there_is_returned():
    assert require("json.decoder", purpose="Reading", install="json").JSONDecoder


def test_what_is_missing_is_named_with_its_remedy():
    with pytest.raises(
        MissingPackage, match=r"Grounding needs the package nowhere_at_all.*pip install likeness\[x\]"
    ):
        require("nowhere_at_all.sub", purpose="Grounding", install="likeness[x]")


def test_a_broken_package_is_told_from_a_missing_one(tmp_path, monkeypatch):
    (tmp_path / "broken_at_heart.py").write_text("import nowhere_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackage, match="does not load"):
        require("broken_at_heart", purpose="Grounding", install="broken")
