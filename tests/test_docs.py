"""Pages whose links lead somewhere, and words that a newcomer would stumble over."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").rglob("*.md")]
)


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_figures_have_text_alternatives() -> None:
    for page in PAGES:
        for text in re.findall(r"!\[([^\]]*)\]", page.read_text()):
            assert len(text) > 10, f"{page}: {text!r}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


WORDS = ("factory", "theta", "journal", "ledger", "parcel", "remix")
"""Names of the past, each of which has one in docs/glossary.md."""
OTHERS = r"tmp_path_factory|TempPathFactory|(default|row|text)_factory|journal_mode"
"""What libraries call theirs."""


def test_each_idea_has_the_name_of_the_glossary() -> None:
    for path in [*(ROOT / "hgprompt_edge").rglob("*.py"), *(ROOT / "docs").rglob("*.md")]:
        text = re.sub(OTHERS, "", path.read_text()).lower()
        assert not [word for word in WORDS if word in text], path
    assert not [word for word in WORDS if word in (ROOT / "README.md").read_text().lower()]


def test_the_code_cites_sections_and_equations_of_the_method_that_exist() -> None:
    page = (ROOT / "docs" / "method.md").read_text()
    there = {
        "METHOD ": set(re.findall(r"^#{2,3} (\d(?:\.\d)?)\b", page, re.MULTILINE)),
        "METHOD eq. ": set(re.findall(r"\\tag\{(\d+)\}", page)),
    }
    cited = dict.fromkeys(there, 0)
    for path in [*(ROOT / "hgprompt_edge").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for words, number in re.findall(r"(METHOD (?:eq\. )?)(\d(?:\.\d)?)\b", path.read_text()):
            assert number in there[words], f"{path}: {words}{number}"
            cited[words] += 1
    assert all(cited.values())
