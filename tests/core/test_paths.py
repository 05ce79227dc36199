import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from likeness.core.errors import LikenessError
from likeness.core.paths import MAX_NAME_BYTES, inside, safe_name, slug, write_atomic

HOSTILE_NAMES = [
    "",
    " ",
    ".",
    "..",
    "...",
    "a/b",
    "a\\b",
    "/etc/passwd",
    "C:",
    "C:\\x",
    "a\0b",
    "a\nb",
    "a\x7f",
    ".hidden",
    "dot.",
    "CON",
    "con",
    "nul.txt",
    "Aux.tar.gz",
    "COM1",
    "lpt9.log",
    "com\u00b9",
    "CONIN$",
    "a:b",
    "a*",
    "a?",
    "<a>",
    "a|b",
    'a"b',
    "\ud800",
    "x" * (MAX_NAME_BYTES + 1),
    "\u00e9" * MAX_NAME_BYTES,
    "~/../x",
    "con .txt",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_are_refused(name):
    with pytest.raises(LikenessError, match="run name"):
        safe_name(name, what="run name")


@pytest.mark.parametrize("name", ["dog", "My dog 2", "a.b-c_d", "\u72ac", "console", "com10", "null"])
def test_good_names_stay(name):
    assert safe_name(name, what="run name") == name


def test_names_are_normalised():
    assert safe_name(" cafe\u0301 ", what="run name") == "caf\u00e9"


@given(st.text())
def test_every_slug_is_a_safe_name(text):
    assert safe_name(slug(text), what="name") == slug(text)


def test_slugs_read_like_their_source():
    assert slug("my dog: <sks>") == "my dog_ _sks"
    assert slug("CON.txt") == "CON_" and slug("..") == "subject" and slug("") == "subject"


@pytest.fixture(scope="module")
def trap(tmp_path_factory):
    """A root beside which there is something to steal, with links that lead to it."""
    top = tmp_path_factory.mktemp("trap")
    root, secret = top / "root", top / "secret"
    (root / "sub").mkdir(parents=True)
    secret.mkdir()
    (root / "out").symlink_to(secret)
    (root / "sub" / "up").symlink_to("../..")
    (root / "loop").symlink_to("loop")
    (root / "etc").symlink_to("/etc")
    (root / "in").symlink_to("sub")
    return root


HOSTILE_PATHS = [
    "",
    " ",
    "..",
    "../secret",
    "sub/../../secret",
    "sub\\..\\..\\secret",
    "/etc/passwd",
    "\\etc",
    "\\\\host\\share",
    "//host/share",
    "C:/x",
    "C:x",
    "c:\\x",
    "out",
    "out/x",
    "sub/up",
    "sub/up/secret/x",
    "etc/passwd",
    "a\0b",
    "a\nb",
    "nul",
    "sub/con.txt",
    "COM1/x",
    "x:stream",
    "\ud800",
    "x" * 300,
    "a/" * 3000 + "a",
    ".. /secret",
    "sub/... /x",
    "sub/ ..",
]


@pytest.mark.parametrize("relative", HOSTILE_PATHS)
def test_hostile_paths_are_refused(trap, relative):
    with pytest.raises(LikenessError, match="workflow path"):
        inside(trap, relative, what="workflow path")


@pytest.mark.parametrize(
    "relative", ["a", "sub/a.png", "sub\\a.png", "in/a", "./a", "sub//a", "..a", "a..b/c"]
)
def test_good_paths_stay_inside(trap, relative):
    assert inside(trap, relative, what="path").is_relative_to(trap.resolve())


def test_links_inside_are_followed(trap):
    assert inside(trap, "in/a", what="path") == trap.resolve() / "sub" / "a"


def test_a_root_that_is_a_link_is_a_root(trap, tmp_path):
    (tmp_path / "root").symlink_to(trap)
    assert inside(tmp_path / "root", "a", what="path") == trap.resolve() / "a"


PARTS = st.one_of(
    st.sampled_from(
        ["..", ".", "", "out", "sub", "up", "etc", "in", "loop", "root", "secret", "C:", "~", "nul"]
    ),
    st.text(max_size=6),
)


@settings(max_examples=200)
@given(st.lists(PARTS, max_size=6), st.lists(st.sampled_from("/\\"), min_size=6, max_size=6))
def test_no_text_leads_outside(trap, parts, slashes):
    relative = "".join(part + slash for part, slash in zip(parts, slashes, strict=False))
    try:
        path = inside(trap, relative, what="path")
    except LikenessError:
        return
    assert os.path.realpath(path).startswith(os.path.realpath(trap))


def test_text_and_bytes_are_written(tmp_path):
    write_atomic(tmp_path / "new" / "a.txt", "caf\u00e9\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"caf\xc3\xa9\n"
    write_atomic(tmp_path / "new" / "a.txt", b"")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b""
