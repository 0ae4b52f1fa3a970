"""The corpus of docstrings: what is found, in which order, and what counts."""

from types import SimpleNamespace

import pytest

from modeling_gpt2scratch.common.errors import SourceError
from modeling_gpt2scratch.data.sources import docstrings as corpus
from modeling_gpt2scratch.data.sources.docstrings import DocstringFile, docstrings
from modeling_gpt2scratch.data.sources.local_files import read_documents


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Writes source files into a standard library and packages that are ours."""
    paths = SimpleNamespace(get_path=lambda name: str(tmp_path / name))
    monkeypatch.setattr(corpus, "sysconfig", paths)
    monkeypatch.setattr(corpus, "DOCUMENTED_PACKAGES", ("alpha", "beta"))
    for name in ("purelib", "platlib"):  # as an environment that sees the system's packages
        monkeypatch.syspath_prepend(tmp_path / name)
    for package in ("purelib/alpha", "platlib/beta"):
        (tmp_path / package).mkdir(parents=True)

    def write(files):
        for name, content in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def long_text(word, n_characters=100):
    """A sentence of 100 characters, the shortest docstring that counts."""
    text = f"This sentence about {word} holds plain words, and ends after so many letters "
    return text.ljust(n_characters - 1, "o") + "."


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
            "platlib/beta/core/b.py": module_of("beta"),
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


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "DOCUMENTED_PACKAGES", ("numpy", "no_such_package"))
    with pytest.raises(SourceError, match="expected the package no_such_package, found none"):
        DocstringFile().fetch(tmp_path)


def test_docstrings_of_modules_classes_functions_and_methods_are_found(installed):
    source = '''
"""{module}"""

async def g():
    """{coroutine}"""

class A:
    """{cls}"""

    def f(self):
        """{method}

        {paragraph}
        """
        "{no_docstring}"
'''
    kinds = ("module", "coroutine", "cls", "method", "no_docstring")
    texts = {kind: long_text(kind) for kind in kinds} | {"paragraph": long_text("a paragraph")}
    installed({"stdlib/a.py": source.format(**texts)})
    documents = docstrings(1)
    assert documents[:3] == [long_text(kind) for kind in kinds[:3]]
    assert documents[3:] == [f"{long_text('method')}\n\n{long_text('a paragraph')}"]


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
    long, short = long_text("length"), long_text("length", 99)
    assert (len(long), len(short)) == (100, 99)
    installed({"stdlib/a.py": f'"""{short}"""\ndef f():\n    """{long}"""'})
    assert docstrings(1) == [long]


def test_only_the_prose_of_a_docstring_is_kept(installed):
    before, after = long_text("what comes first"), long_text("what comes last")
    example = ">>> for i in range(2):\n...     i\n0\n1\n"
    texts = (
        f"{before}\n\nExample::\n\n    f(x)\n\n{example}\n{after}",
        f"only an example:\n\n{example * 10}",
        f"{after}\n\n>>>print(5)",
    )
    installed({"stdlib/a.py": "".join(f"def f():\n    {text!r}\n" for text in texts)})
    assert docstrings(1) == [f"{before}\n\n{after}", after]


def test_docstrings_that_differ_in_code_alone_are_one_document(installed):
    texts = [f"{long_text('one')}\n\n>>> f({n})" for n in range(3)]
    installed({"stdlib/a.py": "".join(f"def f():\n    {text!r}\n" for text in texts)})
    assert docstrings(1) == [long_text("one")]


def test_the_corpus_is_a_file_whose_size_is_printed(installed, tmp_path, monkeypatch, capsys):
    installed({"stdlib/a.py": module_of("one", "two")})
    monkeypatch.setattr(corpus.metadata, "version", lambda name: "1.0")
    path = DocstringFile().fetch(tmp_path / "downloads")
    assert [text for _, text in read_documents(path)] == [long_text("one"), long_text("two")]
    assert "docstrings: 2 documents, 0.0 MB of prose" in capsys.readouterr().err
    assert DocstringFile().fetch(tmp_path / "downloads") == path
    monkeypatch.setattr(corpus, "RULES", corpus.RULES + 1)
    assert DocstringFile().fetch(tmp_path / "downloads") != path


def test_a_source_file_that_does_not_parse_is_passed_over(installed):
    installed(
        {
            "stdlib/a.py": module_of("good"),
            "stdlib/b.py": module_of("bad") + "\ndef broken(:",
            "stdlib/c.py": b"print 'Python 2'",
            "stdlib/d.py": b"\x00\x01",
            "stdlib/e.py": b'"""' + long_text("a caf\xe9").encode("latin-1") + b'"""',
            "stdlib/f.py": b'# coding: latin-1\n"""'
            + long_text("a caf\xe9").encode("latin-1")
            + b'"""',
            "stdlib/g.py": b"",
        }
    )
    assert docstrings(1) == [long_text("good"), long_text("a café")]


def test_a_surrogate_in_a_docstring_is_replaced(installed):
    installed({"stdlib/a.py": f'"""{long_text("half a pair")} A \\ud800 is none of it."""'})
    assert docstrings(1) == [f"{long_text('half a pair')} A \ufffd is none of it."]
