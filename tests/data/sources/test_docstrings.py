"""The corpus of docstrings: what is found, in which order, and what is cut out."""

from types import SimpleNamespace

import pytest

from modeling_gpt2scratch.data.sources import docstrings as corpus
from modeling_gpt2scratch.data.sources.docstrings import docstrings


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Writes source files into a standard library and packages that are ours."""
    folders = {"stdlib": tmp_path / "stdlib", "purelib": tmp_path / "purelib"}
    paths = SimpleNamespace(get_path=lambda name: str(folders[name]))
    monkeypatch.setattr(corpus, "sysconfig", paths)
    monkeypatch.setattr(corpus, "DOCUMENTED_PACKAGES", ("alpha", "beta", "missing"))

    def write(files):
        for name, content in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def long_text(word):
    """A docstring of 100 characters, the shortest that counts."""
    return word.ljust(100, ".")


def module_of(*words):
    """A module whose functions have these docstrings, `long_text` of each word."""
    return "\n".join(f'def f{i}():\n    """{long_text(word)}"""' for i, word in enumerate(words))


@pytest.mark.parametrize("num_workers", [1, 3])
def test_docstrings_come_from_the_library_and_then_the_packages_in_path_order(
    installed, num_workers
):
    installed(
        {
            "purelib/alpha/z.py": module_of("alpha z"),
            "purelib/alpha/__init__.py": module_of("alpha"),
            "purelib/beta/core/b.py": module_of("beta"),
            "purelib/gamma/c.py": module_of("not among the documented packages"),
            "purelib/single.py": module_of("not inside a package"),
            "stdlib/b.py": module_of("library b"),
            "stdlib/a.py": module_of("library a 1", "library a 2"),
            "stdlib/a.txt": module_of("not Python"),
            "stdlib/site-packages/alpha/q.py": module_of("left out: site-packages"),
            "stdlib/test/a.py": module_of("left out: tests"),
            "purelib/alpha/deep/tests/a.py": module_of("left out: tests further down"),
        }
    )
    words = ["library a 1", "library a 2", "library b", "alpha", "alpha z", "beta"]
    found = docstrings(num_workers)
    assert found == [long_text(word) for word in words]


def test_docstrings_of_modules_classes_functions_and_methods_are_found(installed):
    source = '''
"""{module}"""

async def g():
    """{coroutine}"""

class A:
    """{cls}"""

    def f(self):
        """{method}

        at the margin
            indented
        """
        "{no_docstring}"
'''
    kinds = ("module", "coroutine", "cls", "method", "no_docstring")
    installed({"stdlib/a.py": source.format(**{kind: long_text(kind) for kind in kinds})})
    documents = docstrings(1)
    assert documents[:3] == [long_text(kind) for kind in kinds[:3]]
    # As `inspect.getdoc` shows it: the common indent and the blank ends are gone.
    assert documents[3:] == [long_text("method") + "\n\nat the margin\n    indented"]


def test_a_docstring_that_is_repeated_is_one_document(installed):
    installed(
        {
            "stdlib/a.py": module_of("first", "second", "first"),
            "stdlib/b.py": module_of("second", "third"),
            "purelib/beta/c.py": module_of("third", "first"),
        }
    )
    words = ["first", "second", "third"]
    assert docstrings(1) == [long_text(word) for word in words]


def test_a_docstring_below_a_hundred_characters_is_left_out(installed):
    long, short = "l" * 100, "s" * 99
    installed({"stdlib/a.py": f'"""{short}"""\ndef f():\n    """{long}"""'})
    assert docstrings(1) == [long]


def test_interactive_examples_are_cut_out_of_a_docstring(installed):
    prose, rest = "p" * 60, "r" * 60
    example = ">>> for i in range(2):\n...     i\n0\n1\n"
    malformed = f"{long_text('kept whole')}\n\n>>>print(5)"
    texts = (
        f"{prose}\n\n{example}\n{rest}",
        f"only an example:\n\n{example * 10}",
        malformed,
    )
    installed({"stdlib/a.py": "".join(f"def f():\n    {text!r}\n" for text in texts)})
    first, second = docstrings(1)
    assert first.split() == [prose, rest]
    assert second == malformed


def test_a_source_file_that_does_not_parse_is_passed_over(installed):
    installed(
        {
            "stdlib/a.py": module_of("good"),
            "stdlib/b.py": module_of("bad") + "\ndef broken(:",
            "stdlib/c.py": b"print 'Python 2'",
            "stdlib/d.py": b"\x00\x01",
            "stdlib/e.py": b'"""' + b"\xe9" * 200 + b'"""',
            "stdlib/f.py": b'# coding: latin-1\n"""' + b"\xe9" * 100 + b'"""',
            "stdlib/g.py": b"",
        }
    )
    assert docstrings(1) == [long_text("good"), "é" * 100]


def test_a_surrogate_in_a_docstring_is_replaced(installed):
    installed({"stdlib/a.py": f'"""\\ud800{"x" * 100}"""'})
    assert docstrings(1) == ["\ufffd" + "x" * 100]
