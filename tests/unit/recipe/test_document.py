"""docs/recipe.md is the schema's own text."""

from __future__ import annotations

from pathlib import Path

from luthier.recipe.document import document

PAGE = Path(__file__).parents[3] / "docs" / "recipe.md"


def test_the_page_is_what_the_schema_says() -> None:
    """After a change of the schema: `luthier train --help-recipe > docs/recipe.md`."""
    assert PAGE.read_text(encoding="utf-8") == document() + "\n"


def test_a_row_says_what_may_be_written_its_default_and_its_meaning() -> None:
    rows = document().splitlines()
    assert "| `output` | text | **needed** | The run's folder. |" in rows
    assert "| `adapter.rank` | whole number > 0 | `16` | Width of the low-rank update. |" in rows
    assert "| `data.train_on` | `all`, `last` | `all` | Which assistant turns are learned. |" in rows
    assert (
        "| `train.micro_batch_tokens` | `auto`, whole number > 0 | `auto` "
        "| Tokens computed at once. auto: from the memory at hand. |"
    ) in rows
    assert (
        "| `adapter.dropout` | number ≥ 0 and < 1 | `0.0` "
        "| Dropout on the adapter's input. Above 0 a shared prefix is computed again for every row. |"
    ) in rows
