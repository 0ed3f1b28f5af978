"""The notebook runs without errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "quickstart.ipynb"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUICKSTART_MINUTES", "10")
    monkeypatch.syspath_prepend(str(NOTEBOOK.parent.parent))
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "results are not kept in the repository"
            source = "".join(cell["source"]).replace("MINUTES, ", 'MINUTES, "--epochs", 1, ')  # short on a fast machine
            exec(compile(source, f"cell {number}", "exec"), names)
    assert (tmp_path / "quickstart-run" / "best.pth").is_file() and (tmp_path / "report.html").is_file()
    assert "<img" in names["detections"]._repr_html_()
    said = capsys.readouterr().out
    assert "multiply-adds" in said and "python export.py --checkpoint" in said and "found" in said
