"""Questions made as those of the Children's Book Test, and the layout of its files."""

import numpy as np
from support.paths import SHARED_DATA

BOOKS = SHARED_DATA / "cbt_raw" / "cbt_valid.txt"
Question = tuple[list[str], str, str, list[str]]  # sentences, query, answer and candidates


def practice_questions(n: int) -> list[Question]:
    """Questions from real books, made as the test's were, but for its tagger.

    For practice: never report scores of them as the Children's Book Test.
    """
    random = np.random.default_rng(0)
    lines = [line.strip() for line in BOOKS.read_text().splitlines() if " " in line.strip()]
    questions = []
    for start in random.permutation(len(lines) - 21):
        *sentences, query = lines[start : start + 21]
        words = sorted({word for text in sentences for word in text.split() if word.isalpha()})
        blanks = [word for word in query.split() if word in words]
        if not any("BOOK_TITLE" in text for text in sentences) and blanks and len(words) > 20:
            answer = blanks[random.integers(len(blanks))]
            others = [word for word in words if word != answer]
            candidates = [answer, *random.choice(others, size=9, replace=False)]
            padded = f" {query} ".replace(f" {answer} ", " XXXXX ", 1).strip()
            questions.append((sentences, padded, answer, random.permutation(candidates).tolist()))
        if len(questions) == n:
            break
    return questions


def official_text(questions: list[Question]) -> str:
    """The questions as the official files have them."""
    parts = []
    for sentences, query, answer, candidates in questions:
        numbered = [f"{number} {text}" for number, text in enumerate(sentences, start=1)]
        last = f"21 {query}\t{answer}\t\t{'|'.join(candidates)}"
        parts.append("\n".join([*numbered, last, "", ""]))
    return "".join(parts)
